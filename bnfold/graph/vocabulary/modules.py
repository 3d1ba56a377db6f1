"""Layers: one row for each type of module.

A type is matched exactly: a subclass may compute anything, so the capture either records what it calls, or it is
opaque here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.proof import measured_batch_norm
from bnfold.graph.signature import NotStaticError, static
from bnfold.graph.taught import Absorbs, Passes
from bnfold.graph.vocabulary.reading import ModuleReader, input_of, parameter_of

__all__ = ["MODULES", "explicit_affine", "frozen_batch_norm"]


def _convolution_module(spatial_dims: int) -> ModuleReader:
    def read(node: Node, module: Any, target: str) -> calls.Call:
        return calls.Convolution(
            node,
            input_of(node),
            f"{target}.weight",
            parameter_of(module, "bias", target),
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
        bias = parameter_of(module, "bias", target)
        return calls.TransposedConvolution(
            node,
            input_of(node),
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
        input_of(node),
        parameter_of(module, "running_mean", target),
        parameter_of(module, "running_var", target),
        parameter_of(module, "weight", target),
        parameter_of(module, "bias", target),
        float(module.eps),
        uses_batch or module.training,
        target,
        _LAYER_RANK.get(type(module)),
    )


def frozen_batch_norm(node: Node, module: Any, target: str) -> calls.Call:
    """A layer of unknown code that was measured to be an eval-mode BatchNorm."""
    mean, variance = f"{target}.running_mean", f"{target}.running_var"
    weight, bias = parameter_of(module, "weight", target), parameter_of(module, "bias", target)
    measured = measured_batch_norm(module)
    assert measured is not None
    x, eps, rank = input_of(node), measured.eps, measured.rank
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
            input_of(node),
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
    return lambda node, module, _: calls.MaxPool(node, input_of(node), bool(module.return_indices), spatial_dims)


def _adaptive_average_module(spatial_dims: int) -> ModuleReader:
    return lambda node, _module, _target: calls.AdaptiveAveragePool(node, input_of(node), spatial_dims)


def _pad_module(mode: str, spatial_dims: int) -> ModuleReader:
    def read(node: Node, module: Any, _target: str) -> calls.Call:
        padding = static(module.padding)
        widths = (padding,) * (2 * spatial_dims) if isinstance(padding, int) else padding
        return calls.Pad(node, input_of(node), widths, mode, float(getattr(module, "value", 0.0)))

    return read


def _upsample_module(node: Node, module: Any, _target: str) -> calls.Call:
    return calls.Interpolate(node, input_of(node), str(getattr(module, "mode", "nearest")))


def _linear_module(node: Node, module: Any, target: str) -> calls.Call:
    return calls.Linear(node, input_of(node), f"{target}.weight", parameter_of(module, "bias", target))


def _embedding_module(node: Node, module: Any, target: str) -> calls.Call:
    if module.max_norm is not None:  # renormalises its weight when called
        raise NotStaticError("embedding with max_norm")
    return calls.Embedding(node, input_of(node), f"{target}.weight", None)


def _affine_norm_module(node: Node, module: Any, target: str) -> calls.Call:
    weight, bias = parameter_of(module, "weight", target), parameter_of(module, "bias", target)
    if isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) != 1:
            raise NotStaticError("layer norm over several dimensions")
        return calls.AffineNormalization(node, input_of(node), weight, bias, -1, int(module.normalized_shape[0]))
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    rank = _LAYER_RANK.get(type(module))
    return calls.AffineNormalization(node, input_of(node), weight, bias, 1, int(channels), rank)


def _instance_norm_module(node: Node, module: Any, target: str) -> calls.Call:
    tracked = module.track_running_stats and module.running_mean is not None
    if tracked and not module.training:  # with running statistics it is an eval-mode BatchNorm
        return _batch_norm_module(node, module, target)
    return _affine_norm_module(node, module, target)


def explicit_affine(node: Node, _module: Any, target: str) -> calls.Call:
    """Read bnfold's own layer."""
    return calls.ExplicitAffine(node, input_of(node), f"{target}.weight", f"{target}.bias")


def taught(node: Node, module: nn.Module, claim: Passes | Absorbs) -> calls.Call | None:
    """Read a module that the user has told of; None where it does not hold what it was said to hold."""
    if isinstance(claim, Passes):
        return calls.TaughtPassing(node, input_of(node), claim.scale == "nonnegative", claim.shift == "zero")
    weight, bias = (module._parameters.get(name) for name in (claim.weight, claim.bias))
    if weight is None or not -weight.ndim <= claim.dim < weight.ndim:
        return None
    target = str(node.target)
    names = f"{target}.{claim.weight}", (f"{target}.{claim.bias}" if bias is not None else None)
    return calls.TaughtAbsorber(node, input_of(node), *names, claim.dim % weight.ndim, claim.weight, claim.bias)


def _simple(make: Callable[[Node, Node], calls.Call]) -> ModuleReader:
    return lambda node, _module, _target: make(node, input_of(node))


def _dropout_module(node: Node, module: Any, _target: str) -> calls.Call:
    return (calls.ActiveDropout if module.training and module.p > 0 else calls.Passing)(node, input_of(node))


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
    nn.PixelShuffle: lambda n, m, _: calls.PixelShuffle(n, input_of(n), int(m.upscale_factor)),
    nn.PixelUnshuffle: lambda n, m, _: calls.PixelUnshuffle(n, input_of(n), int(m.downscale_factor)),
    nn.ChannelShuffle: lambda n, m, _: calls.ChannelShuffle(n, input_of(n), int(m.groups)),
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
