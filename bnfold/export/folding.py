"""A ``torch.export`` program in, one out: for those who have nothing else of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.errors import ExportError, UsageError, first_line
from bnfold.fold.api import fold
from bnfold.fold.plan import Plan
from bnfold.graph.quiet import quiet
from bnfold.graph.torch_versions import program_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["FoldedProgram", "fold_program"]


@dataclass(frozen=True)
class FoldedProgram:
    """The result of :func:`fold_program`.

    Attributes:
        program: the folded program; the dimensions that were free are free.
        plan: for each BatchNorm call what became of it, and why.
    """

    program: ExportedProgram
    plan: Plan


def fold_program(
    program: ExportedProgram, *, keep: Iterable[str] = (), merge: bool = False, affines: bool = False
) -> FoldedProgram:
    """Fold the BatchNorms of a ``torch.export`` program.

    The weights keep their names, and those that no fold touches their memory.

    Args:
        program: of a model in eval mode, as ``torch.export.export`` returned it; not changed.
        keep: names of BatchNorms to leave as they are.
        merge: as for :func:`bnfold.fold`.
        affines: as for :func:`bnfold.fold`.

    Raises:
        UsageError: the program has no example inputs, or takes keyword arguments.
        CaptureError: its graph cannot be captured.
        ExportError: the folded module cannot be exported with the same dimensions free.
    """
    if program.example_inputs is None:
        raise UsageError(
            "The program holds no example inputs.", fix="Export the model again, or fold the model itself."
        )
    inputs, named = program.example_inputs
    if named:
        raise UsageError(
            f"The program takes keyword arguments ({', '.join(named)}).", fix="Export the model with positional inputs."
        )
    folding = fold(_as_module(program), tuple(inputs), keep=keep, merge=merge, affines=affines)
    try:
        with quiet():
            folded = _exported_alike(folding.module, tuple(inputs), program)
    except Exception as error:
        raise ExportError(
            f"The folded program cannot be exported with the dimensions that were free: {first_line(error)}.",
            fix="Fold the model itself with bnfold.fold, and export that.",
        ) from error
    return FoldedProgram(folded, folding.plan)


def _exported_alike(module: nn.Module, inputs: tuple[Any, ...], program: ExportedProgram) -> ExportedProgram:
    """Export a module for the sizes that a program is for.

    Raises:
        Exception: it cannot be exported so.
    """
    try:
        return program_of(module, inputs, _free_shapes(program, inputs))
    except Exception:  # torch takes no Dim for a size on which the code decides
        exported = program_of(module, inputs, _free_shapes(program, inputs, decided=True))
        if _sizes(exported) != _sizes(program):
            raise
        return exported


def _sizes(program: ExportedProgram) -> list[str]:
    """Return the shapes of a program's inputs, and the ranges of the sizes in them, by names of their own."""
    names: dict[str, str] = {}
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [str(getattr(values.get(name), "shape", None)) for name in program.graph_signature.user_inputs]
    ranges = [f"{size}: {bounds}" for size, bounds in program.range_constraints.items()]
    own = [re.sub(r"\bs\d+\b", lambda found: names.setdefault(found[0], f"s{len(names)}"), x) for x in shapes + ranges]
    return own[: len(shapes)] + sorted(own[len(shapes) :])


def _as_module(program: ExportedProgram) -> nn.Module:
    """Return the program as a module in eval mode that checks its guards.

    The hooks that check its inputs are left out: the new program has its own.
    """
    module: nn.Module = program.module()
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        hooks.clear()
    for names in ("_forward_hooks_always_called", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):
        getattr(module, names).clear()
    for part in module.modules():
        part.training = False  # a program has no modes: what it was exported in stands in its calls
    return module


def _free_shapes(program: ExportedProgram, inputs: tuple[Any, ...], *, decided: bool = False) -> Any:
    """Return the ``dynamic_shapes`` that make the same dimensions free.

    Args:
        program: which has them.
        inputs: of the program.
        decided: leave it to torch, and to the checks of a module, which sizes of two and more a dimension may have;
            else they are within the same ranges.
    """
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    known: dict[str, Any] = {}
    free: list[dict[int, Any] | None] = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name)
        if not isinstance(value, torch.Tensor):
            free.append(None)
            continue
        shape: list[Any] = list(value.shape)
        sizes = {dim: size.node.expr for dim, size in enumerate(shape) if not isinstance(size, int)}
        free.append(
            {
                dim: torch.export.Dim.DYNAMIC if decided and _starts_at_two(program, size) else dimension
                for dim, size in sizes.items()
                if (dimension := _dimension(program, size, known)) is not None
            }
        )
    return pytree.tree_unflatten(free, pytree.tree_structure(inputs))


def _starts_at_two(program: ExportedProgram, size: Any) -> bool:
    """Whether a size is a symbol that is no smaller than two, as torch takes for granted of dynamic dimensions."""
    return bool(size.is_Symbol and program.range_constraints[size].lower >= 2)


def _dimension(program: ExportedProgram, expression: Any, known: dict[str, Any]) -> Any:
    """Return a size as ``torch.export.Dim``: a symbol, or a whole multiple of one and a constant.

    None stands for a size that torch found to be a plain number.
    """
    import sympy  # type: ignore[import-untyped]

    if not expression.free_symbols:
        return None
    (symbol,) = expression.free_symbols
    if str(symbol) not in known:
        bounds = program.range_constraints[symbol]
        upper = int(bounds.upper) if isinstance(bounds.upper, (int, sympy.Integer)) else None
        known[str(symbol)] = torch.export.Dim(str(symbol), min=int(bounds.lower), max=upper)
    slope, start = (int(term) for term in sympy.Poly(expression, symbol).all_coeffs())
    dimension = known[str(symbol)]
    dimension = dimension if slope == 1 else slope * dimension
    return dimension if start == 0 else dimension + start
