"""Read single calls of a graph as branches: convolutions, average pools, multiplications by constants."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from bnfold import ops
from bnfold.fold.merge.branches import Leaf, Pool, divisor_of
from bnfold.fold.merge.geometry import Geometry, geometry_of, sizes
from bnfold.fold.settled import shares_weights, weight_of
from bnfold.ops.interface import GraphFacts, Source, Value, WeightType
from bnfold.ops.refusal import Refusal

__all__ = ["Factor", "adds_zero", "factor_of", "leaf_of", "pool_of", "positions"]


def positions(facts: GraphFacts, value: Value) -> int | None:
    """Return how many positions of space a value has for one example, where shapes are known."""
    shapes = facts.shapes(value)
    return math.prod(shapes[0][2:]) if shapes else None


def leaf_of(
    facts: GraphFacts,
    call: ops.Convolution,
    name: str,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
) -> Leaf | Refusal:
    """Return a convolution call as a branch, or why it must stay as it is."""
    node = call.node
    if name in keep or node.name in keep:
        return Refusal("kept-by-request", "the caller asked to keep {op}", op=call)
    if facts.hooked(node):
        return Refusal("hooks", "{op} carries hooks", op=call)
    if call.uneven:
        return Refusal("uneven-padding", "{op} pads one side more than the other", op=call)
    weight = weight_of(facts, call)
    if isinstance(weight, Refusal):
        return weight
    assert weight is not None
    if not weight.is_floating_point():
        return Refusal("weight-type", "the weight of {op} is {type}", op=call, type=weight.dtype)
    if share == "keep" and shares_weights(facts, call):
        return Refusal("shared", "the weights of {op} are used elsewhere too", op=call)
    geometry = geometry_of(call, tuple(weight.shape))
    cost = geometry.macs * (positions(facts, node) or 1)
    return Leaf(call.input.name, geometry, (node.name,), node.name, cost, (name,))


def pool_of(facts: GraphFacts, call: ops.AveragePool, name: str, keep: frozenset[str]) -> Pool | Refusal:
    """Return an average pool as a branch, or why it is none."""
    channels = facts.channels(call.input, 1)
    if name in keep or call.node.name in keep:
        return Refusal("kept-by-request", "the caller asked to keep {op}", op=call)
    if facts.hooked(call.node):
        return Refusal("hooks", "{op} carries hooks", op=call)
    if channels is None:
        return Refusal("shapes-unknown", "the channels of {op} are not known without example inputs", op=call)
    geometry = _geometry_of_pool(call, channels)
    if isinstance(geometry, Refusal):
        return geometry
    divisor = divisor_of(geometry, call.divisor_override)
    return Pool(call.input.name, geometry, (call.node.name,), None, 0, (name,), divisor)


def _geometry_of_pool(call: ops.AveragePool, channels: int) -> Geometry | Refusal:
    """Return an average pool as a depthwise convolution, if it divides by the same number everywhere."""
    if call.ceil_mode:
        return Refusal("cut-windows", "{op} rounds the number of its windows up", op=call)
    if call.pads and not call.count_include_pad and call.divisor_override is None:
        return Refusal("cut-windows", "{op} divides by fewer at the border", op=call)
    dims = call.spatial_dims
    kernel = sizes(call.kernel_size, dims)
    stride = kernel if call.stride is None or call.stride == () else sizes(call.stride, dims)
    padding = tuple((side, side) for side in sizes(call.padding, dims))
    return Geometry(kernel, stride, (1,) * dims, padding, "zeros", channels, channels, channels)


def adds_zero(facts: GraphFacts, node: Value) -> bool:
    """Whether a value is ``x + 0``."""
    call = facts.call(node)
    return bool(getattr(call, "adds_zero", False))


class Factor:
    """A multiplication by constants: of ``value``, by a number or by what stands in a source, one for each channel."""

    def __init__(self, value: Value, by: float | Source) -> None:
        self.value = value
        self.by = by

    def fits(self, facts: GraphFacts, dims: int, channels: int, kind: WeightType | None, rank: int | None) -> bool:
        """Whether it is one factor for each channel, and keeps the dtype and the shape."""
        if isinstance(self.by, float):
            return True
        tensor = facts.constant(self.by)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return False
        if isinstance(self.by, str):  # of an affine along dimension 1, which is the height of an image without a batch
            return tensor.numel() == channels and rank == dims + 2
        if tensor.ndim and kind is not None and facts.weight_type(self.by) != kind:
            return False
        if tensor.ndim > dims + 1 and (rank is None or tensor.ndim > rank):
            return False  # would add a dimension
        if tensor.numel() == 1:
            return True
        shape = tuple(tensor.shape)
        return shape[-dims - 1 :] == (channels, *[1] * dims) and all(size == 1 for size in shape[: -dims - 1])


def factor_of(facts: GraphFacts, node: Value) -> Factor | None:
    """Read a value as a multiplication by constants."""
    call = facts.call(node)
    if isinstance(call, ops.ByNumber):
        return None if call.offset else Factor(call.input, float(call.factor))
    if isinstance(call, ops.Multiply):
        for value, by in ((call.left, call.right), (call.right, call.left)):
            if facts.is_constant(by) and not facts.is_constant(value):
                return Factor(value, by)
    if isinstance(call, ops.BatchNorm) and call.by_constants and call.dim == 1:
        shift = facts.constant(call.bias)
        return Factor(call.input, call.weight) if shift is None or not bool((shift != 0).any()) else None
    return None
