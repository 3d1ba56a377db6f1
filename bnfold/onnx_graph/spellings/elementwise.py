"""Operators that work element by element, sums and concatenations; affines by constants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.constants import tensor_of
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.spelling import NotStaticError

__all__ = ["READERS"]


def _passing(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    return ops.Passing(node, a.value())


def _homogeneous(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    return ops.PositivelyHomogeneous(node, a.value())


def _prelu(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if len(a.shape(1)) > a.rank():
        return None
    return ops.PositivelyHomogeneous(node, a.value())


def _dropout(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    a.only_first()
    if a.version >= 12 and a.has(2) and bool(a.numbers(2).reshape(-1)[0]):
        return ops.ActiveDropout(node, a.value())
    return ops.Passing(node, a.value())


def _cast(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """One that changes nothing."""
    same = a.at(0).dtype is not None and a.at(0).dtype == a.integer("to", 0)
    return ops.Passing(node, a.value()) if same else None


def _negate(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    return ops.ByNumber(node, a.value(), -1.0, 0.0)


# --- arithmetic --------------------------------------------------------------------------------------------------


def _arithmetic(kind: str, node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """``x + y``, ``x - y``, ``x * y``, ``x / y``; an affine where one of them is a constant."""
    held = [a.is_constant(0), a.is_constant(1)]
    left, right = a.value(0), a.value(1)
    if held == [True, True] or (kind == "Mul" and left is right):
        return None
    call: ops.Add | ops.Multiply | ops.Divide
    if kind in ("Add", "Sub"):
        call = ops.Add(node, left, right, 1 if kind == "Add" else -1)
    else:
        call = (ops.Multiply if kind == "Mul" else ops.Divide)(node, left, right)
    if not any(held):
        return call
    place = held.index(True)

    def numbers() -> Tensor | None:
        found = a.numbers(place)
        return None if found.dtype.kind in "iub" else tensor_of(found)

    rank, name = a.rank(1 - place), a.facts.name(node)
    return ops.by_constants(call, place, a.shape(place), numbers, a.facts, name=name, rank=rank) or call


def _sum(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if len(a.node.inputs) == 1:
        return ops.Passing(node, a.value())
    return ops.Add(node, a.value(0), a.value(1), 1) if len(a.node.inputs) == 2 else None


def _concatenate(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if a.attribute("axis") is None:
        return None
    rank, axis = a.rank(), a.integer("axis", 0)
    if not -rank <= axis < rank:
        raise NotStaticError("an axis that is none")
    return ops.Concatenate(node, tuple(a.value(place) for place in range(len(a.node.inputs))), axis % rank)


READERS: dict[str, Callable[[OnnxValue, NodeArguments], ops.Operation | None]] = {
    "Add": partial(_arithmetic, "Add"),
    "Cast": _cast,
    "Concat": _concatenate,
    "Div": partial(_arithmetic, "Div"),
    "Dropout": _dropout,
    "Identity": _passing,
    "LeakyRelu": _homogeneous,
    "Mul": partial(_arithmetic, "Mul"),
    "Neg": _negate,
    "PRelu": _prelu,
    "Relu": _homogeneous,
    "Sub": partial(_arithmetic, "Sub"),
    "Sum": _sum,
}
