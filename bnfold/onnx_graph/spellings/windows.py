"""Operators that look through windows over space: pools, means, padding, resizing."""

from __future__ import annotations

import numpy as np

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.spelling import NotStaticError

__all__ = ["READERS"]


def _window(a: NodeArguments) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None, bool]:
    """Return kernel, strides, pads (first those before; None where the input's size decides), and whether it rounds up.

    Raises:
        NotStaticError: a window may lie beside the input altogether.
    """
    kernel = a.integers("kernel_shape") or ()
    dims = len(kernel)
    strides, dilations = a.integers("strides") or (1,) * dims, a.integers("dilations") or (1,) * dims
    auto, pads = str(a.attribute("auto_pad", "NOTSET") or "NOTSET"), a.integers("pads") or (0,) * (2 * dims)
    ceil = bool(a.integer("ceil_mode", 0))
    if not 1 <= dims <= 3 or len(strides) != dims or len(dilations) != dims or len(pads) != 2 * dims:
        raise NotStaticError("attributes of different lengths")
    if auto == "VALID":
        pads = (0,) * (2 * dims)
    elif auto != "NOTSET":
        return kernel, strides, None, ceil
    for dim in range(dims):
        reach = dilations[dim] * (kernel[dim] - 1) + 1
        before, after = pads[dim], pads[dim + dims]
        if not (0 <= before < reach and 0 <= after < reach) or (ceil and after + strides[dim] > reach):
            raise NotStaticError("windows beside the input")
    return kernel, strides, pads, ceil


def _max_pool(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    a.only_first()
    kernel, _, _, _ = _window(a)
    return ops.MaxPool(node, a.value(), len(kernel))


def _average_pool(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    kernel, strides, pads, ceil = _window(a)
    counted = bool(a.integer("count_include_pad", 0))
    dilated = any(step != 1 for step in a.integers("dilations") or ())
    even = pads is not None and pads[: len(kernel)] == pads[len(kernel) :]
    if pads is not None and even and not ceil and not dilated:
        return ops.AveragePool(node, a.value(), len(kernel), None, kernel, strides, pads[: len(kernel)], False, counted)
    # what is only said here to be padded may be: then a shift must not be counted in; and it is never one convolution
    may_pad = pads is None or any(pads) or ceil
    return ops.AveragePool(node, a.value(), len(kernel), None, kernel, strides, int(may_pad), True, counted)


def _global_average(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    dims = a.rank() - 2
    return ops.AdaptiveAveragePool(node, a.value(), dims, (1,) * dims) if dims >= 1 else None


def _global_max(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    dims = a.rank() - 2
    return ops.MaxPool(node, a.value(), dims, (1,) * dims) if dims >= 1 else None


def _mean(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    axes = a.axes(1, 18)
    if not axes and a.integer("noop_with_empty_axes", 0):
        return ops.Passing(node, a.value())
    rank = a.rank()
    if any(not -rank <= axis < rank for axis in axes or ()):
        return None
    return ops.Mean(node, a.value(), axes or None, bool(a.integer("keepdims", 1)))


# --- padding -----------------------------------------------------------------------------------------------------

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    mode, rank = _MODES.get(str(a.attribute("mode", "constant"))), a.rank()
    if mode is None:
        return None
    if a.version < 11:
        pads, value = a.integers("pads") or (), float(a.attribute("value", 0.0))
    else:
        pads = a.whole_numbers(1)
        value = float(a.numbers(2).reshape(-1)[0]) if a.has(2) and mode == "constant" else 0.0
    axes = a.whole_numbers(3) if a.has(3) else tuple(range(rank))
    if len(pads) != 2 * len(axes) or any(not -rank <= axis < rank for axis in axes):
        return None
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis % rank], after[axis % rank] = pads[place], pads[place + len(axes)]
    first = next((dim for dim in range(rank) if before[dim] or after[dim]), rank)
    widths = tuple(width for dim in range(rank - 1, first - 1, -1) for width in (before[dim], after[dim]))
    return ops.Pad(node, a.value(), widths, mode, value)


# --- resizing ----------------------------------------------------------------------------------------------------


def _resize(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """The weights of each of its modes sum to 1, but where it extrapolates."""
    mode = str(a.attribute("mode", "nearest"))
    if mode not in ("nearest", "linear", "cubic"):
        return None
    if str(a.attribute("coordinate_transformation_mode", "half_pixel")) == "tf_crop_and_resize":
        return None
    if str(a.attribute("keep_aspect_ratio_policy", "stretch")) != "stretch":
        return None
    if not _keeps_channels(a, 1 if a.version < 11 else 2):
        return None
    return ops.Interpolate(node, a.value(), mode)


def _keeps_channels(a: NodeArguments, scales: int) -> bool:
    """Whether batch and channels keep their sizes, and so their places."""
    rank = a.rank()
    axes = a.integers("axes")
    if axes is not None:
        return rank >= 3 and all(axis % rank >= 2 for axis in axes)
    if rank < 3:
        return False
    if a.has(scales):
        if a.is_constant(scales):
            factors = a.numbers(scales).reshape(-1)
            if factors.size:
                return factors.size == rank and bool(np.all(factors[:2] == 1))
        elif not a.has(scales + 1):
            return False
    before, after = a.facts.sizes(a.value()), a.facts.sizes_asked(a.node, scales + 1)
    if before is None or after is None or len(after) != rank:
        return False
    return all(
        entry in (size, size.number) and entry is not None for entry, size in zip(after[:2], before, strict=False)
    )


def _upsample(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if str(a.attribute("mode", "nearest")) not in ("nearest", "linear", "bilinear"):
        return None
    given = a.attribute("scales") if a.version < 9 else a.numbers(1).reshape(-1).tolist()
    rank = a.rank()
    if given is None or len(given) != rank or rank < 3 or list(given[:2]) != [1, 1]:
        return None
    return ops.Interpolate(node, a.value(), str(a.attribute("mode", "nearest")))


READERS = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Resize": _resize,
    "Upsample": _upsample,
}
