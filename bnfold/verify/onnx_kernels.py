"""Operators of ONNX in float64 for which the reference implementation takes long, is wrong, or rounds to float32.

That implementation is written to be read: a window of a pool is a loop in Python. Those here are computed by torch in
float64, which has a kernel for each, or by ONNX Runtime, whose kernels for these few are float64 throughout (those of
others are not: that of ``GroupNormalization`` is float32 inside).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KERNELS", "NARROW", "ROWS", "RUNTIME", "WHOLE", "WHOLE_BEFORE", "Arrays", "Kernel", "RuntimeKernel"]

Arrays: TypeAlias = "tuple[Any, ...]"
Kernel = Callable[[onnx.NodeProto, Sequence[Any], dict[str, Any]], "Arrays | None"]
"""From a node, its arguments and its attributes to its outputs, or None to leave it to the next who can."""


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W")))  # what may not be written to is copied


# --- windows over space ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """A window that slides over each dimension of space: lists with an entry for each.

    Attributes:
        before: how much is padded before the input.
        after: how much is padded after it, as the attributes say.
        out: how many places it stands at.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    out: list[int]

    def padded(self, x: Tensor, value: float) -> Tensor:
        """Return ``x`` padded, or cut, to just what the window sees."""
        wanted: list[int] = []
        for dim in reversed(range(len(self.kernel))):
            reach = (self.out[dim] - 1) * self.strides[dim] + self.dilations[dim] * (self.kernel[dim] - 1) + 1
            wanted += [self.before[dim], reach - x.shape[dim + 2] - self.before[dim]]
        return F.pad(x, wanted, value=value) if any(wanted) else x

    def counts(self, sizes: Sequence[int], *, padding: bool) -> Tensor:
        """Return of how many numbers each window is the mean; those of the padding count if asked for."""
        found = torch.ones((1,) * len(self.kernel), dtype=torch.float64)
        for dim, size in enumerate(sizes):
            places = np.arange(self.out[dim])[:, None] * self.strides[dim] - self.before[dim]
            seen = places + np.arange(self.kernel[dim])[None] * self.dilations[dim]
            low, high = (-self.before[dim], size + self.after[dim]) if padding else (0, size)
            count = torch.from_numpy(((seen >= low) & (seen < high)).sum(1).astype(np.float64))
            found = found * count.reshape([-1 if each == dim else 1 for each in range(len(self.kernel))])
        return found


def _window(x: Any, kernel: Sequence[int], attributes: dict[str, Any]) -> _Window | None:
    """Return the window of a convolution or a pool over ``x``; None where what is asked for is unusual."""
    sizes, dims = x.shape[2:], len(kernel)
    strides, dilations = (list(attributes.get(name) or [1] * dims) for name in ("strides", "dilations"))
    pads, auto = list(attributes.get("pads") or [0] * (2 * dims)), attributes.get("auto_pad") or "NOTSET"
    ceil = bool(attributes.get("ceil_mode"))
    if dims > 3 or len(sizes) != dims or (auto != "NOTSET" and (ceil or set(dilations) != {1})):
        return None
    before, after, out = [], [], []
    for dim, (size, step) in enumerate(zip(sizes, strides, strict=True)):
        reach = dilations[dim] * (kernel[dim] - 1) + 1
        if auto.startswith("SAME"):
            many = -(-size // step)
            total = max((many - 1) * step + reach - size, 0)
            first = total // 2 if auto == "SAME_UPPER" else total - total // 2
            last = total - first
        else:
            first, last = (pads[dim], pads[dim + dims]) if auto == "NOTSET" else (0, 0)
            room = size + first + last - reach
            if room < 0:
                return None
            many = (-(-room // step) if ceil else room // step) + 1
            if ceil and (many - 1) * step >= size + first:
                many -= 1  # it would begin behind the input
        before.append(first)
        after.append(last)
        out.append(many)
    return _Window(list(kernel), strides, dilations, before, after, out)


def _conv(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    x, weight, bias = (*args, None)[:3]
    window = _window(x, weight.shape[2:], attributes)
    if window is None:
        return None
    dims = len(window.kernel)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    given, before, padding = None if bias is None else _tensor(bias), _tensor(x), window.before
    if window.before != window.after:
        before, padding = window.padded(before, 0.0), [0] * dims
    group = attributes.get("group") or 1
    y = function(before, _tensor(weight), given, window.strides, padding, window.dilations, group)
    return (y.numpy(),)


def _conv_transpose(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    x, weight, bias = (*args, None)[:3]
    dims, auto = weight.ndim - 2, attributes.get("auto_pad") or "NOTSET"
    if attributes.get("output_shape") or dims > 3:
        return None
    strides, dilations = (list(attributes.get(name) or [1] * dims) for name in ("strides", "dilations"))
    extra, pads = (list(attributes.get(n) or [0] * k) for n, k in (("output_padding", dims), ("pads", 2 * dims)))
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    given = None if bias is None else _tensor(bias)
    group = attributes.get("group") or 1
    y = function(_tensor(x), _tensor(weight), given, strides, 0, extra, group, dilations)
    for dim in range(dims):
        first, last = (pads[dim], pads[dim + dims]) if auto == "NOTSET" else (0, 0)
        if auto.startswith("SAME"):
            total = y.shape[dim + 2] - x.shape[dim + 2] * strides[dim]
            if total < 0:
                return None
            first = total // 2 if auto == "SAME_UPPER" else total - total // 2
            last = total - first
        y = y.narrow(dim + 2, first, y.shape[dim + 2] - first - last)
    return (y.numpy(),)


def _max_pool(node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    window = _window(args[0], attributes["kernel_shape"], attributes)
    if window is None or len([name for name in node.output if name]) != 1:
        return None
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(window.kernel) - 1]
    padded = window.padded(_tensor(args[0]), -torch.inf)
    y = function(padded, window.kernel, window.strides, 0, window.dilations)
    return None if bool(torch.isneginf(y).any()) else (y.numpy(),)  # a window may have seen nothing but padding


def _average_pool(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    x, kernel = args[0], list(attributes["kernel_shape"])
    window = _window(x, kernel, attributes)
    if window is None:
        return None
    dims = len(kernel)
    counts = window.counts(x.shape[2:], padding=bool(attributes.get("count_include_pad")))
    if not bool((counts > 0).all()):
        return None
    padded = window.padded(_tensor(x), 0.0)
    if set(window.dilations) == {1}:
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
        return ((pool(padded, kernel, window.strides) * (prod(kernel) / counts)).numpy(),)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    one = padded.reshape(-1, 1, *padded.shape[2:])
    sums = function(one, one.new_ones((1, 1, *kernel)), None, window.strides, 0, window.dilations)
    return ((sums.reshape(*x.shape[:2], *window.out) / counts).numpy(),)


# --- others ------------------------------------------------------------------------------------------------------


def _batch_norm(node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    if attributes.get("training_mode") or len([name for name in node.output if name]) > 1:
        return None
    x, scale, bias, mean, variance = (_tensor(value) for value in args)
    return (F.batch_norm(x, mean, variance, scale, bias, eps=float(attributes["epsilon"])).numpy(),)


def _dequantise(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    """Whole numbers times a scale: one of all, or one along an axis."""
    q, scale, zero = (*args, None)[:3]
    axis, scale = attributes.get("axis"), np.asarray(scale)
    if q.dtype.kind not in "iu" or attributes.get("block_size") or scale.ndim > 1:
        return None
    shape = [1] * q.ndim
    if scale.size > 1:
        shape[1 if axis is None else axis] = -1
    whole = q.astype(np.float64)
    if zero is not None:
        whole = whole - np.asarray(zero).astype(np.float64).reshape(shape)
    return (whole * scale.reshape(shape if scale.ndim else ()),)


def _erf(_node: onnx.NodeProto, args: Sequence[Any], _attributes: dict[str, Any]) -> Arrays | None:
    return (torch.erf(_tensor(args[0])).numpy(),)


def _gelu(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    approximate = attributes.get("approximate") or "none"
    return (F.gelu(_tensor(args[0]), approximate=str(approximate)).numpy(),)


def _grid_sample(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(str(attributes["mode"]), str(attributes["mode"]))
    corners = bool(attributes.get("align_corners"))
    return (F.grid_sample(_tensor(args[0]), _tensor(args[1]), mode, str(attributes["padding_mode"]), corners).numpy(),)


def _lrn(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    """Divide by the squares of the channels beside each; the reference leaves the last of them out."""
    x, size = _tensor(args[0]), int(attributes["size"])
    alpha, beta, bias = (float(attributes.get(name) or 0.0) for name in ("alpha", "beta", "bias"))
    squares = F.pad(x.square().movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2))
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return ((x / (bias + alpha / size * sums) ** beta).numpy(),)


def _of_rows(compute: Callable[[Tensor], Tensor]) -> Kernel:
    """The kernel of what works on rows: all dimensions from an axis on, which is 1 unless told, are one."""

    def kernel(node: onnx.NodeProto, args: Sequence[Any], _attributes: dict[str, Any]) -> Arrays | None:
        x = _tensor(args[0])  # the reference gives no attributes to what it has as a function of one value
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1) % x.ndim
        return (compute(x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))).reshape(x.shape).numpy(),)

    return kernel


def _relu(_node: onnx.NodeProto, args: Sequence[Any], _attributes: dict[str, Any]) -> Arrays | None:
    return (torch.relu(_tensor(args[0])).numpy(),) if np.asarray(args[0]).dtype == np.float64 else None


def _resize(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    """Resize height and width as ``F.interpolate`` does; whatever else it is asked is left to the reference."""
    x, _, scales, sizes = (*args, None, None, None)[:4]
    mode, coordinates = str(attributes.get("mode")), str(attributes.get("coordinate_transformation_mode"))
    asked = {
        name: attributes.get(name) for name in ("antialias", "exclude_outside", "axes", "keep_aspect_ratio_policy")
    }
    if x.ndim != 4 or any(value not in (None, 0, "stretch") for value in asked.values()):
        return None
    if sizes is not None and len(sizes):
        size = [int(value) for value in sizes]
    elif scales is not None and len(scales) and all(float(scale).is_integer() for scale in scales):
        size = [int(extent * scale) for extent, scale in zip(x.shape, scales, strict=True)]
    else:
        return None
    if size[:2] != list(x.shape[:2]):
        return None
    if (
        mode == "linear"
        and (coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"))
        and min(size[2:]) > 1
    ):
        y = F.interpolate(_tensor(x), size[2:], mode="bilinear", align_corners=coordinates == "align_corners")
        return (y.numpy(),)
    cubic = mode == "cubic" and attributes.get("cubic_coeff_a") in (None, -0.75)
    if cubic and coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners") and min(size[2:]) > 1:
        y = F.interpolate(_tensor(x), size[2:], mode="bicubic", align_corners=coordinates == "align_corners")
        return (y.numpy(),)
    if mode == "nearest" and coordinates == "asymmetric" and str(attributes.get("nearest_mode")) == "floor":
        return (F.interpolate(_tensor(x), size[2:], mode="nearest").numpy(),)
    return None


class RuntimeKernel:
    """A node under ONNX Runtime in float64.

    Args:
        version: of the operators.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self._session: Any = None

    def __call__(self, node: onnx.NodeProto, args: Sequence[Any]) -> Arrays | None:
        """Return what it computes; None where ONNX Runtime is not installed or does not take it."""
        names = [f"i{place}" if array is not None else "" for place, array in enumerate(args)]
        feed = {name: np.asarray(array) for name, array in zip(names, args, strict=True) if name}
        try:
            if self._session is None:
                self._session = self._of(node, names, feed)
            return tuple(self._session.run(None, feed))
        except Exception:  # whatever it makes of the node: then the reference implementation is asked
            return None

    def _of(self, node: onnx.NodeProto, names: list[str], feed: dict[str, Any]) -> Any:
        import onnxruntime

        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.input[:] = names
        types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
        inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([alone], "node", inputs, outputs)
        opsets = [onnx.helper.make_opsetid("", self.version)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


NARROW = frozenset({"AffineGrid", "CausalConvWithState", "LinearAttention", "MelWeightMatrix"})
"""Operators that the reference rounds to float32 on the way."""

KERNELS: dict[str, Kernel] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantise,
    "Erf": _erf,
    "Gelu": _gelu,
    "GridSample": _grid_sample,
    "LRN": _lrn,
    "MaxPool": _max_pool,
    "Relu": _relu,
    "Resize": _resize,
    "Upsample": _resize,
}
ROWS: dict[str, Kernel] = {
    "Hardmax": _of_rows(lambda rows: F.one_hot(rows.argmax(1), rows.shape[1]).to(rows.dtype)),
    "LogSoftmax": _of_rows(lambda rows: rows.log_softmax(1)),
    "Softmax": _of_rows(lambda rows: rows.softmax(1)),
}
"""Those of before opset 13, which the reference takes for what they are since then."""
WHOLE_BEFORE = {"DequantizeLinear": 19}
"""Those that the reference knows from an opset on only."""
WHOLE = frozenset({"Erf", "Gelu", "GridSample"})
"""Those that leave nothing to the reference."""

RUNTIME = frozenset({"CumSum", "GatherElements", "GatherND", "MaxPool", "ScatterElements", "ScatterND", "TopK"})
"""Operators that ONNX Runtime is asked for before the reference, which is slow or goes wrong for some."""
