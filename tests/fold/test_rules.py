"""Each row of the table of rules proves itself: a BatchNorm crosses the op, in every spelling, and nothing changes.

A small float64 model is built around the op: ``conv -> op -> bn`` (or ``fc -> op -> bn``), so that the BatchNorm can
only fold by crossing it. The fold must happen, name what it crossed and where it went, and agree with the model to
1e-10 of the peak.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnfold import ops as calls
from bnfold.fold.rules import RULES
from bnfold.graph.facts import Facts
from tests.fold.support import Net, double, folds, set_affine, values

CHANNELS = 4
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
aten = torch.ops.aten


@dataclass(frozen=True)
class Row:
    """One spelling of an op.

    Attributes:
        op: what the vocabulary must read it as.
        name: for the test's id.
        dims: spatial dimensions of the convolution before it; 0 for a Linear on ``(N, L, C)``.
        apply: the op, on the value ``y``; ``s`` is the model.
        parts: layers that ``apply`` uses.
        norm: the BatchNorm after it.
        positive: the rule asks for scales that are not negative.
        no_shift: the rule asks for shifts of zero.
        alike: the rule asks for neighbouring channels, so many together, to have the same affine.
        into: which layers take the affine.
    """

    op: type[calls.Operation]
    name: str
    dims: int
    apply: Callable[[Any, Tensor], Tensor]
    parts: Callable[[], dict[str, nn.Module]] = dict
    norm: Callable[[], nn.Module] | None = None
    positive: bool = False
    no_shift: bool = False
    alike: int = 1
    into: frozenset[str] = field(default=frozenset({"conv"}))


ROWS: list[Row] = []


def row(op: type[calls.Operation], name: str, dims: int, apply: Callable[[Any, Any], Any], **options: Any) -> None:
    ROWS.append(Row(op, f"{op.__name__}-{name}-{dims}d", dims, apply, **options))


def layer(op: type[calls.Operation], dims: int, make: Callable[[], nn.Module], name: str = "", **options: Any) -> None:
    row(op, name or type(make()).__name__, dims, lambda s, y: s.op(y), parts=lambda: {"op": make()}, **options)


def _pools(d: int) -> None:
    of: Any = {"positive": True}
    layer(calls.MaxPool, d, lambda: getattr(nn, f"MaxPool{d}d")(2), **of)
    layer(calls.MaxPool, d, lambda: getattr(nn, f"MaxPool{d}d")(3, 2, 1, ceil_mode=True), "padded", **of)
    layer(calls.MaxPool, d, lambda: getattr(nn, f"MaxPool{d}d")(2, 1, dilation=2), "dilated", **of)
    layer(calls.MaxPool, d, lambda: getattr(nn, f"AdaptiveMaxPool{d}d")(2), **of)
    row(calls.MaxPool, "functional", d, lambda s, y: getattr(F, f"max_pool{d}d")(y, 2), **of)
    row(calls.MaxPool, "torch", d, lambda s, y: getattr(torch, f"max_pool{d}d")(y, 2), **of)
    row(calls.MaxPool, "keywords", d, lambda s, y: getattr(F, f"max_pool{d}d")(input=y, kernel_size=2, stride=1), **of)
    row(calls.MaxPool, "adaptive-functional", d, lambda s, y: getattr(F, f"adaptive_max_pool{d}d")(y, 2), **of)
    row(calls.MaxPool, "aten", d, lambda s, y: getattr(aten, f"max_pool{d}d").default(y, [2] * d), **of)

    pool, functional = getattr(nn, f"AvgPool{d}d"), getattr(F, f"avg_pool{d}d")
    layer(calls.AveragePool, d, lambda: pool(2))
    layer(calls.AveragePool, d, lambda: pool(3, 2, 1, count_include_pad=False), "padding-left-out")
    layer(calls.AveragePool, d, lambda: pool(3, 2, 1, ceil_mode=True, count_include_pad=False), "ceil-padding-left-out")
    layer(calls.AveragePool, d, lambda: pool(3, 2, ceil_mode=True), "ceil")
    layer(
        calls.AveragePool, d, lambda: pool(3, 2, 1, ceil_mode=True), "padding-counted-in-without-shift", no_shift=True
    )
    row(calls.AveragePool, "functional", d, lambda s, y: functional(y, 2))
    row(calls.AveragePool, "aten", d, lambda s, y: getattr(aten, f"avg_pool{d}d").default(y, [2] * d))
    if d > 1:
        layer(calls.AveragePool, d, lambda: pool(2, divisor_override=3), "divisor")
        layer(calls.AveragePool, d, lambda: pool(2, padding=1, divisor_override=3), "divisor-padded", no_shift=True)
        row(calls.AveragePool, "functional-divisor", d, lambda s, y: functional(y, 2, divisor_override=5))
    layer(calls.AdaptiveAveragePool, d, lambda: getattr(nn, f"AdaptiveAvgPool{d}d")(2))
    row(calls.AdaptiveAveragePool, "functional", d, lambda s, y: getattr(F, f"adaptive_avg_pool{d}d")(y, (3,) * d))
    row(calls.AdaptiveAveragePool, "aten", d, lambda s, y: getattr(aten, f"adaptive_avg_pool{d}d").default(y, [2] * d))

    space = tuple(range(2, d + 2))
    row(calls.Mean, "method-keepdim", d, lambda s, y: y.mean(space, keepdim=True))
    row(calls.Mean, "method", d, lambda s, y: y.mean(space), norm=lambda: nn.BatchNorm1d(CHANNELS))
    row(calls.Mean, "torch", d, lambda s, y: torch.mean(y, dim=-1, keepdim=True))
    row(calls.Mean, "negative", d, lambda s, y: y.mean(tuple(-i - 1 for i in range(d)), True))
    row(calls.Mean, "batch", d, lambda s, y: torch.mean(y, 0, True))


def _space(d: int) -> None:
    modes = {1: ["nearest", "linear"], 2: ["nearest", "bilinear", "bicubic"], 3: ["nearest", "trilinear"]}[d]
    for mode in modes:
        layer(calls.Interpolate, d, lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode), mode)  # type: ignore[misc]
        row(calls.Interpolate, f"functional-{mode}", d, lambda s, y, mode=mode: F.interpolate(y, (7,) * d, mode=mode))
    row(calls.Interpolate, "area", d, lambda s, y: F.interpolate(y, scale_factor=0.5, mode="area"))
    row(calls.Interpolate, "exact", d, lambda s, y: F.interpolate(y, size=(11,) * d, mode="nearest-exact"))
    if d == 2:
        layer(calls.Interpolate, d, lambda: nn.UpsamplingNearest2d(scale_factor=2))
        layer(calls.Interpolate, d, lambda: nn.UpsamplingBilinear2d(scale_factor=2))
        row(calls.Interpolate, "antialias", d, lambda s, y: F.interpolate(y, (3, 3), mode="bilinear", antialias=True))

    layer(calls.Pad, d, lambda: getattr(nn, f"ReflectionPad{d}d")(1))
    layer(calls.Pad, d, lambda: getattr(nn, f"ReplicationPad{d}d")(2))
    layer(calls.Pad, d, lambda: getattr(nn, f"CircularPad{d}d")(1))
    layer(calls.Pad, d, lambda: getattr(nn, f"ZeroPad{d}d")(1), no_shift=True)
    layer(calls.Pad, d, lambda: getattr(nn, f"ConstantPad{d}d")(1, 0.0), no_shift=True)
    row(calls.Pad, "functional-reflect", d, lambda s, y: F.pad(y, (1, 1) * d, mode="reflect"))
    row(calls.Pad, "functional-zeros", d, lambda s, y: F.pad(y, (1, 0)), no_shift=True)
    row(calls.Pad, "functional-cut", d, lambda s, y: F.pad(y, (-1, 0) * d, value=0.0), no_shift=True)

    layer(calls.Passing, d, nn.Identity)
    layer(calls.Passing, d, lambda: nn.Dropout(0.5))
    layer(calls.Passing, d, lambda: getattr(nn, f"Dropout{d}d")(0.5))
    row(calls.Passing, "functional-dropout", d, lambda s, y: F.dropout(y, 0.5, training=False))
    row(calls.Passing, "functional-dropout-of-none", d, lambda s, y: F.dropout(y, 0.0))
    row(calls.Passing, "aten-dropout", d, lambda s, y: aten.dropout.default(y, 0.5, False))

    of: Any = {"positive": True, "no_shift": True}
    layer(calls.PositivelyHomogeneous, d, nn.ReLU, **of)
    layer(calls.PositivelyHomogeneous, d, lambda: nn.ReLU(inplace=True), "ReLU-in-place", **of)
    layer(calls.PositivelyHomogeneous, d, lambda: nn.LeakyReLU(0.2), **of)
    layer(calls.PositivelyHomogeneous, d, lambda: nn.PReLU(CHANNELS, init=-0.3), **of)
    row(calls.PositivelyHomogeneous, "functional", d, lambda s, y: F.relu(y), **of)
    row(calls.PositivelyHomogeneous, "functional-in-place", d, lambda s, y: F.relu(y, inplace=True), **of)
    row(calls.PositivelyHomogeneous, "leaky", d, lambda s, y: F.leaky_relu(y, 0.1), **of)
    row(calls.PositivelyHomogeneous, "torch", d, lambda s, y: torch.relu(y), **of)
    row(calls.PositivelyHomogeneous, "method", d, lambda s, y: y.relu(), **of)
    row(calls.PositivelyHomogeneous, "method-in-place", d, lambda s, y: y.relu_(), **of)
    row(calls.PositivelyHomogeneous, "aten", d, lambda s, y: aten.relu.default(y), **of)


def _two(d: int) -> None:
    """Ops of several inputs: a second convolution stands in ``other``."""
    both = frozenset({"conv", "other"})
    of: Any = {"parts": lambda: {"other": CONV[d](3, CHANNELS, 3)}, "into": both}
    row(calls.Add, "operator", d, lambda s, y: y + s.other(s.x), **of)
    row(calls.Add, "operator-minus", d, lambda s, y: y - s.other(s.x), **of)
    row(calls.Add, "torch", d, lambda s, y: torch.add(y, s.other(s.x)), **of)
    row(calls.Add, "torch-minus", d, lambda s, y: torch.sub(s.other(s.x), y), **of)
    row(calls.Add, "method", d, lambda s, y: y.add(s.other(s.x)), **of)
    row(calls.Add, "method-in-place", d, lambda s, y: y.add_(s.other(s.x)), **of)
    row(calls.Add, "in-place", d, _in_place_add, **of)
    row(calls.Add, "aten", d, lambda s, y: aten.add.Tensor(y, s.other(s.x)), **of)
    twice: Any = {**of, "norm": lambda: NORM[d](2 * CHANNELS)}
    row(calls.Concatenate, "torch", d, lambda s, y: torch.cat([y, s.other(s.x)], 1), **twice)
    row(calls.Concatenate, "negative", d, lambda s, y: torch.cat((s.other(s.x), y), dim=-d - 1), **twice)
    row(calls.Concatenate, "concat", d, lambda s, y: torch.concat([y, s.other(s.x)], dim=1), **twice)
    row(calls.Concatenate, "aten", d, lambda s, y: aten.cat.default([y, s.other(s.x)], 1), **twice)
    row(calls.Concatenate, "over-space", d, lambda s, y: torch.cat([y, s.other(s.x)], 2), **of)
    row(calls.Concatenate, "over-batch", d, lambda s, y: torch.cat([y, s.other(s.x)]), **of)


def _in_place_add(s: Any, y: Tensor) -> Tensor:
    y += s.other(s.x)
    return y


def _values(d: int) -> None:
    """Ops that cut, and that return several values."""
    half: Any = {"norm": lambda: NORM[d](2)}
    row(calls.Slice, "getitem", d, lambda s, y: y[:, 1:3], **half)
    row(calls.Slice, "getitem-negative", d, lambda s, y: y[:, -2:], **half)
    row(calls.Slice, "torch-narrow", d, lambda s, y: torch.narrow(y, 1, 1, 2), **half)
    row(calls.Slice, "method-narrow", d, lambda s, y: y.narrow(1, 2, 2), **half)
    row(calls.Slice, "over-space", d, lambda s, y: y[:, :, 1:])
    row(calls.Slice, "over-space-step", d, lambda s, y: y[:, :, ::2])
    row(calls.Slice, "over-space-computed", d, lambda s, y: y[:, :, : y.shape[2] // 2])
    row(calls.Slice, "ellipsis", d, lambda s, y: y[..., 1:-1])
    row(calls.Slice, "ellipsis-channels", d, lambda s, y: y[(..., slice(1, 3), *[slice(None)] * d)], **half)
    row(calls.Slice, "several", d, lambda s, y: y[(slice(None), slice(1, 3), *[slice(1, -1, 2)] * d)], **half)
    row(calls.Slice, "aten-step", d, lambda s, y: aten.slice.Tensor(y, 2, 1, 9, 3))
    row(calls.Slice, "aten-narrow", d, lambda s, y: aten.narrow.default(y, 1, 1, 2), **half)
    row(calls.Rearrange, "flip", d, lambda s, y: y.flip(2))
    row(calls.Rearrange, "flip-tuple", d, lambda s, y: y.flip((0, -1)))
    row(calls.Rearrange, "flip-keyword", d, lambda s, y: torch.flip(y, dims=[2]))
    row(calls.Rearrange, "roll", d, lambda s, y: torch.roll(y, 2, dims=2))
    row(calls.Rearrange, "roll-method", d, lambda s, y: y.roll((1, 2), (0, -1)))
    row(calls.Slice, "aten", d, lambda s, y: aten.slice.Tensor(y, 1, 0, 2), **half)
    three: Any = {"norm": lambda: NORM[d](3)}
    for spelling, apply in _SELECTIONS.items():
        row(calls.Select, spelling, d, apply, parts=lambda: {"index": torch.tensor([3, 0, 2])}, **three)
    row(calls.Select, "over-space", d, lambda s, y: y.index_select(2, s.index), parts=lambda: {"index": _PLACES})
    row(calls.Item, "split", d, lambda s, y: torch.split(y, 2, 1)[1], **half)
    row(calls.Item, "split-sizes", d, lambda s, y: y.split([1, 2, 1], dim=1)[1], **half)
    row(calls.Item, "chunk", d, lambda s, y: y.chunk(2, dim=1)[0], **half)
    row(calls.Item, "chunk-last", d, lambda s, y: torch.chunk(y, 2, 1)[-1], **half)
    for spelling, apply in _BY_NUMBER.items():
        row(calls.ByNumber, spelling, d, apply)
    pool = getattr(F, f"max_pool{d}d")
    row(calls.Item, "pool", d, lambda s, y: pool(y, 2, return_indices=True)[0], positive=True)
    layer_of = getattr(nn, f"MaxPool{d}d")
    parts: Any = {"parts": lambda: {"op": layer_of(2, return_indices=True)}, "positive": True}
    row(calls.Item, "pool-layer", d, lambda s, y: s.op(y)[0], **parts)


_PLACES = torch.tensor([5, 0, 5])
_SELECTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "method": lambda s, y: y.index_select(1, s.index),
    "torch": lambda s, y: torch.index_select(y, 1, s.index),
    "keywords": lambda s, y: torch.index_select(y, dim=1, index=s.index),
    "aten": lambda s, y: aten.index_select.default(y, 1, s.index),
    "computed": lambda s, y: torch.index_select(y, 1, (s.index + 1) % 4),
    "getitem": lambda s, y: y[:, s.index],
    "getitem-int32": lambda s, y: y[:, s.index.int()],
    "getitem-negative": lambda s, y: y[:, s.index - 4],
    "getitem-list": lambda s, y: y[:, [2, 0, -1]],
    "getitem-rest": lambda s, y: y[:, s.index, ...],
    "getitem-constant": lambda s, y: y[:, torch.tensor([1, 3, 2])],
    "aten-index": lambda s, y: aten.index.Tensor(y, [None, s.index]),
}


def _in_place_numbers(s: Any, y: Tensor) -> Tensor:
    y *= 3
    y /= -0.7
    y += 2
    y -= 0.3
    return y


_BY_NUMBER: dict[str, Callable[[Any, Any], Any]] = {
    "mul": lambda s, y: y * -0.3,
    "rmul": lambda s, y: 3 * y,
    "div": lambda s, y: y / 7,
    "neg": lambda s, y: -y,
    "add": lambda s, y: y + 1.5,
    "radd": lambda s, y: 2 + y,
    "sub": lambda s, y: y - 2.5,
    "rsub": lambda s, y: 1 - y,
    "in-place": _in_place_numbers,
    "torch": lambda s, y: torch.neg(torch.div(torch.mul(torch.add(y, 2, alpha=3), 0.5), 3)),
    "torch-sub": lambda s, y: torch.sub(y, 2, alpha=3),
    "methods": lambda s, y: y.mul(2).add(3, alpha=2).div(5).sub(1).neg(),
    "methods-in-place": lambda s, y: y.mul_(2).add_(3).div_(5).sub_(1),
}

for _d in (1, 2, 3):
    _pools(_d)
    _space(_d)
    _two(_d)
    _values(_d)
for _spelling, _apply in {
    "contiguous": lambda s, y: y.contiguous(),
    "clone": lambda s, y: y.clone(),
    "torch-clone": lambda s, y: torch.clone(y),
    "detach": lambda s, y: y.detach(),
    "data": lambda s, y: y.data,
    "whole-slice": lambda s, y: y[:],
}.items():
    row(calls.Passing, _spelling, 2, _apply)

layer(calls.PixelShuffle, 2, lambda: nn.PixelShuffle(2), norm=lambda: nn.BatchNorm2d(1))
row(calls.PixelShuffle, "functional", 2, lambda s, y: F.pixel_shuffle(y, 2), norm=lambda: nn.BatchNorm2d(1))
layer(calls.PixelUnshuffle, 2, lambda: nn.PixelUnshuffle(2), norm=lambda: nn.BatchNorm2d(16), alike=4)
row(
    calls.PixelUnshuffle,
    "functional",
    2,
    lambda s, y: F.pixel_unshuffle(y, 2),
    norm=lambda: nn.BatchNorm2d(16),
    alike=4,
)
layer(calls.ChannelShuffle, 2, lambda: nn.ChannelShuffle(2))
row(calls.ChannelShuffle, "functional", 2, lambda s, y: torch.channel_shuffle(y, 2))

_flat: Any = {"norm": lambda: nn.BatchNorm1d(CHANNELS)}
row(calls.Reshape, "flatten-space", 2, lambda s, y: y.flatten(2), **_flat)
row(calls.Reshape, "torch-flatten", 3, lambda s, y: torch.flatten(y, 2), **_flat)
row(calls.Reshape, "view", 2, lambda s, y: y.view(y.size(0), y.size(1), -1), **_flat)
row(calls.Reshape, "reshape", 2, lambda s, y: y.reshape(y.shape[0], CHANNELS, -1), **_flat)
row(calls.Reshape, "torch-reshape", 2, lambda s, y: torch.reshape(y, (y.shape[0], CHANNELS, -1)), **_flat)
row(calls.Reshape, "unsqueeze", 1, lambda s, y: y.unsqueeze(-1), norm=lambda: nn.BatchNorm2d(CHANNELS))
row(calls.Reshape, "unflatten", 1, lambda s, y: y.unflatten(2, (2, -1)), norm=lambda: nn.BatchNorm2d(CHANNELS))
layer(calls.Reshape, 2, lambda: nn.Flatten(2), **_flat)
layer(calls.Reshape, 1, lambda: nn.Unflatten(2, (2, 5)), norm=lambda: nn.BatchNorm2d(CHANNELS))
row(calls.Reshape, "flatten-alike", 2, lambda s, y: y.flatten(1), norm=lambda: nn.BatchNorm1d(400), alike=100)


def _shuffled_by_view(y: Any) -> Any:
    b, c, h, w = y.size()
    return y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def _shuffled_by_permute(y: Any) -> Any:
    return y.reshape(-1, 2, 2, y.shape[2], y.shape[3]).permute(0, 2, 1, 3, 4).reshape(-1, 4, y.shape[2], y.shape[3])


def _shuffled_over_pixels(y: Any) -> Any:
    turned = y.view(y.size(0), 2, y.size(1) // 2, -1).transpose(1, 2)
    return torch.reshape(turned, (y.shape[0], -1, y.size(2), y.size(3)))


row(calls.Permute, "shuffle-view", 2, lambda s, y: _shuffled_by_view(y))
row(calls.Permute, "shuffle-permute", 2, lambda s, y: _shuffled_by_permute(y))
row(calls.Permute, "shuffle-over-pixels", 2, lambda s, y: _shuffled_over_pixels(y))
row(calls.Permute, "shuffle-unflatten", 2, lambda s, y: y.unflatten(1, (2, -1)).swapaxes(1, 2).flatten(1, 2))
row(calls.Permute, "shuffle-relu", 2, lambda s, y: F.relu(y.unflatten(1, (2, -1))).transpose(1, 2).reshape(y.shape),
    positive=True, no_shift=True)  # fmt: skip
row(calls.Reshape, "channels-apart-and-joined", 2, lambda s, y: y.unflatten(1, (2, 2)).flatten(1, 2))

_fc: Any = {"norm": lambda: nn.BatchNorm1d(CHANNELS), "into": frozenset({"conv"})}
row(calls.Permute, "transpose", 0, lambda s, y: y.transpose(1, 2), **_fc)
row(calls.Permute, "transpose-negative", 0, lambda s, y: y.transpose(-1, -2), **_fc)
row(calls.Permute, "torch-transpose", 0, lambda s, y: torch.transpose(y, 2, 1), **_fc)
row(calls.Permute, "swapaxes", 0, lambda s, y: y.swapaxes(1, 2), **_fc)
row(calls.Permute, "permute", 0, lambda s, y: y.permute(0, 2, 1), **_fc)
row(calls.Permute, "permute-tuple", 0, lambda s, y: y.permute((0, -1, 1)), **_fc)
row(calls.Permute, "torch-permute", 0, lambda s, y: torch.permute(y, (0, 2, 1)), **_fc)
row(calls.Permute, "mT", 0, lambda s, y: y.mT, **_fc)
row(calls.Permute, "aten", 0, lambda s, y: aten.permute.default(y, [0, 2, 1]), **_fc)
row(calls.Reshape, "flatten-batch", 0, lambda s, y: y.flatten(0, 1), **_fc)


def built(case: Row, seed: int) -> tuple[nn.Module, Tensor]:
    """Return the model of a row with random weights, its conditions met, and an input."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        before: nn.Module = CONV[case.dims](3, CHANNELS, 3) if case.dims else nn.Linear(3, CHANNELS)
        norm = case.norm() if case.norm is not None else NORM[case.dims or 1](CHANNELS)
        parts = case.parts()

    def forward(s: Any, x: Tensor) -> Tensor:
        s.x = x
        return s.bn(case.apply(s, s.conv(x)))

    net = double(Net(forward, conv=before, bn=norm, x=None, **parts), seed=seed, negative=0.0 if case.positive else 0.5)
    if case.alike > 1:
        for tensor in (net.bn.running_mean, net.bn.running_var, net.bn.weight.data, net.bn.bias.data):
            tensor.copy_(tensor[:: case.alike].repeat_interleave(case.alike))
    if case.no_shift:
        set_affine(net.bn, shift=0.0)
    shape = (2, 3, *[12] * case.dims) if case.dims else (2, 5, 3)
    return net, values(*shape, seed=seed)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_a_batchnorm_crosses_the_op_and_nothing_changes(case: Row) -> None:
    assert_crossed(case, zlib.crc32(case.name.encode()))


class Branches(nn.Module):
    """The same input through several models: one export for all of them."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


def spellings() -> dict[str, list[Row]]:
    """Return the rows of images and of rows of features by what they have in common, but for their spelling."""
    families: dict[str, list[Row]] = {}
    for case in ROWS:
        if case.dims in (0, 2) and case.op is not calls.Passing:
            families.setdefault(f"{case.op.__name__}-{case.dims}d", []).append(case)
    return families


@pytest.mark.parametrize("family", spellings())
def test_batchnorms_cross_the_op_as_torch_export_spells_it(family: str) -> None:
    rows = spellings()[family]
    nets, examples = zip(*(built(case, zlib.crc32(case.name.encode())) for case in rows), strict=True)
    folding = folds(Branches(list(nets)), examples[0], capture="export")
    refused = {
        case.name: decision.detail
        for case, decision in zip(rows, folding.plan, strict=True)
        if decision.action != "fold"
    }
    assert not refused


@pytest.mark.long
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_batchnorm_crosses_the_op_whatever_the_numbers(case: Row, seed: int) -> None:
    assert_crossed(case, seed)


def assert_crossed(case: Row, seed: int) -> None:
    net, x = built(case, seed)

    folding = folds(net, x)

    (decision,) = folding.plan
    assert decision.action == "fold", decision.detail
    assert decision.direction == "backward"
    assert frozenset(decision.into) == case.into
    assert decision.reason is None
    facts = Facts(folding.captured)
    crossed = [node for node in facts.index if type(facts.call(node)) is case.op]
    names = {str(node.target) if node.op == "call_module" else node.name for node in crossed}
    assert names & set(decision.through), f"{decision.through} does not name {names}"
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in folding.module.modules())


def test_every_rule_has_a_row_here() -> None:
    elsewhere = {calls.TaughtPassing}  # a module of the user's: tests/test_extend.py
    assert set(RULES) - {case.op for case in ROWS} == elsewhere


@pytest.mark.parametrize("rule", RULES.values(), ids=[kind.__name__ for kind in RULES])
def test_every_rule_states_its_mathematics_and_documents_its_moves(rule: Any) -> None:
    assert rule.mathematics
    assert rule.backward.__doc__
    assert rule.forward.__doc__
    for condition in rule.conditions:
        assert condition.__doc__
