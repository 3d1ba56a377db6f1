"""Functions that look through windows over space: pooling, means, padding, resizing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.signature import NotStaticError, Signature, static
from bnfold.graph.vocabulary.reading import ANYTHING, Arguments, FunctionReader, Row, spelled, value_of

__all__ = ["FUNCTIONS", "METHODS"]


def _max_pool(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        return calls.MaxPool(node, value_of(a["input"]), bool(static(a.get("return_indices", False))), spatial_dims)

    return read


def _max_pool_with_indices(spatial_dims: int) -> FunctionReader:
    return lambda node, a: calls.MaxPool(node, value_of(a["input"]), True, spatial_dims)


def _adaptive_average(spatial_dims: int) -> FunctionReader:
    return lambda node, a: calls.AdaptiveAveragePool(node, value_of(a["input"]), spatial_dims)


def _average_pool(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        kernel, stride, padding = static(a["kernel_size"]), static(a["stride"]), static(a["padding"])
        ceil, include = bool(static(a["ceil_mode"])), bool(static(a["count_include_pad"]))
        divisor = static(a.get("divisor_override"))
        x = value_of(a["input"])
        return calls.AveragePool(node, x, spatial_dims, kernel, stride or None, padding, ceil, include, divisor)

    return read


def _mean(node: Node, a: Arguments) -> calls.Call | None:
    dims = static(a["dim"])
    if a.get("dtype") is not None:
        return None
    return calls.Mean(
        node, value_of(a["input"]), (dims,) if isinstance(dims, int) else dims or None, bool(static(a["keepdim"]))
    )


_SUM_TO_ONE = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")


def _interpolate(node: Node, a: Arguments) -> calls.Call | None:
    mode = static(a["mode"])
    return calls.Interpolate(node, value_of(a["input"]), mode) if mode in _SUM_TO_ONE else None


def _pad(node: Node, a: Arguments) -> calls.Call:
    try:
        widths = static(a["pad"])
    except NotStaticError:
        widths = None  # widths computed from the shape: legal only where no width matters
    mode = static(a["mode"])
    return calls.Pad(node, value_of(a["input"]), widths, mode, float(static(a["value"]) or 0.0))


def _aten_constant_pad(node: Node, a: Arguments) -> calls.Call:
    return _pad(node, {**a, "mode": "constant"})


def _upsample(node: Node, _a: Arguments) -> calls.Call:
    return calls.Interpolate(node, value_of(node.args[0]), str(node.target))


aten = torch.ops.aten
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

FUNCTIONS: dict[Any, Row] = {
    F.interpolate: (_INTERPOLATE, _interpolate),
    F.pad: (_PAD, _pad),
    aten.pad.default: (_PAD, _pad),
    aten.constant_pad_nd.default: (Signature("input, pad, value=0"), _aten_constant_pad),
    torch.mean: (_MEAN, _mean),
    aten.mean.dim: (_MEAN, _mean),
}
METHODS: dict[str, Row] = {"mean": (_MEAN, _mean)}


def _pools(size: int) -> None:
    """The pools over ``size`` dimensions."""
    plain, with_indices = _max_pool(size), _max_pool_with_indices(size)
    maxima = (
        getattr(F, f"max_pool{size}d"),
        getattr(torch, f"max_pool{size}d"),
        getattr(aten, f"max_pool{size}d").default,
    )
    spelled(FUNCTIONS, (_MAX, plain), *maxima)
    both = (getattr(F, f"max_pool{size}d_with_indices"), getattr(aten, f"max_pool{size}d_with_indices").default)
    spelled(FUNCTIONS, (_MAX, with_indices), *both)
    FUNCTIONS[getattr(F, f"adaptive_max_pool{size}d")] = (_ADAPTIVE, plain)
    adaptive = (
        getattr(F, f"adaptive_max_pool{size}d_with_indices"),
        getattr(aten, f"adaptive_max_pool{size}d").default,
    )
    spelled(FUNCTIONS, (_ADAPTIVE, with_indices), *adaptive)
    averages = (getattr(F, f"avg_pool{size}d"), getattr(aten, f"avg_pool{size}d").default)
    spelled(FUNCTIONS, (_AVG, _average_pool(size)), *averages)
    averages = (getattr(F, f"adaptive_avg_pool{size}d"), getattr(aten, f"adaptive_avg_pool{size}d").default)
    spelled(FUNCTIONS, (_ADAPTIVE, _adaptive_average(size)), *averages)


for _size in (1, 2, 3):
    _pools(_size)
for _name in (
    "nearest1d nearest2d nearest3d _nearest_exact1d _nearest_exact2d _nearest_exact3d linear1d bilinear2d bicubic2d "
    "trilinear3d _bilinear2d_aa _bicubic2d_aa".split()
):
    _prefix = "_upsample" if _name.startswith("_") else "upsample_"
    for _overload in ("default", "vec"):
        FUNCTIONS[getattr(getattr(aten, _prefix + _name), _overload)] = (ANYTHING, _upsample)
