"""The weight algebra: what becomes of weight and bias when an affine is absorbed.

All in float64, on tensors; nothing here knows of modules or graphs. :mod:`bnfold.fold.rewrite` rounds once at the end.

For an affine after the op, with C output channels in G groups::

    weight'[c] = scale[c] * weight[c]
    bias'[c]   = scale[c] * bias[c] + shift[c]

where ``weight[c]`` is row c of a ``(C, in/G, *kernel)`` convolution or ``(C, in)`` linear weight and, transposed,
column ``c % (C/G)`` of row block ``c // (C/G)`` of an ``(in, C/G, *kernel)`` weight. Source: Ioffe & Szegedy 2015,
arXiv:1502.03167, section 3.1 and Algorithm 2.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from bnfold.affine import ChannelAffine
from bnfold.graph import calls

__all__ = ["Weights", "absorb_after", "absorb_before", "absorb_beside", "input_channels", "output_channels"]

Weights: TypeAlias = "tuple[Tensor, Tensor | None]"  # weight and bias, float64


def output_channels(call: calls.Absorber, weight: Tensor | None) -> int:
    """Return C, the number of channels that the op's output has."""
    if isinstance(call, calls.AffineNormalization):
        return call.channels if weight is None or call.channels else weight.shape[0]
    assert weight is not None
    if isinstance(call, calls.TransposedConvolution):
        return int(weight.shape[1] * call.groups)
    if isinstance(call, calls.TaughtAbsorber):
        return int(weight.shape[call.weight_dim])
    return int(weight.shape[1] if isinstance(call, calls.Embedding) else weight.shape[0])


def absorb_after(call: calls.Absorber, weights: Weights, affine: ChannelAffine) -> Weights:
    """Return weight and bias of the op that computes ``affine(op(x))``.

    Args:
        call: tells the layout of the weight.
        weights: weight and bias, float64; not changed. The bias may be None, which means 0.
        affine: C values each, on the device of the weights.

    Returns:
        A new weight of the same shape, and a bias of shape ``(C,)`` (None for an embedding, where the shift goes into
        each row).
    """
    weight, bias = weights
    scale, shift = affine.scale, affine.shift
    if isinstance(call, calls.Embedding):
        return weight * scale + shift, None
    if isinstance(call, calls.TransposedConvolution):
        rows, per_group = weight.shape[0] // call.groups, weight.shape[1]
        by_group = scale.reshape(call.groups, 1, per_group).expand(-1, rows, -1).reshape(weight.shape[0], per_group)
        scaled = weight * by_group.reshape(*by_group.shape, *[1] * call.spatial_dims)
    elif isinstance(call, calls.TaughtAbsorber):
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1 - call.weight_dim))
    else:
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled, shift.clone() if bias is None else scale * bias + shift


def input_channels(call: calls.Absorber, weight: Tensor) -> int:
    """Return the number of channels that the op's input has."""
    if isinstance(call, calls.Convolution):
        return int(weight.shape[1] * call.groups)
    if isinstance(call, (calls.TransposedConvolution, calls.ExplicitAffine)):
        return int(weight.shape[0])
    return int(weight.shape[1])


def absorb_before(call: calls.Absorber, weights: Weights, affine: ChannelAffine) -> Weights:
    """Return weight and bias of the op that computes ``op(affine(x))``, where each output sees a whole window.

    For input channel i and output channel c::

        weight'[c, i] = weight[c, i] * scale[i]
        bias'[c]      = bias[c] + sum over i and the kernel of weight[c, i] * shift[i]

    Args:
        call: a convolution, transposed convolution, linear layer or explicit affine.
        weights: weight and bias, float64; not changed.
        affine: one value for each input channel, on the device of the weights.
    """
    weight, bias = weights
    scale, shift = affine.scale, affine.shift
    if isinstance(call, calls.ExplicitAffine):
        return weight * scale, weight * shift + (0 if bias is None else bias)
    if isinstance(call, calls.TransposedConvolution):
        kernel = [1] * call.spatial_dims
        scaled = weight * scale.reshape(-1, 1, *kernel)
        moved = weight * shift.reshape(-1, 1, *kernel)
        per_group = moved.reshape(call.groups, -1, *moved.shape[1:])
        added = per_group.sum(dim=[1, *range(3, per_group.ndim)]).reshape(-1)
    else:
        groups = call.groups if isinstance(call, calls.Convolution) else 1
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        kernel = [1] * (weight.ndim - 2)
        by_row = scale.reshape(groups, 1, columns).expand(-1, rows, -1).reshape(weight.shape[0], columns)
        shift_by_row = shift.reshape(groups, 1, columns).expand(-1, rows, -1).reshape(weight.shape[0], columns)
        scaled = weight * by_row.reshape(*by_row.shape, *kernel)
        added = (weight * shift_by_row.reshape(*by_row.shape, *kernel)).flatten(1).sum(1)
    return scaled, added if bias is None else bias + added


def absorb_beside(weights: Weights, affine: ChannelAffine, tap: tuple[int, ...]) -> Weights:
    """Return weight and bias of the convolution that computes ``conv(x) + affine(x)``.

    For C channels in G groups, output channel c reads input channel c as column ``c % (C/G)``::

        weight'[c, c % (C/G), tap] = weight[c, c % (C/G), tap] + scale[c]
        bias'[c]                   = bias[c] + shift[c]

    Args:
        weights: weight ``(C, C/G, *kernel)`` and bias, float64; not changed.
        affine: C values each, on the device of the weights.
        tap: the kernel position that sees the output's own position.
    """
    weight, bias = weights
    rows = torch.arange(weight.shape[0], device=weight.device)
    moved = weight.clone()
    at_tap = moved
    for position in tap:
        at_tap = at_tap.select(2, position)  # a view; in the end (C, C/G)
    at_tap[rows, rows % weight.shape[1]] += affine.scale
    return moved, affine.shift.clone() if bias is None else bias + affine.shift
