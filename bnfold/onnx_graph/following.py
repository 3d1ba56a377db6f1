"""Shapes where ONNX's own inference stops: at whole numbers that it does not follow.

It follows them through some operators only: behind a ``Squeeze`` of a shape, or behind axes that are computed from
constants, nothing more is known. They are computed here, node by node, each by ONNX's reference implementation, as far
as they are the same in each run (or, where all inputs have sizes that are numbers, in this one); and the shapes by
ONNX's inference of one node, which is given them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TypeProto, numpy_helper

__all__ = ["follow"]

_NUMBERS = 64  # elements of what is computed from sizes
_COUNTING = frozenset(
    "Abs Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Floor Gather Greater GreaterOrEqual Identity Less "
    "LessOrEqual Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round Shape "
    "Size Slice Sqrt Squeeze Sub Tile Transpose Unsqueeze Where".split()
)
"""Operators by which sizes are made of sizes. What they compute is the same in each run."""


def follow(proto: onnx.ModelProto, *, numbers_only: bool) -> None:
    """Add the shapes to a model, in place, that its inference did not find; of its own graph, not of those inside.

    Args:
        proto: with the shapes that were inferred.
        numbers_only: whether the sizes of all inputs are numbers, so that those of all values can be; else it is the
            number of dimensions that is looked for.
    """
    wanted = _complete if numbers_only else _ranked
    graph = proto.graph
    every = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type for value in every if value.type.HasField("tensor_type")}
    types |= {
        tensor.name: onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in graph.initializer
    }
    if all(wanted(types.get(name)) for node in graph.node for name in node.output if name):
        return
    numbers = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.STRING and prod(tensor.dims) <= _NUMBERS
    }
    compute = _Computing(proto)
    for place, node in enumerate(graph.node):
        if not _is_standard(node):
            continue
        if not all(wanted(types.get(name)) for name in node.output if name):
            found = _inferred(proto, node, types, numbers)
            types |= {name: told for name, told in found.items() if name and wanted(told)}
        numbers |= compute(place, types, numbers)
    outputs = {value.name for value in graph.output}
    del graph.value_info[:]
    for value in graph.output:
        value.type.CopyFrom(types.get(value.name, value.type))
    for name in (name for node in graph.node for name in node.output if name in types and name not in outputs):
        graph.value_info.append(onnx.ValueInfoProto(name=name, type=types[name]))


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _ranked(told: TypeProto | None) -> bool:
    """Whether the number of dimensions is known."""
    return told is not None and told.tensor_type.HasField("shape")


def _complete(told: TypeProto | None) -> bool:
    """Whether all sizes are numbers."""
    if told is None or not _ranked(told):
        return False
    return all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in told.tensor_type.shape.dim)


def _sizes(told: TypeProto) -> list[int]:
    return [dim.dim_value for dim in told.tensor_type.shape.dim]


def _inferred(
    proto: onnx.ModelProto, node: onnx.NodeProto, types: dict[str, TypeProto], numbers: dict[str, Any]
) -> dict[str, TypeProto]:
    """Return the types of a node's results by the inference of that node alone."""
    read = [name for name in node.input if name]
    if any(attribute.HasField("g") for attribute in node.attribute) or not all(name in types for name in read):
        return {}
    try:
        schema = onnx.defs.get_schema(node.op_type, _version(proto), "")
        return onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {name: types[name] for name in read},
            {name: numpy_helper.from_array(numbers[name], name) for name in read if name in numbers},
            opset_imports=list(proto.opset_import),
            ir_version=proto.ir_version,
        )
    except Exception:  # whatever a stranger's node makes of it: then nothing is known
        return {}


def _version(proto: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


class _Computing:
    """Computes the nodes that make sizes of sizes, one at a time.

    Args:
        proto: the model.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = proto.graph.node
        places = [place for place, node in enumerate(self.nodes) if _counts(node)]
        self._runs = dict(zip(places, _reference([self.nodes[place] for place in places], proto), strict=False))

    def __call__(self, place: int, types: dict[str, TypeProto], numbers: dict[str, Any]) -> dict[str, Any]:
        """Return what the node at a place computes, by its name; nothing where that is not known or too much."""
        run, node = self._runs.get(place), self.nodes[place]
        if run is None:
            return {}
        if node.op_type in ("Shape", "Size"):
            told = types.get(node.input[0])
            if told is None or not _complete(told):
                return {}
            sizes = _sizes(told)
            if node.op_type == "Size":
                return {node.output[0]: np.asarray(prod(sizes), np.int64)}
            given: list[Any] = [np.broadcast_to(np.zeros((), np.int64), sizes)]
        else:
            if not all(name in numbers for name in node.input if name):
                return {}
            told = types.get(node.output[0])
            if told is None or not _complete(told) or prod(_sizes(told)) > _NUMBERS:
                return {}
            given = [numbers[name] if name else None for name in node.input]
        try:
            with np.errstate(all="raise"):
                (answer,) = run.run(*given)
        except Exception:  # whatever a stranger's node makes of it: then nothing is known
            return {}
        return {node.output[0]: np.asarray(answer)}


def _counts(node: onnx.NodeProto) -> bool:
    return _is_standard(node) and node.op_type in _COUNTING and len(node.output) == 1 and len(node.input) > 0


def _reference(nodes: list[onnx.NodeProto], proto: onnx.ModelProto) -> Iterable[Any]:
    """Return the reference implementation of each node."""
    from onnx.reference import ReferenceEvaluator

    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    graph = onnx.helper.make_graph(nodes, "sizes", [onnx.ValueInfoProto(name=name) for name in read], [])
    model = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import))
    try:
        runs: Iterable[Any] = ReferenceEvaluator(model).rt_nodes_
    except Exception:
        return ()
    return runs
