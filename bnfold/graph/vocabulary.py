"""Reads nodes as :mod:`bnfold.graph.calls`: one vocabulary over modules, functions, methods and aten operators.

To teach it another spelling of a known operation, add a row to one of the tables at the end. A module type is matched
exactly: a subclass may compute anything, so it is either traced through by the capture or opaque here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.inplace import IN_PLACE_ADD, IN_PLACE_SUBTRACT
from bnfold.graph.proof import behaves_like_batch_norm, measured_batch_norm
from bnfold.graph.signature import NotStaticError, Signature, static

__all__ = ["METADATA_ATTRIBUTES", "METADATA_METHODS", "arguments_of", "read_function", "read_module"]

Arguments: TypeAlias = dict[str, Any]
ModuleReader: TypeAlias = Callable[[Node, Any, str], calls.Call]
FunctionReader: TypeAlias = Callable[[Node, Arguments], "calls.Call | None"]


def read_module(node: Node, module: nn.Module) -> calls.Call | None:
    """Read a ``call_module`` node; None for a module of a type that is not in the table."""
    reader = MODULES.get(type(module))
    if reader is None and behaves_like_batch_norm(module):
        reader = _frozen_module
    if reader is None or len(node.args) + len(node.kwargs) != 1:
        return None  # more than the input: output_size of a transposed convolution decides its shape, say
    try:
        return reader(node, module, str(node.target))
    except NotStaticError:
        return None


def read_function(node: Node) -> calls.Call | None:
    """Read a ``call_function`` or ``call_method`` node; None for one that is not in the tables."""
    row = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    if row is None:
        return None
    signature, reader = row
    try:
        return reader(node, signature.bind(node))
    except NotStaticError:
        return None


def arguments_of(node: Node) -> Signature:
    """Return the signature by which a known function node's arguments are read and written."""
    row = METHODS[str(node.target)] if node.op == "call_method" else FUNCTIONS[node.target]
    return row[0]


# --- modules ------------------------------------------------------------------------------------------------------


def _input(node: Node) -> Node:
    value = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return _value(value)


def _value(value: Any) -> Node:
    if not isinstance(value, Node):
        raise NotStaticError("the operation is called on a literal")
    return value


def _parameter(module: nn.Module, name: str, target: str) -> calls.Source:
    return None if getattr(module, name, None) is None else f"{target}.{name}"


def _convolution_module(spatial_dims: int) -> ModuleReader:
    def read(node: Node, module: Any, target: str) -> calls.Call:
        return calls.Convolution(
            node,
            _input(node),
            f"{target}.weight",
            _parameter(module, "bias", target),
            spatial_dims,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.padding_mode,
        )

    return read


def _transposed_module(spatial_dims: int) -> ModuleReader:
    def read(node: Node, module: Any, target: str) -> calls.Call:
        bias = _parameter(module, "bias", target)
        return calls.TransposedConvolution(
            node,
            _input(node),
            f"{target}.weight",
            bias,
            spatial_dims,
            module.stride,
            module.padding,
            module.output_padding,
            module.groups,
            module.dilation,
        )

    return read


def _batch_norm_module(node: Node, module: Any, target: str) -> calls.Call:
    uses_batch = module.running_mean is None or module.running_var is None
    return calls.BatchNorm(
        node,
        _input(node),
        _parameter(module, "running_mean", target),
        _parameter(module, "running_var", target),
        _parameter(module, "weight", target),
        _parameter(module, "bias", target),
        float(module.eps),
        uses_batch or module.training,
        target,
        _LAYER_RANK.get(type(module)),
    )


def _frozen_module(node: Node, module: Any, target: str) -> calls.Call:
    """A layer of unknown code that was measured to be an eval-mode BatchNorm."""
    mean, variance = f"{target}.running_mean", f"{target}.running_var"
    weight, bias = _parameter(module, "weight", target), _parameter(module, "bias", target)
    measured = measured_batch_norm(module)
    assert measured is not None
    x, eps, rank = _input(node), measured.eps, measured.rank
    return calls.BatchNorm(node, x, mean, variance, weight, bias, eps, False, target, rank)


_LAYER_RANK: dict[type[nn.Module], int] = {
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.InstanceNorm1d: 3,  # also takes an input without a batch, whose channels stand in dimension 0
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}


def _average_pool_module(spatial_dims: int) -> ModuleReader:
    def read(node: Node, module: Any, _target: str) -> calls.Call:
        return calls.AveragePool(
            node,
            _input(node),
            spatial_dims,
            static(module.kernel_size),
            static(module.stride),
            static(module.padding),
            bool(module.ceil_mode),
            bool(module.count_include_pad),
            getattr(module, "divisor_override", None),
        )

    return read


def _max_pool_module(spatial_dims: int) -> ModuleReader:
    return lambda node, module, _: calls.MaxPool(node, _input(node), bool(module.return_indices), spatial_dims)


def _adaptive_average_module(spatial_dims: int) -> ModuleReader:
    return lambda node, _module, _target: calls.AdaptiveAveragePool(node, _input(node), spatial_dims)


def _pad_module(mode: str, spatial_dims: int) -> ModuleReader:
    def read(node: Node, module: Any, _target: str) -> calls.Call:
        padding = static(module.padding)
        widths = (padding,) * (2 * spatial_dims) if isinstance(padding, int) else padding
        return calls.Pad(node, _input(node), widths, mode, float(getattr(module, "value", 0.0)))

    return read


def _upsample_module(node: Node, module: Any, _target: str) -> calls.Call:
    return calls.Interpolate(node, _input(node), str(getattr(module, "mode", "nearest")))


def _linear_module(node: Node, module: Any, target: str) -> calls.Call:
    return calls.Linear(node, _input(node), f"{target}.weight", _parameter(module, "bias", target))


def _embedding_module(node: Node, module: Any, target: str) -> calls.Call:
    if module.max_norm is not None:  # renormalises its weight when called
        raise NotStaticError("embedding with max_norm")
    return calls.Embedding(node, _input(node), f"{target}.weight", None)


def _affine_norm_module(node: Node, module: Any, target: str) -> calls.Call:
    weight, bias = _parameter(module, "weight", target), _parameter(module, "bias", target)
    if isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) != 1:
            raise NotStaticError("layer norm over several dimensions")
        return calls.AffineNormalization(node, _input(node), weight, bias, -1, int(module.normalized_shape[0]))
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    rank = _LAYER_RANK.get(type(module))
    return calls.AffineNormalization(node, _input(node), weight, bias, 1, int(channels), rank)


def _instance_norm_module(node: Node, module: Any, target: str) -> calls.Call:
    tracked = module.track_running_stats and module.running_mean is not None
    if tracked and not module.training:  # with running statistics it is an eval-mode BatchNorm
        return _batch_norm_module(node, module, target)
    return _affine_norm_module(node, module, target)


def _explicit_module(node: Node, _module: Any, target: str) -> calls.Call:
    return calls.ExplicitAffine(node, _input(node), f"{target}.weight", f"{target}.bias")


def _simple(make: Callable[[Node, Node], calls.Call]) -> ModuleReader:
    return lambda node, _module, _target: make(node, _input(node))


def _dropout_module(node: Node, module: Any, _target: str) -> calls.Call:
    return (calls.ActiveDropout if module.training and module.p > 0 else calls.Passing)(node, _input(node))


MODULES: dict[type[nn.Module], ModuleReader] = {
    nn.Conv1d: _convolution_module(1),
    nn.Conv2d: _convolution_module(2),
    nn.Conv3d: _convolution_module(3),
    nn.ConvTranspose1d: _transposed_module(1),
    nn.ConvTranspose2d: _transposed_module(2),
    nn.ConvTranspose3d: _transposed_module(3),
    nn.Linear: _linear_module,
    nn.Embedding: _embedding_module,
    nn.LayerNorm: _affine_norm_module,
    nn.GroupNorm: _affine_norm_module,
    nn.MaxPool1d: _max_pool_module(1),
    nn.MaxPool2d: _max_pool_module(2),
    nn.MaxPool3d: _max_pool_module(3),
    nn.AdaptiveMaxPool1d: _max_pool_module(1),
    nn.AdaptiveMaxPool2d: _max_pool_module(2),
    nn.AdaptiveMaxPool3d: _max_pool_module(3),
    nn.AvgPool1d: _average_pool_module(1),
    nn.AvgPool2d: _average_pool_module(2),
    nn.AvgPool3d: _average_pool_module(3),
    nn.AdaptiveAvgPool1d: _adaptive_average_module(1),
    nn.AdaptiveAvgPool2d: _adaptive_average_module(2),
    nn.AdaptiveAvgPool3d: _adaptive_average_module(3),
    nn.Identity: _simple(calls.Passing),
    nn.ReLU: _simple(calls.PositivelyHomogeneous),
    nn.LeakyReLU: _simple(calls.PositivelyHomogeneous),
    nn.PReLU: _simple(calls.PositivelyHomogeneous),
    nn.PixelShuffle: lambda n, m, _: calls.PixelShuffle(n, _input(n), int(m.upscale_factor)),
    nn.PixelUnshuffle: lambda n, m, _: calls.PixelUnshuffle(n, _input(n), int(m.downscale_factor)),
    nn.ChannelShuffle: lambda n, m, _: calls.ChannelShuffle(n, _input(n), int(m.groups)),
    nn.Flatten: _simple(calls.Reshape),
    nn.Unflatten: _simple(calls.Reshape),
    nn.Upsample: _upsample_module,
    nn.UpsamplingNearest2d: _upsample_module,
    nn.UpsamplingBilinear2d: _upsample_module,
}
for _name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"):
    MODULES[getattr(nn, _name)] = _batch_norm_module
for _name in ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"):
    MODULES[getattr(nn, _name)] = _instance_norm_module
for _name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
    MODULES[getattr(nn, _name)] = _dropout_module
for _size in (1, 2, 3):
    MODULES[getattr(nn, f"ConstantPad{_size}d")] = _pad_module("constant", _size)
    MODULES[getattr(nn, f"ZeroPad{_size}d")] = _pad_module("constant", _size)
    MODULES[getattr(nn, f"ReflectionPad{_size}d")] = _pad_module("reflect", _size)
    MODULES[getattr(nn, f"ReplicationPad{_size}d")] = _pad_module("replicate", _size)
    MODULES[getattr(nn, f"CircularPad{_size}d")] = _pad_module("circular", _size)


def register_module(kind: type[nn.Module], reader: ModuleReader) -> None:
    """Add a row to the module table (used by :mod:`bnfold.fold.explicit` for its own layer)."""
    MODULES[kind] = reader


def explicit_affine_reader() -> ModuleReader:
    """Return the reader of bnfold's own explicit affine layer."""
    return _explicit_module


# --- functions and methods ---------------------------------------------------------------------------------------


def _source(value: Any) -> calls.Source:
    if value is None:
        return None
    node = _value(value)
    return str(node.target) if node.op == "get_attr" else node


def _convolution(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        x, weight, bias = _value(a["input"]), _source(a["weight"]), _source(a["bias"])
        stride, padding, dilation = static(a["stride"]), static(a["padding"]), static(a["dilation"])
        return calls.Convolution(node, x, weight, bias, spatial_dims, stride, padding, dilation, static(a["groups"]))

    return read


def _transposed(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        x, weight, bias = _value(a["input"]), _source(a["weight"]), _source(a["bias"])
        stride, padding, extra = static(a["stride"]), static(a["padding"]), static(a["output_padding"])
        groups, dilation = static(a["groups"]), static(a["dilation"])
        return calls.TransposedConvolution(
            node, x, weight, bias, spatial_dims, stride, padding, extra, groups, dilation
        )

    return read


def _linear(node: Node, a: Arguments) -> calls.Call:
    return calls.Linear(node, _value(a["input"]), _source(a["weight"]), _source(a["bias"]))


def _embedding(node: Node, a: Arguments) -> calls.Call | None:
    if a.get("max_norm") is not None:
        return None
    return calls.Embedding(node, _value(a["input"]), _source(a["weight"]), None)


def _batch_norm(node: Node, a: Arguments) -> calls.Call:
    statistics = (_source(a["running_mean"]), _source(a["running_var"]))
    name = str(statistics[0]).rpartition(".")[0] or None if isinstance(statistics[0], str) else None
    if name is None and isinstance(a["weight"], Node) and a["weight"].op == "get_attr":
        name = str(a["weight"].target).rpartition(".")[0] or None
    uses_batch = bool(static(a["training"])) or None in statistics
    weight, bias = _source(a["weight"]), _source(a["bias"])
    return calls.BatchNorm(node, _value(a["input"]), *statistics, weight, bias, static(a["eps"]), uses_batch, name)


def _instance_norm(node: Node, a: Arguments) -> calls.Call | None:
    if static(a["use_input_stats"]) or a["running_mean"] is None:
        return None
    return _batch_norm(node, {**a, "training": False})


def _group_norm(node: Node, a: Arguments) -> calls.Call | None:
    weight, bias = _source(a["weight"]), _source(a["bias"])
    return None if weight is None else calls.AffineNormalization(node, _value(a["input"]), weight, bias, 1, 0)


def _layer_norm(node: Node, a: Arguments) -> calls.Call | None:
    shape = static(a["normalized_shape"])
    sizes = (shape,) if isinstance(shape, int) else shape
    weight, bias = _source(a["weight"]), _source(a["bias"])
    if len(sizes) != 1:
        return None
    return calls.AffineNormalization(node, _value(a["input"]), weight, bias, -1, int(sizes[0]))


def _max_pool(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        return calls.MaxPool(node, _value(a["input"]), bool(static(a.get("return_indices", False))), spatial_dims)

    return read


def _max_pool_with_indices(spatial_dims: int) -> FunctionReader:
    return lambda node, a: calls.MaxPool(node, _value(a["input"]), True, spatial_dims)


def _adaptive_average(spatial_dims: int) -> FunctionReader:
    return lambda node, a: calls.AdaptiveAveragePool(node, _value(a["input"]), spatial_dims)


def _average_pool(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        kernel, stride, padding = static(a["kernel_size"]), static(a["stride"]), static(a["padding"])
        ceil, include = bool(static(a["ceil_mode"])), bool(static(a["count_include_pad"]))
        divisor = static(a.get("divisor_override"))
        x = _value(a["input"])
        return calls.AveragePool(node, x, spatial_dims, kernel, stride or None, padding, ceil, include, divisor)

    return read


def _one_input(make: Callable[[Node, Node], calls.Call]) -> FunctionReader:
    return lambda node, a: make(node, _value(a["input"]))


def _dropout(node: Node, a: Arguments) -> calls.Call:
    active = bool(static(a["training"])) and static(a["p"]) > 0
    return (calls.ActiveDropout if active else calls.Passing)(node, _value(a["input"]))


def _aten_dropout(node: Node, a: Arguments) -> calls.Call:
    return _dropout(node, {"input": a["input"], "p": a["p"], "training": a["train"]})


def _mean(node: Node, a: Arguments) -> calls.Call | None:
    dims = static(a["dim"])
    if a.get("dtype") is not None:
        return None
    return calls.Mean(
        node, _value(a["input"]), (dims,) if isinstance(dims, int) else dims or None, bool(static(a["keepdim"]))
    )


_SUM_TO_ONE = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")


def _interpolate(node: Node, a: Arguments) -> calls.Call | None:
    mode = static(a["mode"])
    return calls.Interpolate(node, _value(a["input"]), mode) if mode in _SUM_TO_ONE else None


def _pad(node: Node, a: Arguments) -> calls.Call:
    try:
        widths = static(a["pad"])
    except NotStaticError:
        widths = None  # widths computed from the shape: legal only where no width matters
    mode = static(a["mode"])
    return calls.Pad(node, _value(a["input"]), widths, mode, float(static(a["value"]) or 0.0))


def _aten_constant_pad(node: Node, a: Arguments) -> calls.Call:
    return _pad(node, {**a, "mode": "constant"})


def _pixel_shuffle(node: Node, a: Arguments) -> calls.Call:
    return calls.PixelShuffle(node, _value(a["input"]), static(a["factor"]))


def _pixel_unshuffle(node: Node, a: Arguments) -> calls.Call:
    return calls.PixelUnshuffle(node, _value(a["input"]), static(a["factor"]))


def _channel_shuffle(node: Node, a: Arguments) -> calls.Call:
    return calls.ChannelShuffle(node, _value(a["input"]), static(a["groups"]))


def _reshape(node: Node, _a: Arguments) -> calls.Call:
    return calls.Reshape(node, _value(node.args[0] if node.args else node.kwargs["input"]))


class _Anything(Signature):
    """A signature for operations whose arguments only say sizes, which are known from the shapes."""

    def __init__(self) -> None:
        super().__init__("input")

    def bind(self, node: Node) -> dict[str, Any]:  # noqa: ARG002
        return {}


def _method_view(node: Node, _a: Arguments) -> calls.Call | None:
    if len(node.args) == 2 and isinstance(node.args[1], torch.dtype):  # reinterprets bits
        return None
    return _reshape(node, {})


def _method_permute(node: Node, _a: Arguments) -> calls.Call:
    order = node.args[1:] if len(node.args) != 2 or isinstance(node.args[1], int) else node.args[1]
    if node.kwargs:
        order = node.kwargs.get("dims", order)
    return calls.Permute(node, _value(node.args[0]), static(order))


def _transpose(node: Node, a: Arguments) -> calls.Call:
    return calls.Permute(node, _value(a["input"]), (static(a["dim0"]), static(a["dim1"])), swap=True)


def _concatenate(node: Node, a: Arguments) -> calls.Call | None:
    parts = a["tensors"]
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, Node) for part in parts):
        return None
    return calls.Concatenate(node, tuple(parts), static(a["dim"]))


def _add(sign: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call | None:
        left, right = a["input"], a["other"]
        if isinstance(left, Node) and not isinstance(right, Node) and right == 0:
            return calls.Passing(node, left)  # `x + 0`, as sum([...]) writes it
        if isinstance(right, Node) and not isinstance(left, Node) and left == 0 and sign > 0:
            return calls.Passing(node, right)
        if a.get("alpha", 1) != 1 or not isinstance(left, Node) or not isinstance(right, Node):
            return None
        return calls.Add(node, left, right, sign)

    return read


def _getitem(node: Node, a: Arguments) -> calls.Call | None:
    source, index = _value(a["input"]), a["index"]
    if isinstance(index, int):
        return calls.Item(node, source, index)
    parts = index if isinstance(index, tuple) else (index,)
    picked: tuple[int, int, int | None] | None = None
    for dim, part in enumerate(parts):
        if part is Ellipsis and dim == len(parts) - 1:
            continue
        if not isinstance(part, slice):
            return None
        start, stop, step = static(part.start), static(part.stop), static(part.step)
        if step not in (None, 1):
            return None
        if start in (None, 0) and stop is None:
            continue
        if picked is not None:
            return None
        picked = (dim, start or 0, stop)
    return calls.Passing(node, source) if picked is None else calls.Slice(node, source, *picked)


def _narrow(node: Node, a: Arguments) -> calls.Call | None:
    start, length = static(a["start"]), static(a["length"])
    if start < 0 <= start + length:
        return None
    return calls.Slice(node, _value(a["input"]), static(a["dim"]), start, start + length)


def _aten_slice(node: Node, a: Arguments) -> calls.Call | None:
    start, stop = static(a["start"]) or 0, static(a["end"])
    if static(a["step"]) != 1:
        return None
    whole = stop is None or stop >= 2**31
    if start == 0 and whole:
        return calls.Passing(node, _value(a["input"]))
    return calls.Slice(node, _value(a["input"]), static(a["dim"]), start, None if whole else stop)


def _split(node: Node, a: Arguments) -> calls.Call:
    return calls.Split(node, _value(a["input"]), static(a["dim"]), static(a["size"]), None)


def _chunk(node: Node, a: Arguments) -> calls.Call:
    return calls.Split(node, _value(a["input"]), static(a["dim"]), None, static(a["chunks"]))


def _metadata(node: Node, _a: Arguments) -> calls.Call:
    return calls.MetadataRead(node, _value(node.args[0]))


METADATA_ATTRIBUTES = frozenset(
    "shape ndim dtype device is_cuda is_cpu is_mps is_sparse is_quantized is_meta layout requires_grad itemsize nbytes "
    "is_leaf names".split()
)
METADATA_METHODS = (
    "size dim ndimension numel nelement is_floating_point is_complex get_device element_size type_as_dtype __len__"
).split()


def _attribute(node: Node, a: Arguments) -> calls.Call | None:
    source, name = _value(a["input"]), a["name"]
    if name in METADATA_ATTRIBUTES:
        return calls.MetadataRead(node, source)
    return calls.Passing(node, source) if name == "data" else None


aten = torch.ops.aten
_CONV = Signature("input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1")
_CONV_T = Signature("input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1")
_BN = Signature("input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05")
_TORCH_BN = Signature("input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True")
_IN = Signature(
    "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-05"
)
_MAX = Signature("input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False")
_AVG = Signature(
    "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None"
)
_ADAPTIVE = Signature("input, output_size, return_indices=False")
_DROPOUT = Signature("input, p=0.5, training=True, inplace=False")
_ANY = _Anything()
_UNARY = Signature("input")
_UNARY_IN_PLACE = Signature("input, inplace=False")
_MEAN = Signature("input, dim=None, keepdim=False, dtype=None")
_CAT = Signature("tensors, dim=0")
_BINARY = Signature("input, other, alpha=1")
_LINEAR = Signature("input, weight, bias=None")
_EMBEDDING = Signature(
    "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False"
)
_PAD = Signature("input, pad, mode='constant', value=None")
_INTERPOLATE = Signature(
    "input, size=None, scale_factor=None, mode='nearest', align_corners=None, recompute_scale_factor=None, "
    "antialias=False"
)
_LEAKY = Signature("input, negative_slope=0.01, inplace=False")

Row: TypeAlias = tuple[Signature, FunctionReader]
FUNCTIONS: dict[Any, Row] = {
    torch.batch_norm: (_TORCH_BN, _batch_norm),
    F.batch_norm: (_BN, _batch_norm),
    aten.batch_norm.default: (_TORCH_BN, _batch_norm),
    F.instance_norm: (_IN, _instance_norm),
    F.group_norm: (Signature("input, num_groups, weight=None, bias=None, eps=1e-05"), _group_norm),
    F.layer_norm: (Signature("input, normalized_shape, weight=None, bias=None, eps=1e-05"), _layer_norm),
    F.linear: (_LINEAR, _linear),
    aten.linear.default: (_LINEAR, _linear),
    F.embedding: (_EMBEDDING, _embedding),
    F.interpolate: (_INTERPOLATE, _interpolate),
    F.pad: (_PAD, _pad),
    aten.pad.default: (_PAD, _pad),
    aten.constant_pad_nd.default: (Signature("input, pad, value=0"), _aten_constant_pad),
    F.relu: (_UNARY_IN_PLACE, _one_input(calls.PositivelyHomogeneous)),
    F.leaky_relu: (_LEAKY, _one_input(calls.PositivelyHomogeneous)),
    torch.mean: (_MEAN, _mean),
    aten.mean.dim: (_MEAN, _mean),
    torch.permute: (Signature("input, dims"), lambda n, a: calls.Permute(n, _value(a["input"]), static(a["dims"]))),
    aten.permute.default: (
        Signature("input, dims"),
        lambda n, a: calls.Permute(n, _value(a["input"]), static(a["dims"])),
    ),
    aten.slice.Tensor: (Signature("input, dim=0, start=None, end=None, step=1"), _aten_slice),
    aten.dropout.default: (Signature("input, p, train"), _aten_dropout),
    operator.getitem: (Signature("input, index"), _getitem),
    getattr: (Signature("input, name"), _attribute),
    IN_PLACE_ADD: (_BINARY, _add(1)),
    IN_PLACE_SUBTRACT: (_BINARY, _add(-1)),
    torch.narrow: (Signature("input, dim, start, length"), _narrow),
}
METHODS: dict[str, Row] = {
    "view": (_ANY, _method_view),
    "permute": (_ANY, _method_permute),
    "mean": (_MEAN, _mean),
    "narrow": (Signature("input, dim, start, length"), _narrow),
    "t": (_UNARY, lambda n, a: calls.Permute(n, _value(a["input"]), (0, 1), swap=True)),
}


def _spelled(row: Row, *spellings: Any) -> None:
    """Give several functions the same row."""
    for function in spellings:
        FUNCTIONS[function] = row


def _fill() -> None:
    """Add the rows that repeat over dimensions and spellings."""
    for size in (1, 2, 3):
        for space in (torch, F):
            FUNCTIONS[getattr(space, f"conv{size}d")] = (_CONV, _convolution(size))
            FUNCTIONS[getattr(space, f"conv_transpose{size}d")] = (_CONV_T, _transposed(size))
        FUNCTIONS[getattr(aten, f"conv{size}d").default] = (_CONV, _convolution(size))
        FUNCTIONS[getattr(aten, f"conv{size}d").padding] = (_CONV, _convolution(size))
        transposed = getattr(aten, f"conv_transpose{size}d")
        FUNCTIONS[transposed.default if size == 1 else transposed.input] = (_CONV_T, _transposed(size))
        for pool in (getattr(F, f"max_pool{size}d"), getattr(torch, f"max_pool{size}d")):
            FUNCTIONS[pool] = (_MAX, _max_pool(size))
        FUNCTIONS[getattr(aten, f"max_pool{size}d").default] = (_MAX, _max_pool(size))
        FUNCTIONS[getattr(F, f"max_pool{size}d_with_indices")] = (_MAX, _max_pool_with_indices(size))
        FUNCTIONS[getattr(F, f"adaptive_max_pool{size}d")] = (_ADAPTIVE, _max_pool(size))
        FUNCTIONS[getattr(F, f"adaptive_max_pool{size}d_with_indices")] = (_ADAPTIVE, _max_pool_with_indices(size))
        FUNCTIONS[getattr(aten, f"adaptive_max_pool{size}d").default] = (_ADAPTIVE, _max_pool_with_indices(size))
        FUNCTIONS[getattr(F, f"avg_pool{size}d")] = (_AVG, _average_pool(size))
        FUNCTIONS[getattr(aten, f"avg_pool{size}d").default] = (_AVG, _average_pool(size))
        adaptive_average = _adaptive_average(size)
        for pool in (getattr(F, f"adaptive_avg_pool{size}d"), getattr(aten, f"adaptive_avg_pool{size}d").default):
            FUNCTIONS[pool] = (_ADAPTIVE, adaptive_average)
    _spelled(
        (_DROPOUT, _dropout), F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout
    )
    _fill_elementwise()
    _fill_shapes()


def _fill_elementwise() -> None:
    homogeneous = _one_input(calls.PositivelyHomogeneous)
    relus = (torch.relu, torch.relu_, aten.relu.default, aten.relu_.default)
    _spelled((_UNARY, homogeneous), *relus)
    _spelled(
        (Signature("input, negative_slope=0.01"), homogeneous),
        F.leaky_relu_,
        aten.leaky_relu.default,
        aten.leaky_relu_.default,
    )
    for name in ("relu", "relu_"):
        METHODS[name] = (_UNARY, homogeneous)
    passing = _one_input(calls.Passing)
    for name in ("contiguous", "clone"):
        METHODS[name] = (Signature("input, memory_format=None"), passing)
        FUNCTIONS[getattr(aten, name).default] = (Signature("input, memory_format=None"), passing)
    METHODS["detach"] = METHODS["alias"] = (_UNARY, passing)
    _spelled(
        (Signature("input, memory_format=None"), passing),
        torch.clone,
        torch.detach,
        aten.detach.default,
        aten.alias.default,
    )
    _spelled((_BINARY, _add(1)), operator.add, torch.add, aten.add.Tensor, aten.add_.Tensor)
    _spelled((_BINARY, _add(-1)), operator.sub, torch.sub, torch.subtract, aten.sub.Tensor, aten.sub_.Tensor)
    for name, sign in (("add", 1), ("add_", 1), ("sub", -1), ("sub_", -1)):
        METHODS[name] = (_BINARY, _add(sign))
    for name in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d"):
        for overload in ("default", "vec"):
            FUNCTIONS[getattr(getattr(aten, name), overload)] = (_ANY, _upsample)
    for name in METADATA_METHODS:
        METHODS[name] = (_ANY, _metadata)
    _spelled(
        (_ANY, _metadata),
        torch.numel,
        torch.is_floating_point,
        torch.is_tensor,
        aten.sym_size.int,
        aten.sym_numel.default,
    )


def _upsample(node: Node, _a: Arguments) -> calls.Call:
    return calls.Interpolate(node, _value(node.args[0]), str(node.target))


def _fill_shapes() -> None:
    for name in ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"):
        METHODS[name] = (_ANY, _reshape)
    _spelled((_ANY, _reshape), torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze)
    shapes = (
        aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
        aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default,
        aten.view_as.default, aten.reshape_as.default,
    )  # fmt: skip
    _spelled((_ANY, _reshape), *shapes)
    swap = Signature("input, dim0, dim1")
    for name in ("transpose", "swapaxes", "swapdims"):
        METHODS[name] = (swap, _transpose)
    _spelled((swap, _transpose), torch.transpose, torch.swapaxes, torch.swapdims, aten.transpose.int)
    _spelled((_CAT, _concatenate), torch.cat, torch.concat, torch.concatenate, aten.cat.default)
    _spelled((Signature("input, factor"), _pixel_shuffle), F.pixel_shuffle, aten.pixel_shuffle.default)
    _spelled((Signature("input, factor"), _pixel_unshuffle), F.pixel_unshuffle, aten.pixel_unshuffle.default)
    _spelled((Signature("input, groups"), _channel_shuffle), torch.channel_shuffle, aten.channel_shuffle.default)
    split, chunk = Signature("input, size, dim=0"), Signature("input, chunks, dim=0")
    _spelled((split, _split), torch.split, aten.split.Tensor, aten.split_with_sizes.default)
    _spelled((chunk, _chunk), torch.chunk, aten.chunk.default)
    METHODS["split"], METHODS["chunk"] = (split, _split), (chunk, _chunk)


_fill()
