"""How an affine moves forward: the algebra that the push rows of :mod:`bnfold.fold.rules` name.

A value *holds* an affine when what the rest of the network should see is the affine of what the value now is. Each
function takes a call, the affines that its inputs hold and the facts, and returns the affine that its output then
holds, or a :class:`Refusal`. An input that holds nothing is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.conditions import described, needs_shapes
from bnfold.fold.demand import Demand, Refusal
from bnfold.fold.moves import (
    across_permute,
    across_reshape,
    cuts_channels,
    fixed_parts,
    item_window,
    moves_channels,
    pads_channels,
    part_sizes,
    selected_channels,
    slice_window,
)
from bnfold.graph import calls
from bnfold.graph.facts import Facts

Held: TypeAlias = "Mapping[Node, Demand]"
Carried: TypeAlias = "Demand | Refusal"


def unchanged(call: Any, held: Held, facts: Facts) -> Carried:  # noqa: ARG001
    """The output holds what the only input held."""
    return held[call.input]


def past_pad(call: calls.Pad, held: Held, facts: Facts) -> Carried:
    """The output holds what the input held, where the padding leaves the channels alone."""
    return pads_channels(call, held[call.input], facts) or held[call.input]


def past_average(call: calls.AveragePool, held: Held, facts: Facts) -> Carried:  # noqa: ARG001
    """``mean(a x + b) = a mean(x) + w b`` for window weights that sum to ``w``."""
    affine = held[call.input].affine
    if call.divisor_override is None or not bool((affine.shift != 0).any()):
        return held[call.input]
    return held[call.input].with_affine(affine.with_shift(affine.shift * (call.window / call.divisor_override)))


def past_mean(call: calls.Mean, held: Held, facts: Facts) -> Carried:
    """The mean of an affine is the affine of the mean; without ``keepdim`` the dimensions are renumbered."""
    demand = held[call.input]
    rank = demand.rank or facts.rank(call.input)
    if rank is None:
        return needs_shapes(call)
    reduced = {dim % rank for dim in call.dims} if call.dims is not None else set(range(rank))
    if demand.dim in reduced:
        return Refusal("channel-dimension", f"{described(call)} runs over the channels")
    if call.keepdim:
        return demand
    dim = demand.dim - sum(1 for d in reduced if d < demand.dim)
    return replace(demand, dim=dim, rank=rank - len(reduced))


def past_pixel_shuffle(call: calls.PixelShuffle, held: Held, facts: Facts) -> Carried:
    """Output channel ``c`` holds input channels ``c r r ... c r r + r r - 1``: they must agree."""
    demand = held[call.input]
    rank = demand.rank or facts.rank(call.input)
    if rank is None:
        return needs_shapes(call)
    repeat = call.factor**2
    index = torch.arange(0, demand.affine.channels, repeat)
    fewer = demand.picked(index)
    again = fewer.picked(torch.arange(len(index)).repeat_interleave(repeat))
    agree = torch.equal(again.affine.scale, demand.affine.scale) and torch.equal(
        again.affine.shift, demand.affine.shift
    )
    if demand.dim != rank - 3 or not agree:
        return Refusal("channels-disagree", f"{described(call)} joins channels that hold different affines")
    return fewer


def past_pixel_unshuffle(call: calls.PixelUnshuffle, held: Held, facts: Facts) -> Carried:
    """Input channel ``c`` becomes output channels ``c r r ... c r r + r r - 1``."""
    demand = held[call.input]
    rank = demand.rank or facts.rank(call.input)
    if rank is None or demand.dim != rank - 3:
        return needs_shapes(call)
    return demand.picked(torch.arange(demand.affine.channels).repeat_interleave(call.factor**2))


def past_channel_shuffle(call: calls.ChannelShuffle, held: Held, facts: Facts) -> Carried:  # noqa: ARG001
    """Output channel ``i * groups + g`` is input channel ``g * (C / groups) + i``."""
    demand = held[call.input]
    if demand.dim != 1:
        return Refusal("channel-dimension", f"{described(call)} shuffles dimension 1")
    return demand.picked(torch.arange(demand.affine.channels).reshape(call.groups, -1).t().reshape(-1))


def past_reshape(call: calls.Reshape, held: Held, facts: Facts) -> Carried:
    """The same numbers in row-major order: find the output dimension along which the affine is constant."""
    return across_reshape(call, call.input, call.node, held[call.input], facts)


def past_permute(call: calls.Permute, held: Held, facts: Facts) -> Carried:
    """Output dimension ``i`` is input dimension ``order[i]``."""
    return across_permute(call, held[call.input], facts, backward=False)


def past_concatenate(call: calls.Concatenate, held: Held, facts: Facts) -> Carried:
    """Each part brings its own affine, or the identity; along another dimension all must bring the same."""
    held = {part: held[part] for part in call.parts if part in held}  # not what other values hold
    some = next(iter(held.values()))
    rank = some.rank or facts.rank(call.node)
    dim = call.dim if call.dim >= 0 else (None if rank is None else call.dim + rank)
    if dim is None:
        return needs_shapes(call)
    if any(part.dim != some.dim for part in held.values()):
        return Refusal("channel-dimension", f"{described(call)} joins affines along different dimensions")
    if dim != some.dim:
        same = len(set(call.parts)) == len(held) and all(
            torch.equal(part.affine.scale, some.affine.scale) and torch.equal(part.affine.shift, some.affine.shift)
            for part in held.values()
        )
        return some if same else Refusal("parts-disagree", f"{described(call)} joins parts that hold different affines")
    sizes = part_sizes(call, dim, facts)
    if isinstance(sizes, Refusal):
        return sizes
    parts = [
        held[part].affine if part in held else ChannelAffine.identity(size)
        for part, size in zip(call.parts, sizes, strict=True)
    ]
    affine = ChannelAffine(torch.cat([part.scale for part in parts]), torch.cat([part.shift for part in parts]))
    unsure = any(part.unsure for part in held.values())
    loose = fixed_parts(call, some, facts).count(False)  # one at most: what reads the sum tells how large it is
    if loose > 1:
        return Refusal("channel-dimension", f"{described(call)} joins parts whose sizes depend on the input's")
    return Demand(affine, dim, rank, unsure=unsure, fixed=not loose and all(part.fixed for part in held.values()))


def past_sum(call: calls.Add, held: Held, facts: Facts) -> Carried:
    """``(a x + b) ± (a y + c) = a (x ± y) + (b ± c)``: both terms must hold the same scale."""
    left, right = held.get(call.left), held.get(call.right)
    if left is None or right is None:
        return Refusal("term-without-affine", f"{described(call)} adds a term that holds no affine")
    same = left.dim == right.dim and left.rank == right.rank and torch.equal(left.affine.scale, right.affine.scale)
    if not same or facts.channels(call.left, left.dim) != facts.channels(call.right, right.dim):
        return Refusal("terms-disagree", f"{described(call)} adds terms that hold different scales")
    return left.with_affine(left.affine.with_shift(left.affine.shift + call.sign * right.affine.shift))


def past_slice(call: calls.Slice, held: Held, facts: Facts) -> Carried:
    """The channels taken bring their affine along."""
    demand = held[call.input]
    cuts = cuts_channels(call, demand, facts)
    if isinstance(cuts, Refusal):
        return cuts
    return _windowed(call.input, slice_window(call, facts), held, demand.dim, facts) if cuts else demand


def past_select(call: calls.Select, held: Held, facts: Facts) -> Carried:
    """Output channel ``i`` brings the affine of input channel ``index[i]``."""
    demand = held[call.input]
    index = selected_channels(call, demand, facts)
    if index is None or isinstance(index, Refusal):
        return demand if index is None else index
    return _sized_by_example(call, demand) or demand.picked(index)


def _sized_by_example(call: calls.Call, demand: Demand) -> Refusal | None:
    """Which channels a piece holds is not known where only the example inputs tell how many there are in all."""
    if demand.fixed:
        return None
    return Refusal("channel-dimension", f"{described(call)} takes of channels whose number depends on the input's size")


def past_rearrange(call: calls.Rearrange, held: Held, facts: Facts) -> Carried:
    """The output holds what the input held, where the channels stay in their places."""
    return moves_channels(call, held[call.input], facts) or held[call.input]


def past_number(call: calls.ByNumber, held: Held, facts: Facts) -> Carried:  # noqa: ARG001
    """``f (a x + b) + o = a (f x + o) + (f b + o - a o)``."""
    demand = held[call.input]
    scale, shift = demand.affine.scale, demand.affine.shift
    return demand.with_affine(demand.affine.with_shift(call.factor * shift + call.offset - scale * call.offset))


def past_item(call: calls.Item, held: Held, facts: Facts) -> Carried:
    """The values of a pool that returns indices, or a piece of a split."""
    source = facts.call(call.input)
    if isinstance(source, calls.Split):
        return _windowed(source.input, item_window(call, source, facts), held, source.dim, facts)
    if isinstance(source, calls.MaxPool) and source.returns_indices and call.index == 0 and call.input in held:
        return held[call.input]
    return Refusal("unknown-op", f"`{call.node.name}` takes an item of something that bnfold does not know")


def _windowed(source: Node, window: tuple[int, int] | Refusal, held: Held, dim: int, facts: Facts) -> Carried:
    if isinstance(window, Refusal):
        return window
    demand = held[source]
    rank = len(facts.shapes(source)[0])
    if dim % rank != demand.dim:
        return demand
    if not demand.fixed:
        return Refusal("channel-dimension", "a piece is taken of channels whose number depends on the input's size")
    return demand.picked(torch.arange(*window))
