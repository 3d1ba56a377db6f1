"""Exports for deployment: ONNX and ``torch.export``, with the batch dimension dynamic.

    module -> to_program -> to_onnx -> export_onnx

An example batch of 1 would freeze the batch dimension (a traced 1 is a constant), so the export runs on a batch of at
least two, repeated from the example. Where the model itself fixes the batch, the export is static and says so in
:attr:`OnnxExport.notes` and with a :class:`StaticBatchWarning`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from bnfold.errors import ExportError, MissingPackageError
from bnfold.export.spec import constant_outputs, output_names, tensor_inputs
from bnfold.graph.batch_dimension import as_tuple, batch_positions, with_batch
from bnfold.graph.mode import require_eval
from bnfold.graph.one_batch import FixedBatch, Refusal, refusal_of_batch, why_fixed
from bnfold.graph.quiet import quiet

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

__all__ = [
    "OnnxExport",
    "ProgramExport",
    "StaticBatchWarning",
    "export_onnx",
    "export_program",
    "onnx_of",
    "to_onnx",
    "to_program",
]

PROTOBUF_LIMIT = 2**31 - 2**20  # one message holds less than 2 GiB; the margin is for everything but the weights


class StaticBatchWarning(UserWarning):
    """The export runs only at the batch size of the example."""


@dataclass(frozen=True)
class ProgramExport:
    """A ``torch.export`` program and what is to be said about it.

    Attributes:
        program: the program.
        dynamic: positions of the inputs whose first dimension is the dynamic batch; empty if the batch is fixed.
        notes: sentences for the user.
        fixed: the batch that it takes alone, and why.
    """

    program: ExportedProgram
    dynamic: tuple[int, ...]
    notes: tuple[str, ...] = ()
    fixed: FixedBatch | None = None


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX model and what is to be said about it.

    Attributes:
        model: the ``onnx.ModelProto``.
        dynamic_batch: whether it runs at any batch size.
        notes: sentences for the user.
        fixed: the batch that it takes alone, and why; None also where a program was given.
    """

    model: onnx.ModelProto
    dynamic_batch: bool
    notes: tuple[str, ...] = ()
    fixed: FixedBatch | None = None


def to_program(module: nn.Module, example_inputs: Any) -> ExportedProgram:
    """Export to a ``torch.export.ExportedProgram`` whose batch dimension is dynamic.

    Args:
        module: in eval mode; not modified.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.

    Returns:
        The program. Where the model fixes the batch, it runs at the example's batch only.

    Raises:
        ExportError: torch.export cannot capture the module.
        TrainingModeError: the module is in training mode.

    Warns:
        StaticBatchWarning: the batch could not be made dynamic.
    """
    exported = export_program(module, example_inputs)
    _warn_if_static(bool(exported.dynamic), exported.notes)
    return exported.program


def to_onnx(module: nn.Module | ExportedProgram, example_inputs: Any, *, optimize: bool = True) -> onnx.ModelProto:
    """Export to ONNX with the batch dimension dynamic.

    The same module gives the same bytes each time. Inputs bear the names of ``forward``'s arguments; an only output is
    ``output``, several are ``output_0``, ``output_1``, or the keys of the dict that the model returns. Outputs that are
    no tensors are left out.

    Args:
        module: in eval mode, not modified; or a program from :func:`to_program`.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        optimize: let the exporter simplify the graph. It may then fold a BatchNorm into a convolution itself: a
            witness that must not is exported with ``optimize=False``.

    Returns:
        The model.

    Raises:
        ExportError: the module cannot be exported.
        MissingPackageError: onnx or onnxscript is not installed.
        TrainingModeError: part of the module is in training mode.

    Warns:
        StaticBatchWarning: the batch could not be made dynamic.
    """
    exported = onnx_of(module, example_inputs, optimize=optimize)
    _warn_if_static(exported.dynamic_batch, exported.notes)
    return exported.model


def export_onnx(module: nn.Module | ExportedProgram, path: str | os.PathLike[str], example_inputs: Any) -> None:
    """Export to an ONNX file with the batch dimension dynamic.

    The file appears whole or not at all. A model over 2 GiB keeps its weights beside it, in ``PATH.data``.

    Args:
        module: in eval mode; not modified.
        path: where to; an existing file is replaced.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.

    Raises:
        ExportError: the module cannot be exported.
        FileAccessError: the file cannot be written.
    """
    save_onnx(to_onnx(module, example_inputs), Path(path))


def export_program(module: nn.Module, example_inputs: Any) -> ProgramExport:
    """Do what :func:`to_program` does, with notes instead of warnings."""
    inputs = as_tuple(example_inputs)
    require_eval(f"The {type(module).__name__} to be exported", module)
    together = batch_positions(inputs)
    size = inputs[together[0]].shape[0] if together else 0
    attempts = [positions for positions in dict.fromkeys((together, together[:1])) if positions]
    # torch.export takes for granted that a batch is none of 0 and 1: that the model takes one is asked of the model
    reason = next((refusal.why for n in (1, size + 1) if (refusal := _checked_refusal(module, inputs, n))), None)
    if reason is not None:
        attempts = []
    for positions in attempts:
        grown = with_batch(inputs, max(2, inputs[positions[0]].shape[0]), positions)
        try:
            return ProgramExport(_torch_export(module, grown, positions), positions)
        except Exception as error:
            reason = why_fixed(module, inputs) or _why_static(error)
    try:
        program = _torch_export(module, inputs, ())
    except Exception as error:
        raise ExportError(
            f"torch.export cannot capture this {type(module).__name__}: {first_sentence(error)}",
            fix="Export the part of the model without data-dependent control flow.",
        ) from error
    if not together:
        return ProgramExport(program, (), ("The export has no dynamic batch: no input has a batch dimension.",))
    why = reason or "torch.export says no more"
    return ProgramExport(program, (), (f"The export runs at batch size {size} only: {why}.",), FixedBatch(size, why))


def _why_static(error: Exception) -> str:
    if "Constraints violated" in str(error):  # it goes on about its own settings
        return "torch.export finds that the model's code decides on it"
    return first_sentence(error).rstrip(".")


def _checked_refusal(module: nn.Module, inputs: tuple[Any, ...], size: int) -> Refusal | None:
    """Return why a check in a folded model does not let a batch pass, or None."""
    refusal = refusal_of_batch(module, inputs, size)
    return refusal if refusal is not None and refusal.checked else None


def onnx_of(module: nn.Module | ExportedProgram, example_inputs: Any, *, optimize: bool = True) -> OnnxExport:
    """Do what :func:`to_onnx` does, with notes instead of warnings."""
    for package in ("onnx", "onnxscript"):
        _require(package)
    notes: tuple[str, ...] = ()
    program, fixed = module, None
    if isinstance(module, nn.Module):
        with _in_onnx_export():
            exported = export_program(module, example_inputs)
        program, notes, fixed = exported.program, exported.notes, exported.fixed
    assert not isinstance(program, nn.Module)
    names = output_names(program)
    inputs = tensor_inputs(program)
    left_out = constant_outputs(program)
    if left_out:
        with _in_onnx_export():
            program = export_program(_TensorOutputs(_runnable(module)), example_inputs).program
        names = [name for position, name in enumerate(names) if position not in left_out]
        count = len(left_out)
        what = "one output, which is no tensor" if count == 1 else f"{count} outputs, which are no tensors"
        notes = (*notes, f"The ONNX export leaves out {what}.")
    symbols: dict[Any, str] = {str(symbol): "batch" for symbol in program.range_constraints}
    try:
        with quiet():
            converted = torch.onnx.export(
                program, dynamo=True, optimize=optimize, verbose=False, input_names=inputs, output_names=names
            )
            assert converted is not None
            if len(symbols) == 1:
                converted.rename_axes(symbols)
            model = converted.model_proto
    except Exception as error:
        raise ExportError(
            f"The ONNX exporter failed: {first_sentence(error)}",
            fix="Save the folded model as .pt2 instead, or report the operator that ONNX lacks.",
        ) from error
    _forget_where_it_was_made(model)
    return OnnxExport(model, bool(symbols), notes, fixed)


def save_onnx(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write ``model`` to ``path`` and return the files written: ``path`` and, over 2 GiB, ``path.data``.

    Raises:
        FileAccessError: the folder is missing, or not writable, or full.
    """
    from bnfold.files.formats import onnx_output
    from bnfold.files.save import write_outputs

    output = onnx_output(path, model)
    write_outputs([output], inputs=[], force=True)
    return [path, *(path.parent / sidecar.name for sidecar in output.sidecars)]


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes the weights of ``model`` take; ``ByteSize`` overflows where it matters."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def first_sentence(error: BaseException) -> str:
    """Return what an exporter's page-long message says, in one line ending with a full stop."""
    cause = error
    while type(cause).__name__ == "ConversionError" and cause.__cause__ is not None:
        cause = cause.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause))
    lines = [line.strip(" -\t") for line in text.splitlines() if line.strip(" -\t")]
    line = next((line for line in lines if not line.endswith(":")), lines[0] if lines else type(cause).__name__)
    line = line if len(line) <= 300 else line[:297] + "..."
    return line if line.endswith((".", "!", "?", "...")) else f"{line}."


class _TensorOutputs(nn.Module):
    """A module whose outputs are only the tensors among those of another one, flat."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = False  # its own flag, not those of the parts

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        from torch.utils import _pytree as pytree

        return tuple(leaf for leaf in pytree.tree_leaves(self.module(*inputs)) if isinstance(leaf, Tensor))


def _torch_export(module: nn.Module, inputs: tuple[Any, ...], dynamic: Sequence[int]) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes: tuple[Any, ...] = tuple({0: batch} if position in dynamic else None for position in range(len(inputs)))
    named = _named_inputs(module)
    if named is not None and len(inputs) > named:  # ``forward(self, x, *rest)``: the rest is one argument, a tuple
        shapes = (*shapes[:named], shapes[named:])
    with quiet(), torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes if dynamic else None, strict=False)


def _named_inputs(module: nn.Module) -> int | None:
    """Return how many positional arguments come before ``*args`` in the module's forward, or None without ``*args``."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else None


def _runnable(module: nn.Module | ExportedProgram) -> nn.Module:
    if isinstance(module, nn.Module):
        return module
    runnable = module.module()
    for part in runnable.modules():
        part.training = False
    return runnable


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Drop the stack traces and other records of the exporting machine; keep each node's layer (``namespace``)."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    for node in graph.node:
        kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key == "namespace"]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    del graph.metadata_props[:]
    del model.metadata_props[:]


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"The ONNX export needs the package {package}, which is not installed.",
            fix=f"Run `pip install {package}`, or save as .pt2, which needs nothing more.",
        )


def _warn_if_static(dynamic: bool, notes: Sequence[str]) -> None:
    if not dynamic and notes:
        warnings.warn(notes[0], StaticBatchWarning, stacklevel=3)


@contextlib.contextmanager
def _in_onnx_export() -> Iterator[None]:
    """Let ``torch.onnx.is_in_onnx_export()`` be true, as it is inside ``torch.onnx.export``.

    A layer may have a form of its own for ONNX, as bnfold's explicit affine has; here the graph is captured by
    ``torch.export``, which does not say where it is going.
    """
    with mock.patch.object(torch.onnx, "is_in_onnx_export", return_value=True):
        yield
