"""Shapes inside of loops: those that hold in each iteration, and not those that a file declares.

Nobody checks what the body of a ``Loop`` or a ``Scan`` declares of its inputs. What a body carries on has the shape of
the value that it begins with, as far as its output then has that shape again: that is assumed, the inference is run,
and what does not come out as assumed is taken back, until all does.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, ValueInfoProto

__all__ = ["infer"]

Shape = tuple["int | str | None", ...]
Scope = MutableMapping[str, "Shape | None"]
_BODIES = frozenset({"Loop", "Scan"})


@dataclass(frozen=True)
class _Carried:
    """One input of a body.

    Attributes:
        value: the input.
        given: shape of what it is at first, in the graph around, or of each piece of that; None where unknown.
        next: the output that it is in the next iteration; None for pieces.
    """

    value: ValueInfoProto
    given: Shape | None
    next: ValueInfoProto | None


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with inferred shapes; what it declares of the inputs of loops' bodies is not believed.

    Args:
        proto: without what it says of values between; changed.

    Raises:
        Exception: ONNX's inference does not take the model.
    """
    loops = False
    for body, _, _ in _bodies(proto.graph, ChainMap()):
        loops = True
        for value in body.input:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    assumed: dict[int, Shape] = {}
    seen: set[int] = set()
    while True:
        trial = proto
        if loops:
            trial = onnx.ModelProto()
            trial.CopyFrom(proto)
            for number, (each, _) in enumerate(_carried(trial)):
                if number in assumed:
                    _set(each.value, assumed[number])
        trial = onnx.shape_inference.infer_shapes(trial, data_prop=True)
        if not loops or not _corrected(trial, assumed, seen):
            return trial


def _corrected(trial: onnx.ModelProto, assumed: dict[int, Shape], seen: set[int]) -> bool:
    """Assume what was not tried yet, and take back what does not hold; whether there was any."""
    changed = False
    for number, (each, scope) in enumerate(_carried(trial)):
        old = assumed.get(number)
        new: Shape | None
        if number not in seen:
            new = each.given
            seen |= {number} if new is not None else set()
        else:
            new = _common(old, each.given)
            new = new if each.next is None else _common(new, scope.get(each.next.name))
        if new == old:
            continue
        changed = True
        if new is None:
            del assumed[number]
        else:
            assumed[number] = new
    return changed


def _carried(proto: onnx.ModelProto) -> Iterator[tuple[_Carried, Scope]]:
    """Yield the inputs of all bodies, always in the same order, with the shapes of the values in the body."""
    for body, node, scope in _bodies(proto.graph, ChainMap()):
        inside = scope.new_child()
        inside.update(_told(body))
        if node.op_type == "Loop":
            for place, name in enumerate(node.input[2:], start=2):
                yield _Carried(body.input[place], scope.get(name), body.output[place - 1]), inside
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        pieces = attributes["num_scan_inputs"].i
        count = len(node.input) - pieces
        axes = list(attributes["scan_input_axes"].ints) if "scan_input_axes" in attributes else [0] * pieces
        for place, name in enumerate(node.input):
            whole = scope.get(name)
            if place < count:
                yield _Carried(body.input[place], whole, body.output[place]), inside
            else:
                axis = axes[place - count]
                piece = None if whole is None else tuple(s for dim, s in enumerate(whole) if dim != axis % len(whole))
                yield _Carried(body.input[place], piece, None), inside


def _bodies(
    graph: GraphProto, around: ChainMap[str, Shape | None]
) -> Iterator[tuple[GraphProto, NodeProto, ChainMap[str, Shape | None]]]:
    """Yield the bodies of loops, outer ones first, each with its node and the shapes of the values around it."""
    scope = around.new_child()
    scope.update(_told(graph))
    for node in graph.node:
        for attribute in node.attribute:
            inside = [attribute.g] if attribute.type == AttributeProto.GRAPH else [*attribute.graphs]
            for body in inside:
                if node.op_type in _BODIES and node.domain in ("", "ai.onnx"):
                    yield body, node, scope
                yield from _bodies(body, scope)


def _told(graph: GraphProto) -> dict[str, Shape | None]:
    """Return the shapes of a graph's values, None where unknown: a name hides that of the graph around."""
    told: dict[str, Shape | None] = {name: None for node in graph.node for name in node.output}
    told |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        told[value.name] = told.get(value.name) or _shape(value)
    return told


def _shape(value: ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    )


def _set(value: ValueInfoProto, shape: Shape) -> None:
    told = value.type.tensor_type.shape
    told.SetInParent()
    for size in shape:
        dim = told.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def _common(one: Shape | None, other: Shape | None) -> Shape | None:
    """Return what two shapes agree on; None where not even on the number of dimensions."""
    if one is None or other is None or len(one) != len(other):
        return None
    return tuple(size if size == also else None for size, also in zip(one, other, strict=True))
