"""Read single calls of a graph as branches: convolutions, average pools, multiplications by constants."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from bnfold.fold.conditions import described
from bnfold.fold.demand import Refusal
from bnfold.fold.merge.branches import Leaf, Pool, divisor_of
from bnfold.fold.merge.geometry import geometry_of, geometry_of_pool
from bnfold.fold.state import shares_weights, weight_of
from bnfold.graph import calls
from bnfold.graph.facts import Facts
from bnfold.graph.inplace import IN_PLACE

__all__ = ["Factor", "adds_zero", "factor_of", "leaf_of", "pool_of", "positions"]

_PRODUCTS: frozenset[Any] = frozenset(
    (
        operator.mul,
        torch.mul,
        torch.multiply,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.mul.Scalar,
        torch.ops.aten.mul_.Tensor,
        IN_PLACE["__imul__"],
        "mul",
        "mul_",
        "multiply",
    )
)
_QUOTIENTS: frozenset[Any] = frozenset(
    (
        operator.truediv,
        torch.div,
        torch.true_divide,
        torch.ops.aten.div.Tensor,
        torch.ops.aten.div.Scalar,
        IN_PLACE["__itruediv__"],
        "div",
        "div_",
    )
)
_NEGATIONS: frozenset[Any] = frozenset((operator.neg, torch.neg, torch.negative, torch.ops.aten.neg.default, "neg"))


def positions(facts: Facts, value: Node) -> int | None:
    """Return how many positions of space a value has for one example, where shapes are known."""
    shapes = facts.shapes(value)
    return math.prod(shapes[0][2:]) if shapes else None


def leaf_of(
    facts: Facts,
    call: calls.Convolution,
    name: str,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
) -> Leaf | Refusal:
    """Return a convolution call as a branch, or why it must stay as it is."""
    node = call.node
    if name in keep or node.name in keep:
        return Refusal("kept-by-request", f"the caller asked to keep {described(call)}")
    if facts.hooked(node):
        return Refusal("hooks", f"{described(call)} carries hooks")
    weight = weight_of(facts, call)
    if isinstance(weight, Refusal):
        return weight
    assert weight is not None
    if not weight.is_floating_point():
        return Refusal("weight-type", f"the weight of {described(call)} is {weight.dtype}")
    if share == "keep" and shares_weights(facts, call):
        return Refusal("shared", f"the weights of {described(call)} are used elsewhere too")
    geometry = geometry_of(call, tuple(weight.shape))
    cost = geometry.macs * (positions(facts, node) or 1)
    return Leaf(call.input.name, geometry, (node.name,), node.name, cost, (name,))


def pool_of(facts: Facts, call: calls.AveragePool, name: str, keep: frozenset[str]) -> Pool | Refusal:
    """Return an average pool as a branch, or why it is none."""
    channels = facts.channels(call.input, 1)
    if name in keep or call.node.name in keep:
        return Refusal("kept-by-request", f"the caller asked to keep {described(call)}")
    if facts.hooked(call.node):
        return Refusal("hooks", f"{described(call)} carries hooks")
    if channels is None:
        return Refusal("shapes-unknown", f"the channels of {described(call)} are not known without example inputs")
    geometry = geometry_of_pool(call, channels)
    if isinstance(geometry, Refusal):
        return Refusal(geometry.reason, f"{described(call)} {geometry.detail}")
    divisor = divisor_of(geometry, call.divisor_override)
    return Pool(call.input.name, geometry, (call.node.name,), None, 0, (name,), divisor)


def adds_zero(node: Node) -> bool:
    """Whether a node is ``x + 0``, as ``sum([...])`` and some training forms write it."""
    return len(node.args) == 2 and any(type(value) is int and value == 0 for value in node.args)


class Factor:
    """A multiplication by constants: of ``value``, by a number or by what the node ``by`` computes."""

    def __init__(self, value: Node, by: float | Node) -> None:
        self.value = value
        self.by = by

    def fits(self, facts: Facts, dims: int, channels: int, dtype: torch.dtype, rank: int | None) -> bool:
        """Whether it is one factor for each channel, and keeps the dtype and the shape."""
        if not isinstance(self.by, Node):
            return True
        tensor = facts.constant(self.by)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return False
        if tensor.ndim and tensor.dtype != dtype:
            return False
        if tensor.ndim > dims + 1 and (rank is None or tensor.ndim > rank):
            return False  # would add a dimension
        if tensor.numel() == 1:
            return True
        shape = tuple(tensor.shape)
        return shape[-dims - 1 :] == (channels, *[1] * dims) and all(size == 1 for size in shape[: -dims - 1])


def factor_of(facts: Facts, node: Node) -> Factor | None:
    """Read a node as a multiplication by constants."""
    call = facts.call(node)
    if isinstance(call, calls.ByNumber):
        return None if call.offset else Factor(call.input, call.factor)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _NEGATIONS and len(node.args) == 1 and isinstance(node.args[0], Node):
        return Factor(node.args[0], -1.0)
    product = node.target in _PRODUCTS
    if not (product or node.target in _QUOTIENTS) or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if isinstance(left, Node) and _is_number(right):
        number = float(right)  # type: ignore[arg-type]
        return Factor(left, number if product else 1 / number) if number or product else None
    if not product:
        return None
    if isinstance(right, Node) and _is_number(left):
        return Factor(right, float(left))  # type: ignore[arg-type]
    if isinstance(left, Node) and isinstance(right, Node):
        if facts.is_constant(right) and not facts.is_constant(left):
            return Factor(left, right)
        if facts.is_constant(left) and not facts.is_constant(right):
            return Factor(right, left)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
