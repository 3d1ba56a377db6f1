"""Operators that work element by element, sums and concatenations; affines by constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
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
    if held == [True, True]:
        return None
    if any(held):
        found = _by_constant(kind, node, a, held.index(True))
        if found is not None or kind not in ("Add", "Sub"):
            return found
    left, right = a.value(0), a.value(1)
    if kind in ("Add", "Sub"):
        return ops.Add(node, left, right, 1 if kind == "Add" else -1)
    return ops.Multiply(node, left, right) if kind == "Mul" and left is not right else None


def _by_constant(kind: str, node: OnnxValue, a: NodeArguments, place: int) -> ops.Operation | None:
    """An affine by a constant: one number, or one for each channel."""
    shape, other = a.shape(place), 1 - place
    rank = a.rank(other)
    if len(shape) > rank or (kind == "Div" and place == 0) or a.numbers(place).dtype.kind in "iub":
        return None
    if math.prod(shape) == 1:
        (number,) = np.asarray(a.numbers(place), dtype=np.float64).reshape(-1).tolist()
        if not math.isfinite(number) or (number == 0 and kind in ("Mul", "Div")):
            return None
        factor, offset = _line(kind, place, number)
        return ops.ByNumber(node, a.value(other), factor, offset)
    dims = [dim + rank - len(shape) for dim, size in enumerate(shape) if size != 1]
    if len(dims) != 1 or dims[0] == 0 or 0 in shape:
        return None
    (dim,) = dims
    channels = math.prod(shape)
    if a.facts.channels(a.value(other), dim) != channels:
        return None  # it may be stretched
    numbers = np.asarray(a.numbers(place), dtype=np.float64).reshape(-1)
    if not bool(np.isfinite(numbers).all()) or (kind == "Div" and bool((numbers == 0).any())):
        return None
    zero, one = np.zeros(channels), np.ones(channels)
    scale, shift = {
        "Add": (one, numbers),
        "Sub": (one, -numbers) if place == 1 else (-one, numbers),
        "Mul": (numbers, zero),
        "Div": (1 / numbers, zero),
    }[kind]
    facts = a.facts
    mean, variance, weight, bias = (
        facts.made(node, name, values)
        for name, values in (("mean", zero), ("variance", one), ("scale", scale), ("shift", shift))
    )
    return ops.BatchNorm(
        node,
        a.value(other),
        mean,
        variance,
        weight,
        bias,
        0.0,
        False,
        facts.name(node),
        dim=dim,
        by_constants=True,
    )


def _line(kind: str, place: int, number: float) -> tuple[float, float]:
    """Return factor and offset."""
    if kind == "Add":
        return 1.0, number
    if kind == "Sub":
        return (1.0, -number) if place == 1 else (-1.0, number)
    return (number if kind == "Mul" else 1 / number), 0.0


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
