"""Exports to ONNX, with the dimensions free that are asked for.

    module -> export_program -> onnx_of -> export_onnx

What an operator of ONNX cannot do at every size is found out by trying: the file is then for the example's size,
and the note says which module it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnfold.errors import ExportError, FileAccessError, MissingPackageError
from bnfold.export.axes import Axis, free_sizes, words_of
from bnfold.export.dynamic import DEFAULT, Dynamic, wanted
from bnfold.export.opset import FOR_BFLOAT16, asked_of_exporter, at_opset
from bnfold.export.program import ProgramExport, conditions, export_program, first_sentence, warn_if_static
from bnfold.export.refusals import FixedBatch
from bnfold.export.spec import constant_outputs, output_names, placeholder_shapes, tensor_inputs
from bnfold.export.tried import goes_wrong, rounded_scale
from bnfold.files.formats import APART, PROTOBUF_LIMIT
from bnfold.graph.batch_dimension import as_tuple
from bnfold.graph.quiet import quiet
from bnfold.graph.torch_versions import batch_norms_with_one_output, name_ends

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

__all__ = [
    "APART",
    "PROTOBUF_LIMIT",
    "OnnxExport",
    "export_onnx",
    "onnx_of",
    "save_onnx",
    "to_onnx",
    "weight_bytes",
]


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX model and what is to be said about it.

    Attributes:
        model: the ``onnx.ModelProto``; or, where its weights were written to a file beside it, the path of its own.
        axes: the dimensions that are free; of a bare program, which says no names, those that it has.
        notes: sentences for the user.
        fixed: the batch that it takes alone although it was to be free, and why; None also where a program was given.
    """

    model: onnx.ModelProto | Path
    axes: tuple[Axis, ...] = ()
    notes: tuple[str, ...] = ()
    fixed: FixedBatch | None = None

    @property
    def dynamic_batch(self) -> bool:
        """Whether it runs at any batch size."""
        return any(axis.name == "batch" for axis in self.axes)


def to_onnx(
    module: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    dynamic: Dynamic = DEFAULT,
    opset: int | None = None,
    optimize: bool = True,
) -> onnx.ModelProto:
    """Export to ONNX with the batch dimension dynamic.

    The same module gives the same bytes each time. Inputs bear the names of ``forward``'s arguments; an only output is
    ``output``, several are ``output_0``, ``output_1``, or the keys of the dict that the model returns. Outputs that are
    no tensors are left out. Free dimensions are called ``batch``, ``height``, ``width``, ``length``, ``depth``.

    Args:
        module: in eval mode, not modified; or a program from :func:`to_program`, which has its free dimensions already.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        dynamic: what stays free; see :func:`bnfold.export_onnx`.
        opset: of the model; the exporter's default if not given.
        optimize: let the exporter simplify the graph. It may then fold a BatchNorm into a convolution itself: a
            witness that must not is exported with ``optimize=False``.

    Returns:
        The model.

    Raises:
        ExportError: the module cannot be exported, or a dimension that was named cannot be free.
        MissingPackageError: onnx or onnxscript is not installed.
        TrainingModeError: part of the module is in training mode.
        UsageError: there is no such opset, or no such dimension.

    Warns:
        StaticBatchWarning: the batch could not be made dynamic.
    """
    exported = onnx_of(module, example_inputs, dynamic=dynamic, opset=opset, optimize=optimize)
    _require_right(exported, module, as_tuple(example_inputs))
    warn_if_static(exported.fixed, exported.notes, exported.axes)
    assert not isinstance(exported.model, Path)
    return exported.model


def export_onnx(
    module: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: Dynamic = DEFAULT,
    opset: int | None = None,
) -> None:
    """Export to an ONNX file with the batch dimension dynamic.

    The file appears whole or not at all. A model over 512 MiB keeps its weights beside it, in ``PATH.data``.

    Args:
        module: in eval mode; not modified.
        path: where to; an existing file is replaced.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        dynamic: what stays free: ``("batch",)``, ``("batch", "size")``, ``("size",)`` or ``()``. The size is the height
            and width of images, the length of sequences, and depth, height and width of volumes. Or, for models with
            several inputs, the ``dynamic_shapes`` that ``torch.export.export`` takes, whose names become those of the
            dimensions. What you name and cannot be free is an error; the default is the batch where that can be.
        opset: of the file; the exporter's default if not given. Below 18, onnx's version converter is used.

    Raises:
        ExportError: the module cannot be exported, or a dimension that was named cannot be free.
        FileAccessError: the file cannot be written.
        UsageError: there is no such opset, or no such dimension.
    """
    from bnfold.files.destinations import staged_beside
    from bnfold.files.formats import onnx_output
    from bnfold.files.save import write_outputs

    path = Path(path)
    with staged_beside(path) as scratch:
        exported = onnx_of(module, example_inputs, dynamic=dynamic, opset=opset, apart=scratch / path.name)
        _require_right(exported, module, as_tuple(example_inputs))
        write_outputs([onnx_output(path, exported.model)], inputs=[], force=True)
    warn_if_static(exported.fixed, exported.notes, exported.axes)


def _require_right(exported: OnnxExport, module: nn.Module | ExportedProgram, inputs: tuple[Any, ...]) -> None:
    """Raise where the exporter made something else than the module, as one run on the example shows.

    Of models that are not large, and where ONNX Runtime is there to run them; the proof is :mod:`bnfold.verify`'s.
    """
    tried = any(axis.name != "batch" for axis in exported.axes)
    if tried or isinstance(exported.model, Path) or not isinstance(module, nn.Module):
        return
    if weight_bytes(exported.model) >= PROTOBUF_LIMIT:
        return
    with _in_onnx_export():
        wrong = goes_wrong(exported.model, module, inputs, ())
    if wrong is not None:
        raise ExportError(
            f"What torch's exporter made of the model is not the model: {wrong}.",
            fix="Write the .pt2, or avoid what the exporter gets wrong; `bnfold fold` says where it differs.",
        )


def onnx_of(
    module: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    dynamic: Dynamic = DEFAULT,
    opset: int | None = None,
    optimize: bool = True,
    program: ProgramExport | None = None,
    apart: Path | None = None,
) -> OnnxExport:
    """Do what :func:`to_onnx` does, with notes instead of warnings.

    Args:
        module: see there.
        example_inputs: see there.
        dynamic: see there.
        opset: see there.
        optimize: see there.
        program: an export of the module that has been made already, with the same ``dynamic``.
        apart: where a model of more than ``APART`` bytes may be written, its weights beside it, from the tensors of the
            module. The answer's ``model`` is then this path.
    """
    for package in ("onnx", "onnxscript"):
        _require(package)
    asked_of_exporter(opset)
    inputs, want = as_tuple(example_inputs), wanted(dynamic)
    if asked_of_exporter(opset) != opset:
        apart = None  # the version converter wants it whole
    if not isinstance(module, nn.Module):
        made = _converted(ProgramExport(module), module, inputs, opset=opset, optimize=optimize, apart=apart)
        return _at_opset(made, opset)
    why = _adaptive_pool(module) if want.size else None
    if why is None or not free_sizes(module, inputs).axes:  # else known before it is tried, which takes a minute
        if program is None:
            with _in_onnx_export():
                program = export_program(module, inputs, dynamic=want)
        free, why = _tried(program, module, inputs, opset=opset, optimize=optimize, apart=apart)
        if free is not None:
            return _at_opset(free, opset)
    if "size" in want.by_name or want.shapes is not None:
        raise ExportError(
            f"The size cannot stay free in ONNX, although the model takes others: {why}.",
            fix="Leave `size` out: the file is then for the size of the example.",
        )
    with _in_onnx_export():
        program = export_program(module, inputs, dynamic=replace(want, size=False))
    smaller = _converted(program, module, inputs, opset=opset, optimize=optimize, apart=apart)
    note = f"The size in the .onnx is fixed at that of the example, although the model takes others: {why}."
    return replace(_at_opset(smaller, opset), notes=(*smaller.notes, note))


def _at_opset(made: OnnxExport, opset: int | None) -> OnnxExport:
    return made if isinstance(made.model, Path) else replace(made, model=at_opset(made.model, opset))


def _tried(
    program: ProgramExport,
    module: nn.Module,
    inputs: tuple[Any, ...],
    *,
    opset: int | None,
    optimize: bool,
    apart: Path | None,
) -> tuple[OnnxExport | None, str | None]:
    """Return the export of a program; or, where its sizes cannot be free in ONNX, None and why."""
    sized = any(axis.name != "batch" for axis in program.axes)
    try:
        made = _converted(program, module, inputs, opset=opset, optimize=optimize, apart=apart)
    except ExportError as error:
        if not sized:
            raise
        return None, error.what.removeprefix("The ONNX exporter failed: ").rstrip(".")
    wrong = rounded_scale(made.model) if sized else None
    if wrong is None and sized and (isinstance(made.model, Path) or weight_bytes(made.model) < PROTOBUF_LIMIT):
        with _in_onnx_export():
            wrong = goes_wrong(made.model, module, inputs, made.axes)
    return (made, None) if wrong is None else (None, _adaptive_pool(module) or wrong)


def _converted(
    exported: ProgramExport,
    module: nn.Module | ExportedProgram,
    example_inputs: tuple[Any, ...],
    *,
    opset: int | None,
    optimize: bool,
    apart: Path | None,
) -> OnnxExport:
    """Convert a program to ONNX.

    Raises:
        ExportError: it cannot be.
    """
    program, notes = exported.program, exported.notes
    names = output_names(program)
    inputs = tensor_inputs(program)
    left_out = constant_outputs(program)
    if left_out:
        with _in_onnx_export():
            again = export_program(
                _TensorOutputs(_runnable(module)), example_inputs, dynamic=wanted(words_of(exported.axes))
            )
        program = again.program
        names = [name for position, name in enumerate(names) if position not in left_out]
        count = len(left_out)
        what = "one output, which is no tensor" if count == 1 else f"{count} outputs, which are no tensors"
        notes = (*notes, f"The ONNX export leaves out {what}.")
    narrow = any(value.dtype == torch.bfloat16 for value in program.state_dict.values())
    try:
        with quiet(), batch_norms_with_one_output():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                optimize=optimize,
                verbose=False,
                input_names=inputs,
                output_names=names,
                opset_version=asked_of_exporter(opset) or (FOR_BFLOAT16 if narrow else None),
            )
            assert converted is not None
            name_ends(converted.model.graph, inputs, names)
            large = apart is not None and _bytes_of(converted.model) > APART
            model = _written_apart(converted.model, apart) if large and apart is not None else converted.model_proto
    except FileAccessError:
        raise
    except Exception as error:
        raise ExportError(
            f"The ONNX exporter failed: {first_sentence(error)}",
            fix="Save the folded model as .pt2 instead, or report the operator that ONNX lacks.",
        ) from error
    axes = exported.axes or _axes_of(program)
    _name_dimensions(model, _names_of_symbols(program, example_inputs, axes))
    _forget_where_it_was_made(model)
    told = conditions(axes)
    if told:  # nothing in ONNX enforces them
        model.metadata_props.add(key="bnfold.sizes", value=" ".join(told))
    if large and apart is not None:
        apart.write_bytes(model.SerializeToString(deterministic=True))
        return OnnxExport(apart, axes, notes, exported.fixed)
    return OnnxExport(model, axes, notes, exported.fixed)


def _bytes_of(model: Any) -> int:
    """Return how many bytes the weights of an ``onnx_ir.Model`` take."""
    held = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _written_apart(model: Any, path: Path) -> onnx.ModelProto:
    """Write the weights of an ``onnx_ir.Model`` to ``PATH.data``, each from where it lies; return the rest.

    Raises:
        FileAccessError: they cannot be written.
    """
    import onnx_ir
    from onnx_ir.external_data import unload_from_model

    from bnfold.files.destinations import cannot_write

    try:
        outside = unload_from_model(model, path.parent, f"{path.name}.data", size_threshold_bytes=1024)
    except OSError as error:
        raise cannot_write(path, error, _bytes_of(model)) from None
    rest: onnx.ModelProto = onnx_ir.to_proto(outside)
    return rest


def _axes_of(program: ExportedProgram) -> tuple[Axis, ...]:
    """Return the batch of a program that somebody else made, where it has one free dimension."""
    return (Axis("batch", ((0, 0),), 2),) if len(program.range_constraints) == 1 else ()


def _names_of_symbols(program: ExportedProgram, inputs: tuple[Any, ...], axes: tuple[Axis, ...]) -> dict[str, str]:
    """Return the name of each symbol in the shapes of a program's inputs."""
    symbols = [str(symbol) for symbol in program.range_constraints]
    if len(symbols) == 1 and len(axes) == 1:
        return {symbols[0]: axes[0].name}
    shapes = placeholder_shapes(program, inputs)
    return {str(shapes[position][dim]): axis.name for axis in axes for position, dim in axis.places if shapes[position]}


def _name_dimensions(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give the free dimensions their names; one that is computed from others is left to ONNX's shape inference."""
    graph = model.graph
    given = {value.name for value in graph.input}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_param"):
                continue
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
            elif value.name not in given and names:
                dim.ClearField("dim_param")


def _adaptive_pool(module: nn.Module) -> str | None:
    """Return which adaptive pooling may have no form in ONNX for every size; None where there is none."""
    for graph in (part for part in module.modules() if isinstance(part, GraphModule)):
        for node in graph.graph.nodes:
            layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            name = type(layer).__name__ if layer is not None else getattr(node.target, "__name__", "")
            if not name.lower().replace("_", "").startswith("adaptive"):
                continue
            size = getattr(layer, "output_size", None) if layer is not None else (*node.args[1:], None)[0]
            size = node.kwargs.get("output_size", size)
            sizes = size if isinstance(size, (tuple, list)) else (size,)
            if any(one not in (None, 1) for one in sizes):
                told = "x".join("?" if one is None else str(one) for one in sizes)
                source = f", at {node.meta['source']}," if layer is None and node.meta.get("source") else ""
                called = node.target if layer is not None else node.name
                return f"ONNX has no adaptive pooling to {told}, which `{called}`{source} does"
    return None


def save_onnx(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write ``model`` to ``path`` and return the files written: ``path`` and, over 512 MiB, ``path.data``.

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


class _TensorOutputs(nn.Module):
    """A module whose outputs are only the tensors among those of another one, flat."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = False  # its own flag, not those of the parts

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        from torch.utils import _pytree as pytree

        return tuple(leaf for leaf in pytree.tree_leaves(self.module(*inputs)) if isinstance(leaf, Tensor))


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


@contextlib.contextmanager
def _in_onnx_export() -> Iterator[None]:
    """Let ``torch.onnx.is_in_onnx_export()`` be true, as it is inside ``torch.onnx.export``.

    A layer may have a form of its own for ONNX, as bnfold's explicit affine has; here the graph is captured by
    ``torch.export``, which does not say where it is going.
    """
    with mock.patch.object(torch.onnx, "is_in_onnx_export", return_value=True):
        yield
