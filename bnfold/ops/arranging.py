"""Operations that move the numbers of one value and compute none; and reads of a shape or a type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from bnfold.ops.conditions import apart_from_channels, needs_shapes
from bnfold.ops.elementwise import identity
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import STOPS, Memory, Operation, Rule, unchanged
from bnfold.ops.recast import recast
from bnfold.ops.refusal import Refusal
from bnfold.ops.renumbering import Correspondence, Side, renumbers
from bnfold.ops.spelling import ANYTHING, UNARY, Arguments, Reader, Signature, Spellings, one_input
from bnfold.ops.symbolic import Shape, Sight, number

__all__ = [
    "SPELLINGS",
    "Arranging",
    "ChannelShuffle",
    "Constant",
    "MetadataRead",
    "Permute",
    "PixelShuffle",
    "PixelUnshuffle",
    "Rearrange",
    "Reshape",
]


@dataclass(frozen=True, eq=False)
class Arranging(Operation):
    """An operation that moves the numbers of one value."""

    keeps_rank = False
    keeps_channels = False
    memory: ClassVar[Memory] = "view"

    input: Value


# --- shuffles ----------------------------------------------------------------------------------------------------


def _third_last(call: Any, form: ChannelForm, facts: GraphFacts) -> Refusal | None:
    """Why a form does not run along the third dimension from the end; None where it does."""
    rank = form.rank or facts.rank(call.node)
    if rank is None:
        return needs_shapes(call)
    return None if form.dim == rank - 3 else Refusal("channel-dimension", "{op} shuffles another dimension", op=call)


def pixels_of_channels(
    call: PixelShuffle, form: ChannelForm, facts: GraphFacts, here: Side
) -> Correspondence | Refusal:
    """Output channel ``c`` reads the ``r * r`` input channels ``c r r ... c r r + r r - 1``, or each C-th one."""
    repeat = call.factor**2
    channels = form.affine.channels if here == "output" else form.affine.channels // repeat
    numbers = torch.arange(channels, device="cpu")
    copies = numbers.repeat(repeat) if call.pixels_first else numbers.repeat_interleave(repeat)
    return _third_last(call, form, facts) or Correspondence(copies, channels, copies="input")


@dataclass(frozen=True, eq=False)
class PixelShuffle(Arranging):
    """Channels ``c * r**2 + k`` become positions inside the pixel of channel ``c``.

    Attributes:
        pixels_first: whether they are numbered ``k * C + c`` instead, as ONNX does in its mode DCR.
    """

    words = "pixel shuffle"
    keeps_rank = True
    memory = "fresh"
    rule = renumbers("output channel c reads r*r adjacent inputs", pixels_of_channels)

    factor: int
    pixels_first: bool = False

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """Channels become pixels."""
        r = number(self.factor)
        return (*before[:-3], before[-3] / (r * r), before[-2] * r, before[-1] * r)


def channels_of_pixels(
    call: PixelUnshuffle, form: ChannelForm, facts: GraphFacts, here: Side
) -> Correspondence | Refusal:
    """Output channels ``c r r ... c r r + r r - 1`` all come from input channel ``c``, or each C-th one."""
    repeat = call.factor**2
    channels = form.affine.channels if here == "input" else form.affine.channels // repeat
    numbers = torch.arange(channels, device="cpu")
    copies = numbers.repeat(repeat) if call.pixels_first else numbers.repeat_interleave(repeat)
    return _third_last(call, form, facts) or Correspondence(copies, channels)


@dataclass(frozen=True, eq=False)
class PixelUnshuffle(Arranging):
    """The inverse of :class:`PixelShuffle`, numbered as there."""

    words = "pixel unshuffle"
    keeps_rank = True
    memory = "fresh"
    rule = renumbers("r*r adjacent outputs read input channel c", channels_of_pixels)

    factor: int
    pixels_first: bool = False

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """Pixels become channels."""
        r = number(self.factor)
        return (*before[:-3], before[-3] * r * r, before[-2] / r, before[-1] / r)


def shuffled(call: ChannelShuffle, form: ChannelForm, _facts: GraphFacts, _here: Side) -> Correspondence | Refusal:
    """Output channel ``i * groups + g`` is input channel ``g * (C / groups) + i``."""
    if form.dim != 1:
        return Refusal("channel-dimension", "{op} shuffles dimension 1", op=call)
    channels = form.affine.channels
    return Correspondence(torch.arange(channels, device="cpu").reshape(call.groups, -1).t().reshape(-1), channels)


@dataclass(frozen=True, eq=False)
class ChannelShuffle(Arranging):
    """Channels ``(g, C/g)`` become ``(C/g, g)``."""

    words = "channel shuffle"
    keeps_rank = True
    keeps_channels = True
    memory = "fresh"
    rule = renumbers("a permutation of the channels", shuffled)

    groups: int

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """All sizes stay."""
        return before


# --- dimensions --------------------------------------------------------------------------------------------------


def before_permute(call: Permute, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
    """Output dimension ``i`` is input dimension ``order[i]``."""
    return _across_permute(call, form, facts, backward=True)


def past_permute(call: Permute, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
    """Output dimension ``i`` is input dimension ``order[i]``."""
    return _across_permute(call, form, facts, backward=False)


def _across_permute(call: Permute, form: ChannelForm, facts: GraphFacts, *, backward: bool) -> ChannelForm | Refusal:
    """Return the form of the other side of a permutation: of its input, or forward of its output."""
    rank = form.rank or facts.rank(call.node)
    if rank is None and any(dim < 0 for dim in call.order):
        return needs_shapes(call)
    order = [dim % rank if rank is not None else dim for dim in call.order]
    if call.swap:
        first, second = order
        order = list(range(rank or max(first, second, form.dim, *(dim for dim, _ in form.spread)) + 1))
        order[first], order[second] = second, first
    if form.spread:
        return _permuted_spread(form, order, backward=backward)
    return replace(form, dim=order[form.dim] if backward else order.index(form.dim), rank=rank)


def _permuted_spread(form: ChannelForm, order: list[int], *, backward: bool) -> ChannelForm:
    """The form where channels that run along several dimensions find these in other places."""
    moved = [order[dim] if backward else order.index(dim) for dim, _ in form.spread]
    axes = sorted(range(len(moved)), key=moved.__getitem__)
    index = (
        torch.arange(form.affine.channels, device="cpu")
        .reshape([size for _, size in form.spread])
        .permute(axes)
        .reshape(-1)
    )
    spread = tuple((moved[axis], form.spread[axis][1]) for axis in axes)
    return replace(form.picked(index), dim=spread[0][0], spread=spread)


@dataclass(frozen=True, eq=False)
class Permute(Arranging):
    """Output dimension ``i`` is input dimension ``order[i]``; for a swap, ``order`` is the pair, ``swap`` is True."""

    words = "permutation"
    strides = True
    takes_spread = True
    rule = Rule("the same numbers, dimensions renumbered", (), backward=before_permute, forward=past_permute)

    order: tuple[int, ...]
    swap: bool = False

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """The sizes change places."""
        order = [dim % len(before) for dim in self.order]
        if self.swap:
            first, second = order
            order = list(range(len(before)))
            order[first], order[second] = second, first
        return tuple(before[dim] for dim in order)


def before_reshape(call: Reshape, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
    """The same numbers in row-major order (:mod:`bnfold.ops.recast`)."""
    return _across_reshape(call, call.node, call.input, form, facts)


def past_reshape(call: Reshape, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
    """The same numbers in row-major order (:mod:`bnfold.ops.recast`)."""
    return _across_reshape(call, call.input, call.node, form, facts)


def _across_reshape(
    call: Reshape, here: Value, there: Value, form: ChannelForm, facts: GraphFacts
) -> ChannelForm | Refusal:
    """Return the form of ``there``, one side of a reshape, for that of ``here``, the other side."""
    shapes = facts.shapes(there)
    if not shapes or not facts.shapes(here):
        return needs_shapes(call)
    moved = recast(form, facts.sizes(here), facts.sizes(there), shapes[0])
    if moved is None:
        if all(_recast_as_seen(form, *pair) for pair in zip(facts.shapes(here), shapes, strict=False)):
            text = "{op} keeps the channels apart at the example's size, and may mix them at another"
            return Refusal("depends-on-size", text, op=call)
        return Refusal("channel-dimension", "{op} mixes the channels with other dimensions", op=call)
    return replace(moved, rank=len(shapes[0]), unsure=facts.graph_rank(there) is None)


def _recast_as_seen(form: ChannelForm, here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether the form passes a reshape from and to the sizes of one run, on to a single dimension."""
    if 0 in (*here, *there):
        return False
    moved = recast(form, [number(size) for size in here], [number(size) for size in there], there)
    return moved is not None and not moved.spread


@dataclass(frozen=True, eq=False)
class Reshape(Arranging):
    """Any operation that keeps the elements in row-major order: view, reshape, flatten, squeeze, unsqueeze."""

    words = "reshape"
    takes_spread = True
    rule = Rule("the same numbers in row-major order", (), backward=before_reshape, forward=past_reshape)

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """The front end tells what is asked for."""
        return


def channels_stay(call: Rearrange, form: ChannelForm, facts: GraphFacts) -> Refusal | None:
    """A flip or a roll along the channels gives them other numbers."""
    return apart_from_channels(call.dims, call, form, facts, "{op} moves the channels")


@dataclass(frozen=True, eq=False)
class Rearrange(Arranging):
    """Values take other places along ``dims`` (as written, possibly negative): flip, roll."""

    words = "rearrangement"
    keeps_rank = True
    memory = "fresh"
    rule = Rule(
        "the same numbers in other places of the same channel", (channels_stay,), backward=unchanged, forward=unchanged
    )

    dims: tuple[int, ...]

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """All sizes stay."""
        return before


# --- no numbers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MetadataRead(Arranging):
    """Reads the shape, the dtype or the device of a value, never its numbers."""

    words = "question"
    memory = "fresh"
    rule = STOPS

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """It is no tensor."""
        return


@dataclass(frozen=True, eq=False)
class Constant(Operation):
    """A value that depends on parameters and constants only, not on the model's input."""

    words = "constant"
    keeps_rank = False
    keeps_channels = False
    memory = "unknown"
    rule = STOPS

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """They are asked of the tensor."""
        return


# --- reading -----------------------------------------------------------------------------------------------------

_reshape = one_input(Reshape)
_METADATA_ATTRIBUTES = frozenset(
    "shape ndim dtype device is_cuda is_cpu is_mps is_sparse is_quantized is_meta layout requires_grad itemsize nbytes "
    "is_leaf names".split()
)
_METADATA_METHODS = (
    "size dim ndimension numel nelement is_floating_point is_complex get_device element_size type_as_dtype __len__"
).split()


def _view(node: Value, a: Arguments) -> Operation | None:
    rest = a.get("rest")
    if len(rest) == 1 and isinstance(rest[0], torch.dtype):  # reinterprets bits
        return None
    return Reshape(node, a.value())


def _dims(a: Arguments, name: str = "dims") -> tuple[int, ...]:
    """The dimensions that a method is given one by one, as a list, or by name."""
    rest = a.get("rest")
    dims = a.plain(a.get(name, rest if len(rest) != 1 or isinstance(rest[0], int) else rest[0]))
    return (dims,) if isinstance(dims, int) else dims


def _permute(node: Value, a: Arguments) -> Operation:
    return Permute(node, a.value(), _dims(a))


def _transpose(node: Value, a: Arguments) -> Operation:
    return Permute(node, a.value(), (a.static("dim0"), a.static("dim1")), swap=True)


def _swap(first: int, second: int, node: Value, a: Arguments) -> Operation:
    return Permute(node, a.value(), (first, second), swap=True)


def _rearrange(node: Value, a: Arguments) -> Operation:
    dims = a.static("dims")
    return Rearrange(node, a.value(), (dims,) if isinstance(dims, int) else dims)


def _flip(node: Value, a: Arguments) -> Operation:
    return Rearrange(node, a.value(), _dims(a))


def _attribute(node: Value, a: Arguments) -> Operation | None:
    name = a.get("name")
    if name in _METADATA_ATTRIBUTES:
        return MetadataRead(node, a.value())
    if name == "mT":
        return _swap(-2, -1, node, a)
    return identity(node, a.value()) if name == "data" else None


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_PERMUTE = Signature("input, dims")
_SWAP = Signature("input, dim0, dim1")
_ROLL = Signature("input, shifts, dims")  # without dims it runs over all of them


def _by(kind: Any, name: str, layer: str) -> Reader:
    return lambda node, a: kind(node, a.value(), int(a.static(name if a.layer is None else layer)))


_shuffle = _by(PixelShuffle, "factor", "upscale_factor")
_unshuffle = _by(PixelUnshuffle, "factor", "downscale_factor")
_groups = _by(ChannelShuffle, "groups", "groups")
SPELLINGS.function(Signature("input, factor"), _shuffle, F.pixel_shuffle, aten.pixel_shuffle.default)
SPELLINGS.function(Signature("input, factor"), _unshuffle, F.pixel_unshuffle, aten.pixel_unshuffle.default)
SPELLINGS.function(Signature("input, groups"), _groups, torch.channel_shuffle, aten.channel_shuffle.default)
SPELLINGS.layer(_shuffle, nn.PixelShuffle)
SPELLINGS.layer(_unshuffle, nn.PixelUnshuffle)
SPELLINGS.layer(_groups, nn.ChannelShuffle)

_names = "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"
_overloads = (
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.view_as.default),
    *(aten.reshape_as.default, aten.flatten.using_ints, aten.unflatten.int),
    *(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default),
)
_functions = torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze
SPELLINGS.function(ANYTHING, _reshape, *_functions, *_overloads)
SPELLINGS.method(ANYTHING, _reshape, *_names)
SPELLINGS.method(ANYTHING, _view, "view")
SPELLINGS.layer(_reshape, nn.Flatten, nn.Unflatten)

SPELLINGS.function(ANYTHING, _permute, torch.permute, aten.permute.default)
SPELLINGS.method(ANYTHING, _permute, "permute")
_swaps = torch.transpose, torch.swapaxes, torch.swapdims
SPELLINGS.function(_SWAP, _transpose, *_swaps, aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
SPELLINGS.method(_SWAP, _transpose, "transpose", "swapaxes", "swapdims")
SPELLINGS.method(UNARY, partial(_swap, 0, 1), "t")
SPELLINGS.function(UNARY, partial(_swap, -2, -1), aten.mT.default)

SPELLINGS.function(ANYTHING, _flip, torch.flip, aten.flip.default)
SPELLINGS.method(ANYTHING, _flip, "flip")
SPELLINGS.function(_ROLL, _rearrange, torch.roll, aten.roll.default)
SPELLINGS.method(_ROLL, _rearrange, "roll")

SPELLINGS.function(Signature("input, name"), _attribute, getattr)
_questions = torch.numel, torch.is_floating_point, torch.is_tensor, aten.sym_size.int, aten.sym_numel.default
SPELLINGS.function(ANYTHING, one_input(MetadataRead), *_questions)
SPELLINGS.method(ANYTHING, one_input(MetadataRead), *_METADATA_METHODS)
