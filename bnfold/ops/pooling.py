"""Operations that look through windows over space: pooling, means, padding, resizing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnfold.ops.conditions import needs_shapes, scale_nonnegative, shift_zero
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import Dims, Operation, Rule, unchanged
from bnfold.ops.refusal import Count, Refusal
from bnfold.ops.spelling import ANYTHING, Arguments, NotStaticError, Signature, Spellings
from bnfold.ops.symbolic import ONE, Shape, Sight, number

__all__ = ["SPELLINGS", "AdaptiveAveragePool", "AveragePool", "Interpolate", "MaxPool", "Mean", "Pad"]


def channels_not_pooled(call: Any, form: ChannelForm, facts: GraphFacts) -> Refusal | None:
    """A pool runs over the last dimensions, which must not be the channels."""
    rank = form.rank if form.rank is not None else facts.rank(call.node)
    if rank is None:
        return needs_shapes(call)
    if form.dim < rank - call.spatial_dims:
        return None
    return Refusal("channel-dimension", "{op} runs over the channels", op=call)


@dataclass(frozen=True, eq=False)
class _Pool(Operation):
    """A pooling over the last ``spatial_dims`` dimensions.

    ``output_size`` is that of an adaptive pooling, None along a dimension that stays; else it is None.
    """

    keeps_rank = True
    keeps_channels = True
    memory = "fresh"

    input: Value
    spatial_dims: int
    output_size: Any = None

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """The batch and the channels stay; of space only an adaptive pooling tells anything."""
        if len(before) != self.spatial_dims + 2:
            return None
        space, asked = sight.fresh[2:], self.output_size
        asked = (asked,) if isinstance(asked, int) else asked or (None,)
        asked = tuple(asked) * (len(space) if len(asked) == 1 else 1)
        told = (number(size) if isinstance(size, int) else left for size, left in zip(asked, space, strict=True))
        return (*before[:2], *told)


# --- maxima ------------------------------------------------------------------------------------------------------


def indices_unused(call: MaxPool, form: ChannelForm, facts: GraphFacts) -> Refusal | None:  # noqa: ARG001
    """Positions of maxima move where a scale of zero makes ties, so nobody may look at them."""
    if not call.returns_indices:
        return None
    if all(getattr(facts.call(user), "index", None) == 0 for user in facts.users(call.node)):
        return None
    return Refusal("indices-used", "the indices that {op} returns are used", op=call)


@dataclass(frozen=True, eq=False)
class MaxPool(_Pool):
    """A max pooling over the last ``spatial_dims`` dimensions, sliding or adaptive; pads with minus infinity."""

    words = "max pooling"
    rule = Rule(
        "max(a x + b) = a max(x) + b for a >= 0; padding is -inf and never wins",
        (channels_not_pooled, scale_nonnegative, indices_unused),
        backward=unchanged,
        forward=unchanged,
    )

    returns_indices: bool = False

    @property
    def result(self) -> int | None:
        """The maxima come first, the indices second."""
        return 0 if self.returns_indices else None


def _max_pool(dims: int, node: Value, a: Arguments, *, indices: bool = False) -> Operation:
    indices = indices or bool(a.static("return_indices", False))
    return MaxPool(node, a.value(), dims, _output_size(a), indices)


def _output_size(a: Arguments) -> Any:
    try:
        return a.static("output_size")
    except NotStaticError:
        return None


# --- averages ----------------------------------------------------------------------------------------------------


def window_weights_sum_to_one(call: AveragePool, form: ChannelForm, facts: GraphFacts) -> Refusal | None:
    """The shift passes unchanged only where a window's weights sum to 1, or to the same number everywhere."""
    whole = call.divisor_override is None and (not call.pads or not call.count_include_pad)
    if shift_zero(call, form, facts) is None or whole:
        return None
    if call.divisor_override is not None and not call.pads and not call.ceil_mode:
        return None  # every window holds all its elements: the weights sum to window / divisor
    if call.divisor_override is not None:
        text = "{op} divides by a fixed number also where a window is cut at the border, and the shift is not zero"
        return Refusal("divisor-override", text, op=call)
    text = "{op} counts padded zeros in (count_include_pad=True), and the shift is not zero"
    return Refusal("padding-counted-in", text, op=call)


def shift_over_window(call: AveragePool, form: ChannelForm, facts: GraphFacts) -> ChannelForm:  # noqa: ARG001
    """``mean(a x + b) = a mean(x) + w b`` for window weights that sum to ``w``: 1, or window / divisor."""
    if call.divisor_override is None:
        return form
    return form.with_affine(form.affine.with_shift(form.affine.shift / call.weight_sum))


def window_over_shift(call: AveragePool, form: ChannelForm, facts: GraphFacts) -> ChannelForm:  # noqa: ARG001
    """``mean(a x + b) = a mean(x) + w b``."""
    if call.divisor_override is None:
        return form
    return form.with_affine(form.affine.with_shift(form.affine.shift * call.weight_sum))


@dataclass(frozen=True, eq=False)
class AveragePool(_Pool):
    """A sliding average pooling over the last ``spatial_dims`` dimensions."""

    words = "average pooling"
    rule = Rule(
        "mean(a x + b) = a mean(x) + w b, w the sum of the window's weights",
        (channels_not_pooled, window_weights_sum_to_one),
        backward=shift_over_window,
        forward=window_over_shift,
    )

    kernel_size: Dims = 1
    stride: Dims | None = None
    padding: Dims = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def pads(self) -> bool:
        """Whether any window reaches over the border on purpose."""
        padding = self.padding
        return padding != 0 if isinstance(padding, int) else any(side != 0 for side in padding)

    @property
    def window(self) -> int:
        """How many elements a whole window holds."""
        kernel = (self.kernel_size,) if isinstance(self.kernel_size, int) else self.kernel_size
        return prod(kernel * self.spatial_dims if len(kernel) == 1 else kernel)

    @property
    def weight_sum(self) -> float:
        """What the weights of a whole window sum to."""
        return 1.0 if self.divisor_override is None else self.window / self.divisor_override


def _average_pool(dims: int, node: Value, a: Arguments) -> Operation:
    kernel, stride, padding = a.static("kernel_size"), a.static("stride") or None, a.static("padding")
    ceil, include = bool(a.static("ceil_mode")), bool(a.static("count_include_pad"))
    divisor = a.static("divisor_override")
    return AveragePool(node, a.value(), dims, None, kernel, stride, padding, ceil, include, divisor)


@dataclass(frozen=True, eq=False)
class AdaptiveAveragePool(_Pool):
    """An adaptive average pooling over the last ``spatial_dims`` dimensions.

    The windows lie inside the input, and their weights sum to 1.
    """

    words = "average pooling"
    rule = Rule("mean(a x + b) = a mean(x) + b", (channels_not_pooled,), backward=unchanged, forward=unchanged)


def _adaptive_average(dims: int, node: Value, a: Arguments) -> Operation:
    return AdaptiveAveragePool(node, a.value(), dims, _output_size(a))


def before_mean(call: Mean, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
    """The mean of an affine is the affine of the mean; without ``keepdim`` the dimensions are renumbered."""
    rank = facts.rank(call.input)
    if rank is None:
        return form if call.keepdim and call.dims else needs_shapes(call)
    reduced = call.reduced(rank)
    kept = [dim for dim in range(rank) if call.keepdim or dim not in reduced]
    if kept[form.dim] in reduced:
        return Refusal("channel-dimension", "{op} runs over the channels", op=call)
    return replace(form, dim=kept[form.dim], rank=rank)


def past_mean(call: Mean, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
    """The mean of an affine is the affine of the mean; without ``keepdim`` the dimensions are renumbered."""
    rank = form.rank or facts.rank(call.input)
    if rank is None:
        return needs_shapes(call)
    reduced = call.reduced(rank)
    if form.dim in reduced:
        return Refusal("channel-dimension", "{op} runs over the channels", op=call)
    if call.keepdim:
        return form
    return replace(form, dim=form.dim - sum(dim < form.dim for dim in reduced), rank=rank - len(reduced))


@dataclass(frozen=True, eq=False)
class Mean(Operation):
    """A mean over ``dims`` (as written, possibly negative; None for all)."""

    words = "mean"
    keeps_rank = False
    keeps_channels = False
    memory = "fresh"
    rule = Rule("mean(a x + b) = a mean(x) + b", (), backward=before_mean, forward=past_mean)

    input: Value
    dims: tuple[int, ...] | None
    keepdim: bool

    def reduced(self, rank: int) -> set[int]:
        """Return the dimensions that the mean runs over, counted from the front."""
        return set(range(rank)) if self.dims is None else {dim % rank for dim in self.dims}

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """What it runs over is gone, or of size 1."""
        reduced = self.reduced(len(before))
        if self.keepdim:
            return tuple(ONE if dim in reduced else size for dim, size in enumerate(before))
        return tuple(size for dim, size in enumerate(before) if dim not in reduced)


def _mean(node: Value, a: Arguments) -> Operation | None:
    dims = a.static("dim")
    if a.get("dtype") is not None:
        return None
    return Mean(node, a.value(), (dims,) if isinstance(dims, int) else dims or None, bool(a.static("keepdim")))


# --- resizing and padding ----------------------------------------------------------------------------------------


def channels_not_resized(call: Interpolate, form: ChannelForm, facts: GraphFacts) -> Refusal | None:  # noqa: ARG001
    """An interpolation resizes all dimensions from the third on."""
    return None if form.dim < 2 else Refusal("channel-dimension", "{op} resizes the channels", op=call)


@dataclass(frozen=True, eq=False)
class Interpolate(Operation):
    """An up- or downsampling whose interpolation weights sum to 1."""

    words = "interpolation"
    keeps_rank = True
    keeps_channels = True
    memory = "fresh"
    rule = Rule(
        "sum w (a x + b) = a sum w x + b, sum w = 1", (channels_not_resized,), backward=unchanged, forward=unchanged
    )

    input: Value
    mode: str

    def sizes(self, before: Shape, sight: Sight) -> Shape:
        """The batch and the channels stay."""
        return (*before[:2], *sight.fresh[2:])


_SUM_TO_ONE = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")


def _interpolate(node: Value, a: Arguments) -> Operation | None:
    mode = a.static("mode", "nearest")
    return Interpolate(node, a.value(), str(mode)) if mode in _SUM_TO_ONE else None


def pads_with_a_fixed_point(call: Pad, form: ChannelForm, facts: GraphFacts) -> Refusal | None:  # noqa: ARG001
    """Reflected, replicated and circular padding repeat real values; a constant must be mapped to itself."""
    if call.mode != "constant" or (call.widths is not None and all(width <= 0 for width in call.widths)):
        return None
    mapped = form.affine.scale * call.value + form.affine.shift
    moved = int((mapped != call.value).sum())
    if not moved:
        return None
    count = Count(moved, form.affine.channels, "channel")
    text = "{op} pads with {number} and {count} shifted away from it"
    return Refusal("constant-padding", text, op=call, count=count, number=f"{call.value:g}")


def channels_not_padded(call: Pad, form: ChannelForm, facts: GraphFacts) -> Refusal | None:
    """A padding along the channels adds some, or shifts them."""
    if call.widths is None:
        return Refusal("shapes-unknown", "the widths of {op} are computed when it runs", op=call)
    rank = form.rank if form.rank is not None else facts.rank(call.node)
    if rank is None:
        return needs_shapes(call)
    if rank - len(call.widths) // 2 <= form.dim:
        return Refusal("channel-dimension", "{op} pads the channels", op=call)
    return None


@dataclass(frozen=True, eq=False)
class Pad(Operation):
    """A padding: ``widths`` are pairs from the last dimension backwards, as for ``torch.nn.functional.pad``."""

    words = "padding"
    keeps_rank = True
    keeps_channels = False
    memory = "fresh"
    rule = Rule(
        "padding copies values, or adds c = a c + b",
        (pads_with_a_fixed_point, channels_not_padded),
        backward=unchanged,
        forward=unchanged,
    )

    input: Value
    widths: tuple[int, ...] | None
    mode: str
    value: float

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """What is not padded stays."""
        if self.widths is None:
            return None
        first = len(before) - len(self.widths) // 2
        return (*before[:first], *sight.fresh[first:])


def _pad(node: Value, a: Arguments) -> Operation:
    try:
        widths = a.static("pad")
    except NotStaticError:
        widths = None  # widths computed from the shape: legal only where no width matters
    return Pad(node, a.value(), widths, a.static("mode", "constant"), float(a.static("value") or 0.0))


def _pad_layer(mode: str, dims: int, node: Value, a: Arguments) -> Operation:
    padding = a.static("padding")
    widths = (padding,) * (2 * dims) if isinstance(padding, int) else padding
    return Pad(node, a.value(), widths, mode, float(a.static("value", 0.0)))


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_MAX = Signature("input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False")
_AVG = Signature(
    "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None"
)
_ADAPTIVE = Signature("input, output_size, return_indices=False")
_MEAN = Signature("input, dim=None, keepdim=False, dtype=None")
_PAD = Signature("input, pad, mode='constant', value=None")
_INTERPOLATE = Signature(
    "input, size=None, scale_factor=None, mode='nearest', align_corners=None, recompute_scale_factor=None, "
    "antialias=False"
)

for _n in (1, 2, 3):
    _plain, _indices = partial(_max_pool, _n), partial(_max_pool, _n, indices=True)
    _average, _adaptive = partial(_average_pool, _n), partial(_adaptive_average, _n)
    _max, _avg, _adaptive_max, _adaptive_avg = (
        f"{name}_pool{_n}d" for name in ("max", "avg", "adaptive_max", "adaptive_avg")
    )
    SPELLINGS.function(_MAX, _plain, getattr(F, _max), getattr(torch, _max), getattr(aten, _max).default)
    SPELLINGS.function(
        _MAX, _indices, getattr(F, f"max_pool{_n}d_with_indices"), getattr(aten, f"max_pool{_n}d_with_indices").default
    )
    SPELLINGS.function(_ADAPTIVE, _plain, getattr(F, _adaptive_max))
    SPELLINGS.function(_ADAPTIVE, _indices, getattr(F, f"adaptive_max_pool{_n}d_with_indices"))
    SPELLINGS.function(_ADAPTIVE, _indices, getattr(aten, _adaptive_max).default)
    SPELLINGS.function(_AVG, _average, getattr(F, _avg), getattr(aten, _avg).default)
    SPELLINGS.function(_ADAPTIVE, _adaptive, getattr(F, _adaptive_avg), getattr(aten, _adaptive_avg).default)
    SPELLINGS.layer(_plain, getattr(nn, f"MaxPool{_n}d"), getattr(nn, f"AdaptiveMaxPool{_n}d"))
    SPELLINGS.layer(_average, getattr(nn, f"AvgPool{_n}d"))
    SPELLINGS.layer(_adaptive, getattr(nn, f"AdaptiveAvgPool{_n}d"))
    SPELLINGS.layer(partial(_pad_layer, "constant", _n), getattr(nn, f"ConstantPad{_n}d"), getattr(nn, f"ZeroPad{_n}d"))
    for _mode, _name in (("reflect", "Reflection"), ("replicate", "Replication"), ("circular", "Circular")):
        SPELLINGS.layer(partial(_pad_layer, _mode, _n), getattr(nn, f"{_name}Pad{_n}d"))
SPELLINGS.function(_MEAN, _mean, torch.mean, aten.mean.dim)
SPELLINGS.method(_MEAN, _mean, "mean")
SPELLINGS.function(_PAD, _pad, F.pad, aten.pad.default)
SPELLINGS.function(Signature("input, pad, value=0"), _pad, aten.constant_pad_nd.default)
SPELLINGS.function(_INTERPOLATE, _interpolate, F.interpolate)
SPELLINGS.layer(_interpolate, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
for _name in (
    "nearest1d nearest2d nearest3d _nearest_exact1d _nearest_exact2d _nearest_exact3d linear1d bilinear2d bicubic2d "
    "trilinear3d _bilinear2d_aa _bicubic2d_aa".split()
):
    _packet = getattr(aten, ("_upsample" if _name.startswith("_") else "upsample_") + _name)
    SPELLINGS.function(ANYTHING, _interpolate, _packet.default, _packet.vec)
