"""What an exported model declares of its inputs: the batch, where it is fixed, and which inputs it does not take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from bnfold.export.axes import Axis
from bnfold.export.spec import input_shapes, shapes_of_placeholders

__all__ = ["declared_axes", "declared_batch", "is_exported", "program_refuses"]


def is_exported(model: Any) -> bool:
    """Whether a model is an exported program, or the module of one."""
    is_module = isinstance(model, GraphModule) and "range_constraints" in vars(model)
    return is_module or type(model).__name__ == "ExportedProgram"


def declared_batch(model: Any) -> int | None:
    """Return the batch size that an export takes alone; None for one that takes others, and for what is no export."""
    if is_exported(model):
        sizes = [shape[0] for shape in _shapes(model) if shape]
        return sizes[0] if sizes and None not in sizes else None
    try:
        shapes = _onnx_shapes(model)
    except Exception:  # what is wrong with it is said where it is run
        return None
    first = [shape[0] for shape in shapes if shape]
    return (
        int(first[0].dim_value)
        if first and all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in first)
        else None
    )


def declared_axes(model: Any, example: Sequence[Any]) -> tuple[Axis, ...]:
    """Return the sizes that an ONNX model leaves open; nothing for another kind, and where its inputs are not these.

    In steps of 32 or 2 where the example's own are of that kind: what a file takes beyond its declaration is not said.
    """
    try:
        shapes = _onnx_shapes(model)
    except Exception:  # what is wrong with it is said where it is run
        return ()
    tensors = [(position, value) for position, value in enumerate(example) if isinstance(value, Tensor)]
    if not shapes or len(shapes) != len(tensors):
        return ()
    axes: dict[str, Axis] = {}
    for (position, value), dims in zip(tensors, shapes, strict=True):
        for dim, size in list(enumerate(value.shape))[1 : len(dims)]:
            if dims[dim].HasField("dim_value"):
                continue
            step = next(step for step in (32, 2, 1) if size % step == 0)
            name = dims[dim].dim_param or f"{position}.{dim}"
            known = axes.get(name) or Axis(name, (), int(size), step, least=step)
            axes[name] = replace(known, places=(*known.places, (position, dim)))
    return tuple(axes.values())


def program_refuses(program: Any, inputs: Sequence[Any]) -> str | None:
    """Return why a program does not take inputs, by the shapes that it declares; None if it takes them."""
    tensors = [value for value in pytree.tree_leaves(tuple(inputs)) if isinstance(value, Tensor)]
    shapes = _shapes(program)
    if len(tensors) != len(shapes):
        return None  # said in other words where it is run
    for shape, tensor in zip(shapes, tensors, strict=True):
        have = tuple(tensor.shape)
        if len(have) != len(shape) or any(want not in (None, size) for want, size in zip(shape, have, strict=True)):
            told = "x".join("?" if want is None else str(want) for want in shape)
            return f"its input is declared as {told}, and {'x'.join(map(str, have))} is given"
    return None


def _onnx_shapes(model: Any) -> list[Any]:
    """Return the dimensions that an ONNX model declares of each input; nothing for another kind of model."""
    if isinstance(model, (str, Path)):
        import onnx

        model = onnx.load(model, load_external_data=False)
    if type(model).__name__ != "ModelProto":
        return []
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in weights]


def _shapes(program: Any) -> list[tuple[int | None, ...]]:
    return shapes_of_placeholders(program.graph) if isinstance(program, GraphModule) else input_shapes(program)
