"""Exports with ``torch.export``, with the dimensions free that are asked for.

An example batch of 1 would freeze the batch (a traced 1 is a constant), so the export runs on a batch of at least two,
repeated from the example. Where the model itself fixes the batch, the export is static and says so in
:attr:`ProgramExport.notes` and with a :class:`StaticBatchWarning`.

A batch alone is a named ``Dim``: torch raises where the model's code decides on it. With free sizes that would be the
end of every convolutional network, whose layers need *some* size; so there the dimensions are ``Dim.DYNAMIC``, and
:mod:`bnfold.export.guards` finds what torch left of them.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnfold.errors import ExportError, OtherInputError
from bnfold.export.axes import Axis, Free, batch_axis, free_sizes, with_sizes
from bnfold.export.budget import SECONDS, OverBudgetError, within
from bnfold.export.dynamic import DEFAULT, Dynamic, Wanted, wanted
from bnfold.export.guards import narrowed
from bnfold.export.refusals import FixedBatch, Refusal, refusal_of, refusal_of_batch, why_fixed
from bnfold.export.spec import placeholder_shapes
from bnfold.export.tried import program_goes_wrong
from bnfold.graph.batch_dimension import as_tuple, batch_positions, with_batch
from bnfold.graph.mode import require_eval
from bnfold.graph.quiet import quiet
from bnfold.graph.torch_versions import program_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = [
    "ProgramExport",
    "SizeWarning",
    "StaticBatchWarning",
    "conditions",
    "export_program",
    "first_sentence",
    "to_program",
    "warn_if_static",
]


_DECIDED = "torch.export finds that the model's code decides on it"


class StaticBatchWarning(UserWarning):
    """The export runs only at the batch size of the example."""


class SizeWarning(UserWarning):
    """The export does not run at every size: at multiples of some number only, or below a bound, or at equal sizes."""


@dataclass(frozen=True)
class ProgramExport:
    """A ``torch.export`` program and what is to be said about it.

    Attributes:
        program: the program.
        axes: the dimensions that are free.
        notes: sentences for the user.
        fixed: the batch that it takes alone although it was to be free, and why.
    """

    program: ExportedProgram
    axes: tuple[Axis, ...] = ()
    notes: tuple[str, ...] = ()
    fixed: FixedBatch | None = None

    @property
    def dynamic(self) -> tuple[int, ...]:
        """Positions of the inputs whose first dimension is the free batch; empty if the batch is fixed."""
        return tuple(position for axis in self.axes if axis.name == "batch" for position, _ in axis.places)


def to_program(module: nn.Module, example_inputs: Any, *, dynamic: Dynamic = DEFAULT) -> ExportedProgram:
    """Export to a ``torch.export.ExportedProgram`` whose batch dimension is dynamic.

    Args:
        module: in eval mode; not modified.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        dynamic: what stays free; see :func:`bnfold.export_onnx`.

    Returns:
        The program. Where the model fixes the batch, it runs at the example's batch only.

    Raises:
        ExportError: torch.export cannot capture the module, or a dimension that was named cannot be free.
        TrainingModeError: the module is in training mode.

    Warns:
        StaticBatchWarning: the batch could not be made dynamic.
    """
    exported = export_program(module, example_inputs, dynamic=dynamic)
    warn_if_static(exported.fixed, exported.notes, exported.axes)
    return exported.program


def export_program(module: nn.Module, example_inputs: Any, *, dynamic: Dynamic = DEFAULT) -> ProgramExport:
    """Do what :func:`to_program` does, with notes instead of warnings."""
    inputs = as_tuple(example_inputs)
    want = wanted(dynamic)
    require_eval(f"The {type(module).__name__} to be exported", module)
    if want.shapes is not None:
        return _as_torch_is_told(module, inputs, want.shapes)
    together = batch_positions(inputs) if want.batch else ()
    reason = _refused_batch(module, inputs, together)
    notes: tuple[str, ...] = ()
    if want.size:
        free = free_sizes(module, inputs)
        exported = _sized(module, inputs, () if reason else together, free.axes) if free.axes else ""
        if not isinstance(exported, str):
            notes = (*conditions(exported.axes), *(_fixed(name, why) for name, why in free.why_fixed.items()))
            if want.batch and not exported.dynamic:
                return _one_batch(exported, want, inputs, reason, notes)
            return ProgramExport(exported.program, exported.axes, notes)
        notes = _without_sizes(want, free, exported)
    positions_tried = [] if reason else [p for p in dict.fromkeys((together, together[:1])) if p]
    for positions in positions_tried:
        grown = with_batch(inputs, max(2, inputs[positions[0]].shape[0]), positions)
        batch = torch.export.Dim("batch")
        try:
            program = _torch_export(module, grown, {(position, 0): batch for position in positions})
        except Exception as error:
            reason = why_fixed(module, inputs) or _why_static(error)
        else:
            return ProgramExport(program, (batch_axis(grown, positions),), notes)
    try:
        program = _torch_export(module, inputs, {})
    except Exception as error:
        raise ExportError(
            f"torch.export cannot capture this {type(module).__name__}: {first_sentence(error)}",
            fix="Export the part of the model without data-dependent control flow.",
        ) from error
    static = ProgramExport(program)
    return _one_batch(static, want, inputs, reason, notes) if want.batch else ProgramExport(program, (), notes)


def warn_if_static(fixed: FixedBatch | None, notes: Sequence[str], axes: Sequence[Axis] = ()) -> None:
    """Warn of a batch that is fixed although it was to be free, and of sizes that are bounded.

    To be called by a public function.
    """
    if fixed is not None or any("no dynamic batch" in note for note in notes):
        warnings.warn(notes[0], StaticBatchWarning, stacklevel=3)
    if any(axis.bounded or axis.square for axis in axes if axis.name != "batch"):
        warnings.warn(" ".join(conditions(axes)), SizeWarning, stacklevel=3)


def _refused_batch(module: nn.Module, inputs: tuple[Any, ...], together: tuple[int, ...]) -> str | None:
    """Return why a check in a folded model lets no other batch pass, or None.

    torch.export takes for granted that a batch is none of 0 and 1: whether the model takes one is asked of the model.
    """
    size = inputs[together[0]].shape[0] if together else 0
    sizes = (1, size + 1) if together else ()
    return next((refusal.why for n in sizes if (refusal := _checked_refusal(module, inputs, n))), None)


def _sized(
    module: nn.Module, inputs: tuple[Any, ...], together: tuple[int, ...], sizes: tuple[Axis, ...]
) -> ProgramExport | str:
    """Export with free sizes, and with a free batch where it can be; return why where the sizes cannot be free."""
    try:
        with within():
            made = _sized_at(module, inputs, together, sizes)
            if isinstance(made, str) and all(axis.own <= 64 for axis in sizes):
                larger, grown = _twice(inputs, sizes)
                if not isinstance(_sized_at(module, larger, (), grown), str):
                    return "at this one torch.export holds it for fixed: give a larger example"
            return made
    except OverBudgetError:
        return f"torch.export has not come to an end in {SECONDS:.0f} seconds with a free size"


def _sized_at(
    module: nn.Module, inputs: tuple[Any, ...], together: tuple[int, ...], sizes: tuple[Axis, ...]
) -> ProgramExport | str:
    for positions in dict.fromkeys((together, together[:1], ())):
        grown = with_batch(inputs, max(2, inputs[positions[0]].shape[0]), positions) if positions else inputs
        axes = (batch_axis(grown, positions), *sizes) if positions else sizes
        free = {place: torch.export.Dim.DYNAMIC for axis in axes for place in axis.places}
        try:
            program = _torch_export(module, grown, free)
        except Exception:  # the next way, and at last the batch alone, whose error is told
            continue
        kept = narrowed(axes, program, placeholder_shapes(program, grown))
        if kept is None or any(axis.name == "batch" and (axis.least > 2 or axis.most) for axis in kept):
            continue
        kept = tuple(_with_cut(axis, module, grown) for axis in kept)
        wrong = program_goes_wrong(program, module, grown, kept)
        return ProgramExport(program, kept) if wrong is None else f"its export does not: {wrong}"
    return _DECIDED


def _with_cut(axis: Axis, module: nn.Module, inputs: tuple[Any, ...]) -> Axis:
    """Note whether a check in the model refuses smaller sizes than the export was made for.

    The model it was made of may take them. torch.export's own bounds are no such refusal: it tells sizes of one apart.
    """
    smaller = axis.least - axis.step
    if axis.name == "batch" or smaller < 1:
        return axis
    refusal = refusal_of(module, inputs, axis.at(smaller))
    return replace(axis, cut=refusal is not None and refusal.checked)


def _twice(inputs: tuple[Any, ...], sizes: tuple[Axis, ...]) -> tuple[tuple[Any, ...], tuple[Axis, ...]]:
    """Return inputs of more than 64 in each size, and the sizes of these."""
    grown = tuple(replace(axis, own=axis.own * (64 // axis.own + 1)) for axis in sizes)
    places = {place: axis.own for axis in grown for place in axis.places}
    return with_sizes(inputs, places, torch.Generator().manual_seed(0)), grown


def _without_sizes(want: Wanted, free: Free, why: str) -> tuple[str, ...]:
    """Return what is to be said where no size can be free.

    Raises:
        ExportError: the user had named it.
    """
    if not free.axes:
        why = next(iter(free.why_fixed.values()))
        told = f"The model itself takes no other size: {why}."
    else:
        told = f"The model takes other sizes, but {why}."
    if "size" in want.by_name:
        raise ExportError(
            f"The size cannot stay free. {told}", fix="Leave `size` out: the export then has the example's."
        )
    return (f"The size is fixed at that of the example. {told}",) if free.axes else ()


def _one_batch(
    exported: ProgramExport, want: Wanted, inputs: tuple[Any, ...], reason: str | None, notes: tuple[str, ...]
) -> ProgramExport:
    """Return an export whose batch is fixed although it was to be free, with a note.

    Raises:
        ExportError: the user had named the batch.
    """
    together = batch_positions(inputs)
    if not together:
        note = "The export has no dynamic batch: no input has a batch dimension."
        return ProgramExport(exported.program, exported.axes, (note, *notes))
    size, why = int(inputs[together[0]].shape[0]), reason or "torch.export says no more"
    if "batch" in want.by_name:
        raise ExportError(f"The batch cannot stay free: {why}.", fix=f"Leave `batch` out: it is then {size}.")
    note = f"The export runs at batch size {size} only: {why}."
    return ProgramExport(exported.program, exported.axes, (note, *notes), FixedBatch(size, why))


def conditions(axes: Sequence[Axis]) -> tuple[str, ...]:
    """Return a sentence for each condition on a size that a program or a file with these free axes has."""
    alike: dict[str, list[str]] = {}
    for axis in axes:
        if axis.name != "batch" and axis.condition is not None:
            alike.setdefault(axis.condition, []).append(axis.name)
    told = [f"The {' and the '.join(names)} must be {condition}." for condition, names in alike.items()]
    return (*told, *("Height and width must be equal." for axis in axes if axis.square))


def _fixed(name: str, why: str) -> str:
    return f"The {name} is fixed at that of the example: {why}."


def _as_torch_is_told(module: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> ProgramExport:
    """Export with the user's own ``dynamic_shapes``."""
    try:
        with quiet(), torch.no_grad():
            program = program_of(module, inputs, shapes)
    except OtherInputError as error:
        raise ExportError(error.what, fix="Leave that dimension out of `dynamic`.") from error
    except Exception as error:
        words = first_sentence(error)
        fixes = re.findall(r"^ {2}(\w+ = .+)$", str(error), re.MULTILINE)
        raise ExportError(
            f"torch.export does not take `dynamic` as its dynamic_shapes: {words}",
            fix=f"torch suggests {', '.join(fixes)}." if fixes else "See the documentation of torch.export.",
        ) from error
    axes = _named_axes(shapes, inputs, module)
    kept = narrowed(axes, program, placeholder_shapes(program, inputs)) if axes else axes
    if kept is None:
        note = (
            "torch.export ties the free dimensions to each other, or to numbers: see the program's range_constraints."
        )
        return ProgramExport(program, axes, (note,))
    return ProgramExport(program, kept, conditions(kept))


def _named_axes(shapes: Any, inputs: tuple[Any, ...], module: nn.Module) -> tuple[Axis, ...]:
    """Return the dimensions that the user's ``dynamic_shapes`` names, by input."""
    names = list(inspect.signature(module.forward).parameters)
    by_position = [shapes.get(name) for name in names] if isinstance(shapes, dict) else list(shapes)
    axes: dict[str, Axis] = {}
    for position, (value, dims) in enumerate(zip(inputs, by_position, strict=False)):
        if not isinstance(value, Tensor) or dims is None:
            continue
        pairs = dims.items() if isinstance(dims, dict) else enumerate(dims)
        for dim, free in pairs:
            if free is None or isinstance(free, int):
                continue
            name = getattr(free, "__name__", f"{names[position] if position < len(names) else 'input'}_{dim}")
            known = axes.get(name)
            places = (*(known.places if known else ()), (position, dim))
            axes[name] = Axis(name, places, int(value.shape[dim]))
    return tuple(axes.values())


def _why_static(error: Exception) -> str:
    if "Constraints violated" in str(error):  # it goes on about its own settings
        return _DECIDED
    return first_sentence(error).rstrip(".")


def _checked_refusal(module: nn.Module, inputs: tuple[Any, ...], size: int) -> Refusal | None:
    """Return why a check in a folded model does not let a batch pass, or None."""
    refusal = refusal_of_batch(module, inputs, size)
    return refusal if refusal is not None and refusal.checked else None


def first_sentence(error: BaseException) -> str:
    """Return what an exporter's page-long message says, in one line ending with a full stop.

    Where it shows objects by their addresses, the innermost of its causes that does not is told, with the operator.
    """
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    at = next((n for n, cause in enumerate(causes) if type(cause).__name__ != "ConversionError"), len(causes) - 1)
    line = _first_told(causes[at]) or type(causes[at]).__name__
    if _ADDRESS.search(line):
        inner = [_first_told(cause) for cause in causes[at + 1 :] if not isinstance(cause, _SLIPS)]
        useful = next((told for told in reversed(inner) if told and not _ADDRESS.search(told)), None)
        operators = [found[1] for cause in causes[:at] if (found := _OPERATOR.search(str(cause)))]
        line = line if useful is None else ": ".join((*operators[-1:], useful))
    line = _ADDRESS.sub("", line)
    line = line if len(line) <= 300 else line[:297] + "..."
    return line if line.endswith((".", "!", "?", "...")) else f"{line}."


_ADDRESS = re.compile(r"(?: at)? ?\b0x[0-9a-fA-F]{6,}|(?<=anonymous):\d{6,}|(?<=anonymous_node):\d{6,}")
_SLIPS = (AttributeError, LookupError, NameError)  # of an exporter: they say nothing of the model
_OPERATOR = re.compile(r"target=torch\.ops\.(\w+\.\w+)")


def _first_told(error: BaseException) -> str:
    """Return the first line of an error that is no heading; empty where the error has no text."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip(" -\t") for line in text.splitlines() if line.strip(" -\t")]
    return next((line for line in lines if not line.endswith(":")), lines[0] if lines else "")


def _torch_export(module: nn.Module, inputs: tuple[Any, ...], free: dict[Any, Any]) -> ExportedProgram:
    """Export with what torch is to be told of each free place: a position and a dimension."""
    shapes: tuple[Any, ...] = tuple(
        {dim: told for (at, dim), told in free.items() if at == position} or None for position in range(len(inputs))
    )
    named = _named_inputs(module)
    if named is not None and len(inputs) > named:  # ``forward(self, x, *rest)``: the rest is one argument, a tuple
        shapes = (*shapes[:named], shapes[named:])
    with quiet(), torch.no_grad():
        return program_of(module, inputs, shapes if free else None)


def _named_inputs(module: nn.Module) -> int | None:
    """Return how many positional arguments come before ``*args`` in the module's forward, or None without ``*args``."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else None
