"""The constants of an ONNX model: initializers, ``Constant`` nodes, and what is computed from these alone.

So are sizes that are the same in each run. What is computed is computed in float64, whatever the type of the graph: an
affine is rounded once, where it is written.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from bnfold.onnx_graph.inference import InferredShapes

__all__ = ["FLOATS", "Constants", "array_of", "is_standard", "tensor_of", "torch_type"]

_RENAMED = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Flatten"})
_COMPUTED = frozenset(
    "Cast Concat Slice Gather Neg Sqrt Reciprocal Exp Pow Mul Add Sub Div Expand ConstantOfShape".split()
)
_ASKED = frozenset({"CastLike", "Shape"})
_WHOLE = ("quantize", "Quantize", "QLinear", "QGemm", "QAttention", "Integer")  # in names of operators of any domain
_LARGEST = 1 << 20  # elements that something is computed of; what is only renamed may be larger
_DEEPEST = 64  # nodes in a row

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}


def is_standard(node: ir.Node) -> bool:
    """Whether a node is of ONNX's own operators."""
    return node.domain in ("", "ai.onnx")


def tensor_of(numbers: Any) -> Tensor | None:
    """Return numbers as a tensor that shares their memory; None for a type that torch has not."""
    array = np.asarray(numbers)
    if array.dtype.name == "bfloat16":
        return tensor_of(array.view(np.int16)).view(torch.bfloat16)  # type: ignore[union-attr]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is not writable, and nobody writes
            return torch.from_numpy(array if all(stride >= 0 for stride in array.strides) else array.copy())
    except TypeError:
        return None


def torch_type(dtype: ir.DataType) -> torch.dtype:
    """Return the type of torch for one of ONNX."""
    return _TYPES[dtype]


def array_of(tensor: Tensor, dtype: ir.DataType) -> ir.Tensor[Any]:
    """Return a tensor as ONNX holds it, rounded to a type."""
    wanted = tensor.detach().to(_TYPES[dtype]).contiguous()
    if dtype == ir.DataType.BFLOAT16:
        return ir.Tensor(wanted.view(torch.int16).numpy().view(dtype.numpy()), dtype=dtype)
    return ir.Tensor(wanted.numpy(), dtype=dtype)


class Constants:
    """What is known of values without running the model.

    Args:
        shapes: of the model's values.
        frozen: whether initializers that are inputs too count as constants.
    """

    def __init__(self, shapes: InferredShapes, *, frozen: bool) -> None:
        self.shapes = shapes
        self.frozen = frozen
        self.overridable: list[str] = []
        self.quantises_values = False  # and not weights alone
        self._held: dict[ir.Value, np.ndarray[Any, Any] | None] = {}  # None: the initializer tells
        self._depth: dict[ir.Value, int] = {}
        self._types: dict[ir.Value, ir.DataType] = {}

    def note_initializers(self, graph: ir.Graph) -> None:
        """Look at the initializers of a graph."""
        inputs = set(graph.inputs)
        for value in graph.initializers.values():
            if value in inputs and not self.frozen:
                self.overridable.append(str(value.name))
            elif value.const_value is not None:
                self._held[value] = None

    def note(self, node: ir.Node, version: int) -> None:
        """Look at a node, after all that it reads."""
        if any(part in node.op_type for part in _WHOLE):
            of_weights = node.op_type == "DequantizeLinear" and self.holds(node.inputs[0])
            self.quantises_values |= not of_weights
        if not is_standard(node) or len(node.outputs) != 1:
            return
        (output,) = node.outputs
        if node.op_type == "Constant":
            numbers = _written(node)
            if numbers is not None:
                self._held[output] = numbers
                self._types[output] = ir.DataType.from_numpy(numbers.dtype)
            return
        if node.op_type not in _RENAMED | _COMPUTED | _ASKED or not node.inputs:
            return
        read = [value for value in node.inputs if value is not None]
        if node.op_type == "CastLike":
            read = read[:1]  # of the other it takes the type
        if node.op_type == "Shape" and self._shape(node) is not None:
            read = []
        if not all(value in self._held for value in read):
            return
        depth = 1 + max((self._depth.get(value, 0) for value in read), default=0)
        sizes = [int(np.prod(self.shape(value) or (1,))) for value in read]
        if depth > _DEEPEST or (node.op_type in _COMPUTED and sum(sizes) > _LARGEST):
            return
        if node.op_type in ("Mul", "Add", "Sub", "Div", "Pow") and np.prod(sizes, dtype=float) > _LARGEST**2:
            return
        found = self._computed(node, version)
        if found is not None:
            self._held[output] = found
            self._depth[output] = depth
            kind = self._type_after(node, found)
            if kind is not None:
                self._types[output] = kind

    def _type_after(self, node: ir.Node, found: np.ndarray[Any, Any]) -> ir.DataType | None:
        """The type that what a node computes has in the graph: floats are held in float64."""
        if node.op_type in ("Cast", "CastLike", "Shape") or found.dtype.kind in "iub":
            return ir.DataType.from_numpy(found.dtype)
        if node.op_type == "ConstantOfShape":
            return None
        return None if node.inputs[0] is None else self.dtype(node.inputs[0])

    def _computed(self, node: ir.Node, version: int) -> np.ndarray[Any, Any] | None:
        if node.op_type in ("Cast", "CastLike"):
            return self._cast(node)
        if node.op_type == "Shape":
            return self._shape(node)
        arrays = [None if value is None else self.numbers(value) for value in node.inputs]
        if node.op_type in _COMPUTED:
            arrays = [_wide(array) for array in arrays]
            if not _is_small(node, arrays):
                return None
        try:
            return _run(node, arrays, version)
        except Exception:  # whatever a stranger's node makes of the reference implementation: then it is no constant
            return None

    def _cast(self, node: ir.Node) -> np.ndarray[Any, Any] | None:
        """A cast that rounds no number."""
        if node.op_type == "Cast":
            to: ir.DataType | None = ir.DataType(node.attributes["to"].as_int())
        else:
            to = None if node.inputs[1] is None else self.dtype(node.inputs[1])
        numbers = self.numbers(node.inputs[0])
        if to is None or to not in _TYPES or to == ir.DataType.BFLOAT16 or numbers is None:
            return None
        with np.errstate(all="ignore"):
            cast = numbers.astype(to.numpy())
            return cast if bool(np.all(cast.astype(np.float64) == numbers.astype(np.float64))) else None

    def _shape(self, node: ir.Node) -> np.ndarray[Any, Any] | None:
        """The shape of a constant, which is not read for that, or sizes of any value that are the same in each run."""
        (value,) = node.inputs
        shape: tuple[int | str | None, ...] | None = self.shape(value)
        if shape is None and value is not None:
            shape = self.shapes.symbolic.get(value)
        if shape is None:
            return None
        start, end = (
            node.attributes[name].as_int() if name in node.attributes else default
            for name, default in (("start", 0), ("end", len(shape)))
        )
        sizes = shape[start:end]
        return np.asarray(sizes, dtype=np.int64) if all(isinstance(size, int) for size in sizes) else None

    def holds(self, value: ir.Value | None) -> bool:
        """Whether a value is the same in each run."""
        return value in self._held

    def numbers(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """Return the numbers of a constant; None for anything else."""
        if value is None or value not in self._held:
            return None
        held = self._held[value]
        if held is None:
            assert value.const_value is not None
            return value.const_value.numpy()
        return held

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the shape of a constant, without reading it; None for anything else."""
        if value is None or value not in self._held:
            return None
        held = self._held[value]
        if held is None:
            assert value.const_value is not None
            return tuple(value.const_value.shape.numpy())
        return tuple(held.shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the type of a constant in the graph, where its numbers or the graph tell it."""
        if value in self._types:
            return self._types[value]
        if value.const_value is not None and self._held.get(value, 0) is None:
            return value.const_value.dtype
        return value.dtype


def _wide(array: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any] | None:
    if array is None or array.dtype.kind in "iub":
        return array
    return array.astype(np.float64)


def _is_small(node: ir.Node, arrays: list[np.ndarray[Any, Any] | None]) -> bool:
    """Whether what a node computes is not larger than is worth it."""
    given = [array for array in arrays if array is not None]
    if node.op_type in ("Mul", "Add", "Sub", "Div", "Pow"):
        try:
            return bool(np.prod(np.broadcast_shapes(*(array.shape for array in given))) <= _LARGEST)
        except ValueError:
            return False
    if node.op_type in ("Expand", "ConstantOfShape"):
        wanted = given[-1]
        return wanted.dtype.kind in "iu" and float(np.prod(np.maximum(wanted, 1), dtype=float)) <= _LARGEST
    if node.op_type == "Gather":
        return given[0].size * max(given[1].size, 1) <= _LARGEST * 16
    return True


def _written(node: ir.Node) -> np.ndarray[Any, Any] | None:
    """Return what a ``Constant`` node says."""
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None:
        return None
    if attribute.name == "value":
        tensor = attribute.as_tensor()
        return None if tensor.dtype == ir.DataType.STRING else tensor.numpy()
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(attribute.value, dtype=np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(attribute.value, dtype=np.int64)
    return None


def _run(node: ir.Node, arrays: list[np.ndarray[Any, Any] | None], version: int) -> np.ndarray[Any, Any]:
    """Compute one node by the reference implementation, which takes a millisecond; a frequent one without."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Expand" and arrays[0] is not None and arrays[1] is not None:
        shape = np.broadcast_shapes(arrays[0].shape, tuple(arrays[1].tolist()))
        return np.array(np.broadcast_to(arrays[0], shape))

    names = [f"i{position}" if array is not None else "" for position, array in enumerate(arrays)]
    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.append("o")
    graph = onnx.helper.make_graph(
        [proto], "constant", [onnx.ValueInfoProto(name=name) for name in names if name], [onnx.ValueInfoProto(name="o")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    feed = {name: array for name, array in zip(names, arrays, strict=True) if name}
    with np.errstate(all="ignore"):
        (answer,) = ReferenceEvaluator(model).run(None, feed)
    return np.asarray(answer)
