"""How an affine moves: the algebra that the rows of :mod:`bnfold.fold.rules` name.

Each function takes a call, the demand on its output and the facts, and returns the demands on its inputs, or a
:class:`Refusal`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.conditions import described, needs_shapes
from bnfold.fold.demand import Demand, Refusal
from bnfold.graph import calls
from bnfold.graph.facts import Facts

Moved: TypeAlias = "tuple[tuple[Node, Demand], ...] | Refusal"


def unchanged(call: Any, demand: Demand, facts: Facts) -> Moved:  # noqa: ARG001
    """The same affine, on the only input."""
    return ((call.input, demand),)


def through_pad(call: calls.Pad, demand: Demand, facts: Facts) -> Moved:
    """The same affine, where the padding leaves the channels alone."""
    refusal = pads_channels(call, demand, facts)
    return ((call.input, demand),) if refusal is None else refusal


def pads_channels(call: calls.Pad, demand: Demand, facts: Facts) -> Refusal | None:
    """A padding along the channels adds some, or shifts them."""
    if call.widths is None:
        return Refusal("shapes-unknown", f"the widths of {described(call)} are computed when it runs")
    rank = demand.rank if demand.rank is not None else facts.rank(call.node)
    dims = len(call.widths) // 2
    if rank is None:
        return needs_shapes(call)
    if rank - dims <= demand.dim:
        return Refusal("channel-dimension", f"{described(call)} pads the channels")
    return None


def through_average(call: calls.AveragePool, demand: Demand, facts: Facts) -> Moved:  # noqa: ARG001
    """``mean(a x + b) = a mean(x) + w b`` for window weights that sum to ``w``: 1, or window / divisor."""
    if call.divisor_override is None or not bool((demand.affine.shift != 0).any()):
        return ((call.input, demand),)
    weight_sum = call.window / call.divisor_override
    return ((call.input, demand.with_affine(demand.affine.with_shift(demand.affine.shift / weight_sum))),)


def through_mean(call: calls.Mean, demand: Demand, facts: Facts) -> Moved:
    """The mean of an affine is the affine of the mean; without ``keepdim`` the dimensions are renumbered."""
    rank = facts.rank(call.input)
    if rank is None:
        dims = call.dims or ()
        return ((call.input, demand),) if call.keepdim and dims else needs_shapes(call)
    reduced = sorted({dim % rank for dim in call.dims}) if call.dims is not None else list(range(rank))
    dim = demand.dim
    if not call.keepdim:
        kept = [d for d in range(rank) if d not in reduced]
        dim = kept[demand.dim]
    if dim in reduced:
        return Refusal("channel-dimension", f"{described(call)} runs over the channels")
    return ((call.input, Demand(demand.affine, dim, rank, demand.cares, demand.unsure)),)


def item_of_pool(call: calls.Item, demand: Demand, facts: Facts) -> Moved:
    """The values of a pool that returns indices, or a piece of a split."""
    source = facts.call(call.input)
    if isinstance(source, calls.MaxPool) and source.returns_indices and call.index == 0:
        return ((call.input, demand),)
    if isinstance(source, calls.Split):
        return _within(source.input, source.dim, item_window(call, source, facts), demand, facts)
    return Refusal("unknown-op", f"`{call.node.name}` takes an item of something that bnfold does not know")


def slice_of(call: calls.Slice, demand: Demand, facts: Facts) -> Moved:
    """A slice along the channels asks for the affine there, and does not care about the other channels."""
    cuts = cuts_channels(call, demand, facts)
    if isinstance(cuts, Refusal):
        return cuts
    if not cuts:
        return ((call.input, demand),)
    return _within(call.input, demand.dim, slice_window(call, facts), demand, facts)


def cuts_channels(call: calls.Slice, demand: Demand, facts: Facts) -> bool | Refusal:
    """Whether a slice takes a window of the channels; a refusal where it takes of them in another way."""
    text = f"{described(call)} takes of the channels with a step, or where is only known when it runs"
    refusal = _refused_along_channels(call.others, call, demand, facts, text)
    if refusal is not None:
        return refusal
    return False if call.dim is None else is_channel(call.dim, call, demand, facts)


def is_channel(dim: int, call: Any, demand: Demand, facts: Facts) -> bool | Refusal:
    """Whether a dimension, counted from the end if negative, is that of the demand's channels."""
    if dim >= 0:
        return dim == demand.dim
    rank = demand.rank or facts.rank(call.node)
    return needs_shapes(call) if rank is None else dim + rank == demand.dim


def rearranged(call: calls.Rearrange, demand: Demand, facts: Facts) -> Moved:
    """The same affine, where the channels stay in their places."""
    refusal = moves_channels(call, demand, facts)
    return ((call.input, demand),) if refusal is None else refusal


def moves_channels(call: calls.Rearrange, demand: Demand, facts: Facts) -> Refusal | None:
    """A flip or a roll along the channels gives them other numbers."""
    return _refused_along_channels(call.dims, call, demand, facts, f"{described(call)} moves the channels")


def _refused_along_channels(dims: Iterable[int], call: Any, demand: Demand, facts: Facts, text: str) -> Refusal | None:
    """Why a call may not do along these dimensions what it does: one is that of the channels, or may be."""
    for dim in dims:
        along = is_channel(dim, call, demand, facts)
        if along is not False:
            return along if isinstance(along, Refusal) else Refusal("channel-dimension", text)
    return None


def before_number(call: calls.ByNumber, demand: Demand, facts: Facts) -> Moved:  # noqa: ARG001
    """``a (f x + o) + b = f (a x + (a o + b - o) / f) + o``."""
    scale, shift = demand.affine.scale, demand.affine.shift
    before = (scale * call.offset + shift - call.offset) / call.factor
    return ((call.input, demand.with_affine(demand.affine.with_shift(before))),)


def slice_window(call: calls.Slice, facts: Facts) -> tuple[int, int] | Refusal:
    """Return the ``[start, stop)`` that a slice takes, as numbers in range."""
    shapes = facts.shapes(call.input)
    if not shapes:
        return needs_shapes(call)
    assert call.dim is not None
    windows = {slice(call.start, call.stop).indices(shape[call.dim % len(shape)])[:2] for shape in shapes}
    start, stop = min(windows)
    return start, max(stop, start)


def item_window(call: calls.Item, split: calls.Split, facts: Facts) -> tuple[int, int] | Refusal:
    """Return the ``[start, stop)`` of a split's dimension that one of its pieces is."""
    sizes = split_sizes(split, facts)
    if isinstance(sizes, Refusal):
        return sizes
    index = call.index % len(sizes)
    start = sum(sizes[:index])
    return start, start + sizes[index]


def split_sizes(call: calls.Split, facts: Facts) -> tuple[int, ...] | Refusal:
    """Return the sizes of a split's pieces."""
    shapes = facts.shapes(call.input)
    if not shapes:
        return needs_shapes(call)
    total = shapes[0][call.dim % len(shapes[0])]
    if isinstance(call.sizes, tuple):
        return call.sizes
    size = call.sizes if isinstance(call.sizes, int) else -(-total // int(call.chunks or 1))
    return tuple(min(size, total - start) for start in range(0, total, size))


def _within(source: Node, dim: int, window: tuple[int, int] | Refusal, demand: Demand, facts: Facts) -> Moved:
    """The demand on a value of which ``window`` of dimension ``dim`` is read."""
    if isinstance(window, Refusal):
        return window
    shapes = facts.shapes(source)
    if dim % len(shapes[0]) != demand.dim:  # cut along another dimension: the channels are all there
        return ((source, demand),)
    channels = shapes[0][demand.dim]
    affine = ChannelAffine.identity(channels)
    cares = torch.zeros(channels, dtype=torch.bool)
    window_slice = slice(*window)
    affine.scale[window_slice], affine.shift[window_slice] = demand.affine.scale, demand.affine.shift
    cares[window_slice] = True if demand.cares is None else demand.cares
    return ((source, Demand(affine, demand.dim, demand.rank, cares, demand.unsure)),)


def split_over_parts(call: calls.Concatenate, demand: Demand, facts: Facts) -> Moved:
    """Each part takes its channels; along another dimension, each part takes the whole affine."""
    rank = demand.rank or facts.rank(call.node)
    dim = call.dim if call.dim >= 0 else (None if rank is None else call.dim + rank)
    if dim is None:
        return needs_shapes(call)
    if dim != demand.dim:
        return tuple((part, demand) for part in call.parts)
    sizes = part_sizes(call, demand.dim, facts)
    if isinstance(sizes, Refusal):
        return sizes
    return tuple(zip(call.parts, demand.split(sizes), strict=True))


def part_sizes(call: calls.Concatenate, dim: int, facts: Facts) -> list[int] | Refusal:
    """Return the number of channels of each part, from the shapes or else from the layers before."""
    sizes = []
    for part in call.parts:
        size = facts.channels(part, dim)
        if size is None:
            return needs_shapes(call)
        sizes.append(size)
    return sizes


def scale_to_both(call: calls.Add, demand: Demand, facts: Facts) -> Moved:
    """``a (x ± y) + b = (a x + b) ± a y``; terms may be stretched, but not along the channels."""
    ranks = [facts.graph_rank(term) for term in (call.left, call.right)]
    rank = demand.rank or ranks[0] or ranks[1]
    if rank is None:
        return needs_shapes(call)
    stretches = Refusal("broadcast", f"{described(call)} stretches one of its terms over the channels")
    for term, known in zip((call.left, call.right), ranks, strict=True):
        channels = facts.channels(term, demand.dim)
        if channels is None:
            return needs_shapes(call)
        seen = known or facts.rank(term)
        if channels != demand.affine.channels or (seen is not None and seen != rank):
            return stretches
    demand = replace(demand, rank=rank)
    left, right = (replace(demand, unsure=demand.unsure or known is None) for known in ranks)
    if call.left is call.right:
        return Refusal("same-term-twice", f"{described(call)} adds a value to itself")
    scale_only = right.with_affine(demand.affine.with_shift(torch.zeros_like(demand.affine.shift)))
    return ((call.left, left), (call.right, scale_only))


# --- ops that renumber channels or dimensions --------------------------------------------------------------------


def before_pixel_shuffle(call: calls.PixelShuffle, demand: Demand, facts: Facts) -> Moved:
    """Output channel ``c`` reads the ``r * r`` input channels ``c r r ... c r r + r r - 1``."""
    dim = _third_last(demand, call.node, facts)
    if dim is None:
        return needs_shapes(call)
    if dim != demand.dim:
        return Refusal("channel-dimension", f"{described(call)} shuffles another dimension")
    return ((call.input, demand.picked(torch.arange(demand.affine.channels).repeat_interleave(call.factor**2))),)


def before_pixel_unshuffle(call: calls.PixelUnshuffle, demand: Demand, facts: Facts) -> Moved:
    """Output channels ``c r r ... c r r + r r - 1`` all come from input channel ``c``: they must agree."""
    if _third_last(demand, call.node, facts) != demand.dim:
        return needs_shapes(call)
    return _grouped(call, demand, call.factor**2)


def before_channel_shuffle(call: calls.ChannelShuffle, demand: Demand, facts: Facts) -> Moved:  # noqa: ARG001
    """Output channel ``i * groups + g`` is input channel ``g * (C / groups) + i``."""
    if demand.dim != 1:
        return Refusal("channel-dimension", f"{described(call)} shuffles dimension 1")
    order = torch.arange(demand.affine.channels).reshape(-1, call.groups).t().reshape(-1)
    return ((call.input, demand.picked(order)),)


def _third_last(demand: Demand, node: Node, facts: Facts) -> int | None:
    rank = demand.rank or facts.rank(node)
    return None if rank is None else rank - 3


def _grouped(call: Any, demand: Demand, repeat: int) -> Moved:
    """The demand on a value each of whose channels feeds ``repeat`` neighbouring channels of the output."""
    index = torch.arange(0, demand.affine.channels, repeat)
    if not _agrees(demand, index.repeat_interleave(repeat)):
        text = "spreads one channel over several that want different things"
        return Refusal("channels-disagree", f"{described(call)} {text}")
    return ((call.input, demand.picked(index)),)


def permuted(call: calls.Permute, demand: Demand, facts: Facts) -> Moved:
    """Output dimension ``i`` is input dimension ``order[i]``."""
    moved = across_permute(call, demand, facts, backward=True)
    return moved if isinstance(moved, Refusal) else ((call.input, moved),)


def across_permute(call: calls.Permute, demand: Demand, facts: Facts, *, backward: bool) -> Demand | Refusal:
    """Return the demand on the other side of a permutation: on its input, or forward on its output."""
    rank = demand.rank or facts.rank(call.node)
    if rank is None and any(dim < 0 for dim in call.order):
        return needs_shapes(call)
    order = [dim % rank if rank is not None else dim for dim in call.order]
    if call.swap:
        first, second = order
        dim = second if demand.dim == first else first if demand.dim == second else demand.dim
    else:
        dim = order[demand.dim] if backward else order.index(demand.dim)
    return replace(demand, dim=dim, rank=rank)


def reshaped(call: calls.Reshape, demand: Demand, facts: Facts) -> Moved:
    """Find the input dimension whose elements are the output's channels, repeated or grouped, in row-major order."""
    moved = across_reshape(call, call.node, call.input, demand, facts)
    return moved if isinstance(moved, Refusal) else ((call.input, moved),)


def across_reshape(call: calls.Reshape, here: Node, there: Node, demand: Demand, facts: Facts) -> Demand | Refusal:
    """Return the demand on ``there``, one side of a reshape, that is one on ``here``, the other side.

    The channels of ``here`` stand at stride ``inner = prod(shape[dim + 1:])`` with ``outer = prod(shape[:dim])`` of
    them before. Each dimension of ``there`` is tried: it must cut the row-major order at the same places, or at finer
    or coarser ones where the affine agrees. The answer must be the same for every batch size.
    """
    pairs = list(zip(facts.shapes(there), facts.shapes(here), strict=False))
    if not pairs:
        return needs_shapes(call)
    answers = [reshape_answer(before, after, demand) for before, after in pairs]
    first = answers[0]
    for answer in answers:
        if first is None or answer is None or answer[0] != first[0] or not torch.equal(answer[1], first[1]):
            return Refusal("channel-dimension", f"{described(call)} mixes the channels with other dimensions")
    assert first is not None
    dim, index = first
    unsure = facts.graph_rank(there) is None
    return replace(demand.picked(index), dim=dim, rank=len(pairs[0][0]), unsure=unsure)


def reshape_answer(before: tuple[int, ...], after: tuple[int, ...], demand: Demand) -> tuple[int, Tensor] | None:
    """Return the input dimension and, for each of its channels, an output channel that it holds, if there is one."""
    channels = after[demand.dim]
    if channels != demand.affine.channels or prod(before) == 0:
        return None
    outer, inner = prod(after[: demand.dim]), prod(after[demand.dim + 1 :])
    for dim, size in enumerate(before):
        outer_before, inner_before = prod(before[:dim]), prod(before[dim + 1 :])
        if (outer_before, size, inner_before) == (outer, channels, inner):
            return dim, torch.arange(channels)
    for dim, size in enumerate(before):
        outer_before, inner_before = prod(before[:dim]), prod(before[dim + 1 :])
        if outer_before == outer and size and channels % size == 0 and size * inner_before == channels * inner:
            # (outer, size, inner_before) -> (outer, size * k, inner): k neighbouring output channels share an input one
            index = torch.arange(0, channels, channels // size)
            return (dim, index) if _agrees(demand, index.repeat_interleave(channels // size)) else None
        if inner_before == inner and size and size % channels == 0 and outer_before * size == outer * channels:
            # (outer', size, inner) with size = r * channels: the channels repeat r times along the input dimension
            return dim, torch.arange(size) % channels
        if outer_before == outer and size and size % channels == 0 and size * inner_before == channels * inner:
            # each output channel holds k neighbouring input channels
            return dim, torch.arange(size) // (size // channels)
    return None


def _agrees(demand: Demand, index: Tensor) -> bool:
    affine = demand.affine
    if demand.cares is not None:  # part of a group would be left without the affine
        return False
    return torch.equal(affine.scale[index], affine.scale) and torch.equal(affine.shift[index], affine.shift)
