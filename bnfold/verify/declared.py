"""What an exported model declares of its inputs: the batch, where it is fixed, and which inputs it does not take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from bnfold.export.spec import input_shapes, shapes_of_placeholders

__all__ = ["declared_batch", "is_exported", "program_refuses"]


def is_exported(model: Any) -> bool:
    """Whether a model is an exported program, or the module of one."""
    is_module = isinstance(model, GraphModule) and "range_constraints" in vars(model)
    return is_module or type(model).__name__ == "ExportedProgram"


def declared_batch(model: Any) -> int | None:
    """Return the batch size that an export takes alone; None for one that takes others, and for what is no export."""
    if is_exported(model):
        sizes = [shape[0] for shape in _shapes(model) if shape]
        return sizes[0] if sizes and None not in sizes else None
    if isinstance(model, (str, Path)):
        try:
            import onnx

            model = onnx.load(model, load_external_data=False)
        except Exception:  # what is wrong with it is said where it is run
            return None
    if type(model).__name__ != "ModelProto":
        return None
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in weights]
    first = [shape[0] for shape in shapes if shape]
    return (
        int(first[0].dim_value)
        if first and all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in first)
        else None
    )


def program_refuses(program: Any, inputs: Sequence[Any]) -> str | None:
    """Return why a program does not take inputs, by the shapes that it declares; None if it takes them."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    shapes = _shapes(program)
    if len(tensors) != len(shapes):
        return None  # said in other words where it is run
    for shape, tensor in zip(shapes, tensors, strict=True):
        have = tuple(tensor.shape)
        if len(have) != len(shape) or any(want not in (None, size) for want, size in zip(shape, have, strict=True)):
            told = "x".join("?" if want is None else str(want) for want in shape)
            return f"its input is declared as {told}, and {'x'.join(map(str, have))} is given"
    return None


def _shapes(program: Any) -> list[tuple[int | None, ...]]:
    return shapes_of_placeholders(program.graph) if isinstance(program, GraphModule) else input_shapes(program)
