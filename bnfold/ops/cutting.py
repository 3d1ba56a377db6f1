"""Operations that take a part of a value: slices, selections by numbers, pieces of a split."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnfold.ops.arranging import Arranging
from bnfold.ops.conditions import apart_from_channels, is_channel, needs_shapes
from bnfold.ops.elementwise import identity
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import STOPS, Dims, Operation
from bnfold.ops.refusal import Refusal
from bnfold.ops.renumbering import Correspondence, Side, renumbers
from bnfold.ops.spelling import Arguments, Signature, Spellings
from bnfold.ops.symbolic import Shape, Sight, number, with_size

__all__ = ["SPELLINGS", "Item", "Select", "Slice", "Split"]


def channels_cut(call: Slice, form: ChannelForm, facts: GraphFacts, _here: Side) -> Correspondence | Refusal | None:
    """Output channel ``i`` is input channel ``start + i``; nobody asks for the others."""
    text = "{op} slices the channels with a step, or at a position known only at run time"
    refusal = apart_from_channels(call.others, call, form, facts, text)
    along = False if call.dim is None else is_channel(call.dim, call, form, facts)
    if refusal is not None or isinstance(along, Refusal) or not along:
        return refusal or (along if isinstance(along, Refusal) else None)
    shapes = facts.shapes(call.input)
    if not shapes:
        return needs_shapes(call)
    assert call.dim is not None
    windows = {slice(call.start, call.stop).indices(shape[call.dim % len(shape)])[:2] for shape in shapes}
    start, stop = min(windows)
    return _window(form, shapes[0], (start, max(stop, start)))


def _window(form: ChannelForm, shape: tuple[int, ...], window: tuple[int, int]) -> Correspondence:
    return Correspondence(torch.arange(*window, device="cpu"), shape[form.dim], partial=True)


@dataclass(frozen=True, eq=False)
class Slice(Arranging):
    """``[start, stop)`` of dimension ``dim``, step 1; ``stop`` None for the end, both possibly negative.

    Attributes:
        dim: as written, possibly negative; None where no dimension is cut like that.
        others: dimensions cut in other ways: with a step, from or to where is only known when it runs, or too.
    """

    words = "slice"
    takes_part = True
    strides = True
    keeps_rank = True
    rule = renumbers("only the channels read take the affine", channels_cut)

    dim: int | None
    start: int
    stop: int | None
    others: tuple[int, ...] = ()

    def sizes(self, before: Shape, sight: Sight) -> Shape:
        """Of what is cut, the size is known where the whole was."""
        found = list(before)
        for dim in self.others:
            found[dim] = sight.fresh[dim]
        if self.dim is not None:
            whole = before[self.dim].number
            start, stop, _ = slice(self.start, self.stop).indices(whole or 0)
            found[self.dim] = sight.fresh[self.dim] if whole is None else number(stop - start)
        return tuple(found)


def channels_taken(call: Select, form: ChannelForm, facts: GraphFacts, _here: Side) -> Correspondence | Refusal | None:
    """Output channel ``i`` is input channel ``index[i]``; one that is taken twice must be asked for the same twice.

    Numbers that are only known when the model runs, that are written to, or that are out of range are refused: then the
    model decides, or fails, and no weights can know.
    """
    along = is_channel(call.dim, call, form, facts)
    if isinstance(along, Refusal):
        return along
    if not along:
        if isinstance(call.index, tuple) or [len(shape) for shape in facts.shapes(call.index)[:1]] == [1]:
            return None
        return Refusal("unknown-op", "{op} may change the number of dimensions", op=call)
    index = _constant_index(call, facts)
    if isinstance(index, Refusal):
        return index
    shapes = facts.shapes(call.input)
    if not shapes:
        return needs_shapes(call)
    channels = shapes[0][form.dim]
    if index.numel() and not (-channels if call.wraps else 0) <= int(index.min()) <= int(index.max()) < channels:
        text = "{op} takes channels that its input, of {number}, has not"
        return Refusal("index-out-of-range", text, op=call, number=channels)
    return Correspondence(index % channels, channels, partial=True)


def _constant_index(call: Select, facts: GraphFacts) -> Tensor | Refusal:
    """The numbers by which a selection selects, as they stand there."""
    if isinstance(call.index, tuple):
        return torch.tensor(call.index, dtype=torch.int64, device="cpu")
    if not facts.is_constant(call.index):
        return Refusal("computed-index", "the channels that {op} takes are only known when it runs", op=call)
    if facts.may_be_written(call.index):
        return Refusal("mutated", "the channels that {op} takes are written to when the model runs", op=call)
    index = facts.constant(call.index)
    if index is None or index.dtype not in (torch.int64, torch.int32) or index.ndim != 1:
        kind = "" if index is None else f" of {index.dtype} in {index.ndim} dimensions"
        text = "{op} takes channels by something else than a list of numbers{kind}"
        return Refusal("unknown-op", text, op=call, kind=kind)
    return index.to(device="cpu", dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Select(Arranging):
    """Entries of dimension ``dim`` by their numbers: ``index_select``, ``x[:, index]``.

    Attributes:
        dim: as written, possibly negative.
        index: the numbers, or the value that computes them.
        wraps: whether negative numbers count from the end; else they are an error.
    """

    words = "selection"
    takes_part = True
    memory = "fresh"
    rule = renumbers("only the channels taken, in the order of their numbers", channels_taken)

    dim: int
    index: Value | tuple[int, ...]
    wraps: bool

    def sizes(self, before: Shape, sight: Sight) -> Shape:
        """As many entries as numbers, where these are constant."""
        dim, facts = self.dim % len(before), sight.facts
        known = isinstance(self.index, tuple) or facts.is_constant(self.index)
        return with_size(before, dim, number(facts.shapes(self.node)[0][dim]) if known else sight.fresh[dim])


@dataclass(frozen=True, eq=False)
class Split(Arranging):
    """A split along ``dim``, whose pieces are taken by :class:`Item`; ``pieces`` int for ``split``, or a tuple."""

    words = "split"
    rule = STOPS  # its items pass

    dim: int
    pieces: Dims | None
    chunks: int | None

    def piece_sizes(self, facts: GraphFacts) -> tuple[int, ...] | None:
        """Return the sizes of the pieces; None where shapes are not known."""
        if isinstance(self.pieces, tuple):
            return self.pieces
        shapes = facts.shapes(self.input)
        if not shapes:
            return None
        total = shapes[0][self.dim % len(shapes[0])]
        size = self.pieces if isinstance(self.pieces, int) else -(-total // int(self.chunks or 1))
        return tuple(min(size, total - start) for start in range(0, total, size))

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """It is no tensor."""
        return


def piece_taken(call: Item, form: ChannelForm, facts: GraphFacts, _here: Side) -> Correspondence | Refusal | None:
    """The values of a pool that returns indices; or a piece of a split: output channel ``i`` is ``start + i``."""
    source = facts.call(call.input)
    if source is not None and source.result == call.index:
        return None
    if not isinstance(source, Split):
        text = "`{value}` takes an item of something that bnfold does not know"
        return Refusal("unknown-op", text, value=call.node)
    shapes = facts.shapes(source.input)
    if not shapes:
        return needs_shapes(source)
    sizes = source.piece_sizes(facts)
    assert sizes is not None
    if source.dim % len(shapes[0]) != form.dim:  # cut along another dimension: the channels are all there
        return None
    index = call.index % len(sizes)
    start = sum(sizes[:index])
    return _window(form, shapes[0], (start, start + sizes[index]))


@dataclass(frozen=True, eq=False)
class Item(Arranging):
    """``source[index]`` of a call that returns several values."""

    words = "item"
    takes_part = True
    strides = True
    rule = renumbers("only the channels read take the affine", piece_taken)

    index: int

    def passes_from(self, facts: GraphFacts) -> Value:
        """Return what is split, for a piece of a split."""
        source = facts.call(self.input)
        return source.input if isinstance(source, Split) else self.input

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """A piece is as large as the whole, but along the dimension that is split."""
        source = sight.facts.call(self.input)
        if isinstance(source, Split):
            whole = sight.known[source.input]
            dim = source.dim % len(whole)
            known = whole[dim].number is not None or isinstance(source.pieces, tuple)
            taken = sight.facts.shapes(self.node)[0][dim]
            return with_size(whole, dim, number(taken) if known else sight.fresh[dim])
        if source is not None and source.result is not None:
            return source.sizes(sight.known[source.inputs[0]], sight)
        return before[1:]


# --- reading -----------------------------------------------------------------------------------------------------


def _getitem(node: Value, a: Arguments) -> Operation | None:
    source, index = a.value(), a.get("index")
    if isinstance(index, int):
        return Item(node, source, index)
    parts = index if isinstance(index, tuple) else (index,)
    cuts: list[tuple[int, slice]] = []
    dim = 0
    for position, part in enumerate(parts):
        if part is Ellipsis:
            dim = position + 1 - len(parts)  # from here on, counted from the end
            continue
        if (a.is_value(part) or isinstance(part, list)) and isinstance(index, tuple):  # `x[mask]` may run over all
            rest = [other for other in parts if other is not part]
            whole = all(other is Ellipsis or (isinstance(other, slice) and _is_whole(other, a)) for other in rest)
            return _selected(node, source, dim, part, a, wraps=True) if whole else None
        if not isinstance(part, slice):
            return None
        if not _is_whole(part, a):
            cuts.append((dim, part))
        dim += 1
    return _cut(node, source, cuts, a)


_WHOLE = {(start, None, step) for start in (None, 0) for step in (None, 1)}


def _is_whole(cut: slice, a: Arguments) -> bool:
    return not _computed(cut, a) and (cut.start, cut.stop, cut.step) in _WHOLE


def _computed(cut: slice, a: Arguments) -> bool:
    return a.is_value(cut.start) or a.is_value(cut.stop)


def _selected(node: Value, source: Value, dim: int, index: Any, a: Arguments, *, wraps: bool) -> Operation | None:
    if not a.is_value(index):
        index = a.plain(index)
        if not isinstance(index, tuple) or not all(type(entry) is int for entry in index):
            return None
    return Select(node, source, dim, index, wraps)


def _index_select(node: Value, a: Arguments) -> Operation | None:
    return _selected(node, a.value(), a.static("dim"), a.get("index"), a, wraps=False)


def _aten_index(node: Value, a: Arguments) -> Operation | None:
    """``aten.index.Tensor(x, [None, index])``: along the dimension of the only index."""
    given = [(dim, index) for dim, index in enumerate(a.get("indices")) if index is not None]
    if len(given) != 1:
        return None
    ((dim, index),) = given
    return _selected(node, a.value(), dim, index, a, wraps=True)


def _cut(node: Value, source: Value, cuts: list[tuple[int, slice]], a: Arguments) -> Operation:
    """A slice along some dimensions: one of them, dimension 1 if it can be, as numbers; of the others, the names."""
    if not cuts:
        return identity(node, source)
    plain = [(dim != 1, dim, cut) for dim, cut in cuts if cut.step in (None, 1) and not _computed(cut, a)]
    if not plain:
        return Slice(node, source, None, 0, None, tuple(dim for dim, _ in cuts))
    _, dim, cut = min(plain, key=lambda entry: entry[:2])
    return Slice(node, source, dim, cut.start or 0, cut.stop, tuple(other for other, _ in cuts if other != dim))


def _narrow(node: Value, a: Arguments) -> Operation | None:
    start, length = a.static("start"), a.static("length")
    if start < 0 <= start + length:
        return None
    return Slice(node, a.value(), a.static("dim"), start, start + length)


def _aten_slice(node: Value, a: Arguments) -> Operation | None:
    end = a.get("end")
    cut = slice(a.get("start"), None if isinstance(end, int) and end >= 2**31 else end, a.get("step"))
    return _cut(node, a.value(), [] if _is_whole(cut, a) else [(a.static("dim"), cut)], a)


def _split(node: Value, a: Arguments) -> Operation:
    return Split(node, a.value(), a.static("dim"), a.static("size"), a.static("chunks"))


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_NARROW = Signature("input, dim, start, length")
_SELECT = Signature("input, dim, index")
_SPLIT, _CHUNK = Signature("input, size, dim=0"), Signature("input, chunks, dim=0")
_SLICE = Signature("input, dim=0, start=None, end=None, step=1")

SPELLINGS.function(Signature("input, index"), _getitem, operator.getitem)
SPELLINGS.function(_NARROW, _narrow, torch.narrow, aten.narrow.default)
SPELLINGS.method(_NARROW, _narrow, "narrow")
SPELLINGS.function(_SELECT, _index_select, torch.index_select, aten.index_select.default)
SPELLINGS.method(_SELECT, _index_select, "index_select")
SPELLINGS.function(Signature("input, indices"), _aten_index, aten.index.Tensor)
SPELLINGS.function(_SLICE, _aten_slice, aten.slice.Tensor)
SPELLINGS.function(_SPLIT, _split, torch.split, aten.split.Tensor, aten.split_with_sizes.default)
SPELLINGS.function(_CHUNK, _split, torch.chunk, aten.chunk.default)
SPELLINGS.method(_SPLIT, _split, "split")
SPELLINGS.method(_CHUNK, _split, "chunk")
