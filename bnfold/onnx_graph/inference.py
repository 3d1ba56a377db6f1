"""Shapes of an ONNX model, as ONNX's own shape inference tells them.

What the file says of values between is not believed. The inference runs on a skeleton without the large weights: once
with a name of its own for each open dimension of an input, which tells what holds for every input, and twice with
numbers in their place, which stand for example inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from bnfold.files.onnx_file import graphs
from bnfold.onnx_graph.following import follow
from bnfold.onnx_graph.loops import infer

__all__ = ["OPEN", "InferredShapes", "NamedShapes", "inferred"]

OPEN = "bnfold_open_"  # begins the name of each open dimension of an input
_SMALL = 2048  # elements of an initializer that the inference may need to look at
_TRIED = ((2, 224), (3, 256))  # batch, and any other open dimension

Symbolic = tuple["int | str | None", ...]
NamedShapes = list[dict[str, tuple["Symbolic | None", tuple["tuple[int, ...] | None", ...]]]]


@dataclass(frozen=True)
class InferredShapes:
    """The shapes of a model's values, those of its subgraphs included.

    Attributes:
        symbolic: for every input; None for a size that nothing is known of.
        tried: for each of two inputs; without those values of which not all sizes are known.
    """

    symbolic: Mapping[ir.Value, Symbolic] = field(default_factory=dict)
    tried: tuple[Mapping[ir.Value, tuple[int, ...]], ...] = ()

    def seen(self, value: ir.Value) -> tuple[tuple[int, ...], ...]:
        """Return a value's shape for each input, if it is known for all."""
        found = [shapes[value] for shapes in self.tried if value in shapes]
        return tuple(found) if len(found) == len(self.tried) else ()

    def by_name(self, graphs: Sequence[ir.Graph]) -> NamedShapes:
        """Return them by the names of the values, for each graph in turn: for a copy of the model."""
        return [
            {
                str(value.name): (self.symbolic.get(value), tuple(shapes.get(value) for shapes in self.tried))
                for value in _values(graph)
            }
            for graph in graphs
        ]

    @staticmethod
    def of_copy(graphs: Sequence[ir.Graph], named: NamedShapes) -> InferredShapes:
        """Return the shapes of a copy's values."""
        symbolic: dict[ir.Value, Symbolic] = {}
        tried: tuple[dict[ir.Value, tuple[int, ...]], ...] = tuple({} for _ in _TRIED)
        for graph, known in zip(graphs, named, strict=True):
            for value in _values(graph):
                shape, seen = known.get(str(value.name), (None, ()))
                if shape is not None:
                    symbolic[value] = shape
                for found, one in zip(tried, seen, strict=False):
                    if one is not None:
                        found[value] = one
        return InferredShapes(symbolic, tried)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def inferred(model: ir.Model) -> InferredShapes:
    """Return the shapes of a model's values; empty where the inference does not take the model."""
    skeleton = _skeleton(model)
    inputs = {str(value.name): value for value in model.graph.inputs}
    symbolic = dict(_inferred(model, skeleton, _named(inputs)))
    tried: list[dict[ir.Value, tuple[int, ...]]] = []
    for batch, size in _TRIED:
        whole = {}
        for value, shape in _inferred(model, skeleton, _numbered(inputs, batch, size)):
            if all(isinstance(part, int) for part in shape):
                whole[value] = tuple(part for part in shape if isinstance(part, int))
        tried.append(whole)
    return InferredShapes(symbolic, tuple(tried))


def _skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return the model without large weights, and without what it says of values between."""
    clone = model.clone()
    for node in clone.graph.all_nodes():  # the inference looks for axes among initializers
        tensor = (
            node.attributes["value"].as_tensor() if node.op_type == "Constant" and "value" in node.attributes else None
        )
        if tensor is not None and tensor.dtype != ir.DataType.STRING:  # not the caller's, which would get another name
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(tensor.numpy(), dtype=tensor.dtype))
    clone = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clone).model
    for value in list(clone.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and (tensor.size > _SMALL or value.is_graph_input()):  # an input may be given others
            shape, dtype = tensor.shape, tensor.dtype
            del clone.graph.initializers[str(value.name)]
            value.const_value = None
            value.shape, value.type = ir.Shape(shape.numpy()), ir.TensorType(dtype)
            if not value.is_graph_input():
                clone.graph.inputs.append(value)
    clone.ir_version = max(clone.ir_version or 4, 4)
    proto = ir.to_proto(clone)
    assert isinstance(proto, onnx.ModelProto)
    for graph in graphs(proto.graph):
        del graph.value_info[:]
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")
    return proto


Sizes = Mapping[tuple[str, int], "int | str"]


def _named(inputs: Mapping[str, ir.Value]) -> Sizes:
    """A name for each open dimension. What the file calls them is not believed: nobody checks that they are equal."""
    return {
        (name, dim): f"{OPEN}{position}_{dim}"
        for position, (name, value) in enumerate(inputs.items())
        for dim, size in enumerate(value.shape or ())
        if _is_open(size)
    }


def _is_open(size: int | ir.SymbolicDim) -> bool:
    """Whether a declared size is none: a name, nothing, or a number that is no size, as Paddle writes -1."""
    return not isinstance(size, int) or size <= 0


def _numbered(inputs: Mapping[str, ir.Value], batch: int, other: int) -> Sizes:
    """A number for each open dimension, the same for those of one name."""
    known: dict[str, int] = {}
    found: dict[tuple[str, int], int] = {}
    for name, value in inputs.items():
        for dim, size in enumerate(value.shape or ()):
            if not _is_open(size):
                continue
            called = size.value if isinstance(size, ir.SymbolicDim) else None
            number = batch if dim == 0 else other
            if called is not None:
                number = known.setdefault(called, number)
            found[name, dim] = number
    return found


def _inferred(model: ir.Model, skeleton: onnx.ModelProto, sizes: Sizes) -> Iterator[tuple[ir.Value, Symbolic]]:
    """Yield the shape of each value of which the number of dimensions is known."""
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    for value in proto.graph.input:
        for dim, size in enumerate(value.type.tensor_type.shape.dim):
            given = sizes.get((value.name, dim))
            if isinstance(given, str):
                size.dim_param = given
            elif given is not None:
                size.dim_value = given
    try:
        proto = infer(proto)
    except Exception:  # it does not take the model: then nothing is known
        return
    follow(proto, numbers_only=all(isinstance(size, int) for size in sizes.values()))
    yield from _matched(model.graph, proto.graph)


def _matched(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Value, Symbolic]]:
    """Yield the shapes that a graph's proto tells, each with the value of the graph of that name."""
    told: dict[str, Any] = {}
    for entry in (*proto.input, *proto.output, *proto.value_info):
        if entry.type.HasField("tensor_type") and entry.type.tensor_type.HasField("shape"):
            told[entry.name] = tuple(_size(dim) for dim in entry.type.tensor_type.shape.dim)
    for value in _values(graph):
        if value.name in told:
            yield value, told[value.name]
    bodies = [attribute.g for other in proto.node for attribute in other.attribute if attribute.HasField("g")]
    inside = (attribute for node in graph for attribute in node.attributes.values())
    for attribute, body in zip((each for each in inside if each.type == ir.AttributeType.GRAPH), bodies, strict=True):
        yield from _matched(attribute.as_graph(), body)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
