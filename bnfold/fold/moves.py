"""How an affine moves: the algebra that the rows of :mod:`bnfold.fold.rules` name.

Each function takes a call, the demand on its output and the facts, and returns the demands on its inputs, or a
:class:`Refusal`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.conditions import described, needs_shapes
from bnfold.fold.demand import Demand, Refusal
from bnfold.fold.reshape import recast
from bnfold.graph import calls
from bnfold.graph.facts import Facts
from bnfold.graph.sizes import number

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
    return ((call.input, replace(demand, dim=dim, rank=rank)),)


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
    return ((source, replace(demand, affine=affine, cares=cares, fixed=has_fixed_size(source, demand.dim, facts))),)


def has_fixed_size(value: Node, dim: int, facts: Facts) -> bool:
    """Whether the graph tells the size of a dimension, whatever the size of the model's input."""
    sizes = facts.sizes(value)
    return sizes is not None and sizes[dim].number is not None


def selected(call: calls.Select, demand: Demand, facts: Facts) -> Moved:
    """Output channel ``i`` is input channel ``index[i]``; one that is taken twice must be asked for the same twice."""
    index = selected_channels(call, demand, facts)
    if index is None or isinstance(index, Refusal):
        return index if isinstance(index, Refusal) else ((call.input, demand),)
    channels = facts.shapes(call.input)[0][demand.dim]
    affine = ChannelAffine.identity(channels)
    cares = torch.zeros(channels, dtype=torch.bool)
    asked = torch.ones(len(index), dtype=torch.bool) if demand.cares is None else demand.cares
    affine.scale[index[asked]], affine.shift[index[asked]] = demand.affine.scale[asked], demand.affine.shift[asked]
    cares[index[asked]] = True
    same = torch.equal(affine.scale[index[asked]], demand.affine.scale[asked]) and torch.equal(
        affine.shift[index[asked]], demand.affine.shift[asked]
    )
    if not same:
        text = f"{described(call)} takes a channel several times, and its copies want different things"
        return Refusal("channels-disagree", text)
    below = replace(demand, affine=affine, cares=None if bool(cares.all()) else cares)
    return ((call.input, replace(below, fixed=has_fixed_size(call.input, demand.dim, facts))),)


def selected_channels(call: calls.Select, demand: Demand, facts: Facts) -> Tensor | Refusal | None:
    """Return the numbers of the channels that a selection takes; None where it takes all of each channel.

    Numbers that are only known when the model runs, that are written to, or that are out of range are refused: then the
    model decides, or fails, and no weights can know.
    """
    along = is_channel(call.dim, call, demand, facts)
    if isinstance(along, Refusal):
        return along
    if not along:
        if isinstance(call.index, tuple) or [len(shape) for shape in facts.shapes(call.index)[:1]] == [1]:
            return None
        return Refusal("unknown-op", f"{described(call)} may change the number of dimensions")
    index = _constant_index(call, facts)
    if isinstance(index, Refusal):
        return index
    shapes = facts.shapes(call.input)
    if not shapes:
        return needs_shapes(call)
    channels = shapes[0][demand.dim]
    if index.numel() and not (-channels if call.wraps else 0) <= int(index.min()) <= int(index.max()) < channels:
        return Refusal("index-out-of-range", f"{described(call)} takes channels that its input, of {channels}, has not")
    return index % channels


def _constant_index(call: calls.Select, facts: Facts) -> Tensor | Refusal:
    """The numbers by which a selection selects, as they stand there."""
    if isinstance(call.index, tuple):
        return torch.tensor(call.index, dtype=torch.int64)
    if not facts.is_constant(call.index):
        return Refusal("computed-index", f"the channels that {described(call)} takes are only known when it runs")
    if facts.memory.may_be_written(call.index):
        return Refusal("mutated", f"the channels that {described(call)} takes are written to when the model runs")
    index = facts.constant(call.index)
    if index is None or index.dtype not in (torch.int64, torch.int32) or index.ndim != 1:
        kind = "" if index is None else f" of {index.dtype} in {index.ndim} dimensions"
        return Refusal("unknown-op", f"{described(call)} takes channels by something else than a list of numbers{kind}")
    return index.to(device="cpu", dtype=torch.int64)


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
    fixed = fixed_parts(call, demand, facts)
    split = (replace(part, fixed=sure) for part, sure in zip(demand.split(sizes), fixed, strict=True))
    return tuple(zip(call.parts, split, strict=True))


def fixed_parts(call: calls.Concatenate, demand: Demand, facts: Facts) -> list[bool]:
    """For each part, whether its size is the same in every run: it tells itself, or all others and the sum do."""
    told = [has_fixed_size(part, demand.dim, facts) for part in call.parts]
    return [sure or (demand.fixed and sum(told) == len(told) - 1) for sure in told]


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
    if demand.spread:
        return _permuted_spread(demand, order, swap=call.swap, backward=backward)
    return replace(demand, dim=dim, rank=rank)


def _permuted_spread(demand: Demand, order: list[int], *, swap: bool, backward: bool) -> Demand:
    """The demand where channels that run along several dimensions find these in other places."""
    if swap:
        first, second = order
        order = list(range(max(first, second, *(dim for dim, _ in demand.spread)) + 1))
        order[first], order[second] = second, first
    moved = [order[dim] if backward else order.index(dim) for dim, _ in demand.spread]
    axes = sorted(range(len(moved)), key=moved.__getitem__)
    index = torch.arange(demand.affine.channels).reshape([size for _, size in demand.spread]).permute(axes).reshape(-1)
    spread = tuple((moved[axis], demand.spread[axis][1]) for axis in axes)
    return replace(demand.picked(index), dim=spread[0][0], spread=spread)


def reshaped(call: calls.Reshape, demand: Demand, facts: Facts) -> Moved:
    """Find the dimensions along which the output's channels run before the reshape (:mod:`bnfold.fold.reshape`)."""
    moved = across_reshape(call, call.node, call.input, demand, facts)
    return moved if isinstance(moved, Refusal) else ((call.input, moved),)


def across_reshape(call: calls.Reshape, here: Node, there: Node, demand: Demand, facts: Facts) -> Demand | Refusal:
    """Return the demand on ``there``, one side of a reshape, that is one on ``here``, the other side."""
    shapes = facts.shapes(there)
    if not shapes or not facts.shapes(here):
        return needs_shapes(call)
    moved = recast(demand, facts.sizes(here), facts.sizes(there), shapes[0])
    if moved is None:
        if all(_recast_as_seen(demand, *pair) for pair in zip(facts.shapes(here), shapes, strict=False)):
            text = "keeps the channels apart at the example's size, and may mix them at another"
            return Refusal("depends-on-size", f"{described(call)} {text}")
        return Refusal("channel-dimension", f"{described(call)} mixes the channels with other dimensions")
    return replace(moved, rank=len(shapes[0]), unsure=facts.graph_rank(there) is None)


def _recast_as_seen(demand: Demand, here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether the demand passes a reshape from and to the sizes of one run, on to a single dimension."""
    if 0 in (*here, *there):
        return False
    moved = recast(demand, [number(size) for size in here], [number(size) for size in there], there)
    return moved is not None and not moved.spread


def _agrees(demand: Demand, index: Tensor) -> bool:
    affine = demand.affine
    if demand.cares is not None:  # part of a group would be left without the affine
        return False
    return torch.equal(affine.scale[index], affine.scale) and torch.equal(affine.shift[index], affine.shift)
