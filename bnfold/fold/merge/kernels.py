"""The weight algebra of merging: float64 weights of sums and sequences of convolutions.

A weight is ``(C_out, C_in / groups, *kernel)``, a bias ``(C_out,)``. Nothing here rounds.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from bnfold.fold.merge.geometry import Place

__all__ = ["added", "averaging", "composed_weights", "in_fewer_groups"]


def averaging(channels: int, kernel: tuple[int, ...], divisor: int, like: Tensor) -> Tensor:
    """Return the depthwise weight of an average pool."""
    return torch.full((channels, 1, *kernel), 1 / divisor, dtype=torch.float64, device=like.device)


def in_fewer_groups(weight: Tensor, old: int, new: int) -> Tensor:
    """Return the weight of the same convolution written with ``new`` groups, a divisor of ``old``.

    Each of the new groups holds ``old / new`` of the old ones; what is between these is zero.
    """
    if old == new:
        return weight
    merge, rows, columns = old // new, weight.shape[0] // old, weight.shape[1]
    blocks = weight.reshape(new, merge, rows, columns, *weight.shape[2:])
    wide = weight.new_zeros(new, merge, rows, merge, columns, *weight.shape[2:])
    index = torch.arange(merge, device=weight.device)
    wide[:, index, :, index] = blocks.transpose(0, 1)
    return wide.reshape(weight.shape[0], merge * columns, *weight.shape[2:])


def added(total: Tensor, weight: Tensor, place: Place) -> None:
    """Add a smaller kernel to a larger one with the same groups, in place."""
    window = [slice(None), slice(None)]
    for offset, step, size in zip(place.offset, place.step, weight.shape[2:], strict=True):
        window.append(slice(offset, offset + (size - 1) * step + 1, step))
    total[tuple(window)] += weight


def composed_weights(
    first: Tensor, first_bias: Tensor, groups: int, second: Tensor, second_bias: Tensor, second_groups: int
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of ``second(first(x))``, where one kernel is a single tap.

    With m over the channels between the two, for each group::

        weight[o, i, k] = sum over m of second[o, m] * first[m, i, k]        if second is the single tap
        weight[o, i, k] = sum over m of second[o, m, k] * first[m, i]        if first is
        bias[o]         = second_bias[o] + sum over m, k of second[o, m, k] * first_bias[m]

    The last is so where no zero padding stands between, or ``first_bias`` is zero. The result has ``gcd(groups,
    second_groups)`` groups.
    """
    common = gcd(groups, second_groups)
    dims = first.shape[2:] if first[0, 0].numel() > 1 else second.shape[2:]
    per_row = in_fewer_groups(second, second_groups, common)
    count, columns = per_row.shape[0] // common, per_row.shape[1]
    moved = per_row.flatten(2).sum(2).reshape(common, count, columns) @ first_bias.reshape(common, columns, 1)
    bias = second_bias + moved.reshape(-1)
    if common == 1 and first.shape[1] == 1 and groups == first.shape[0]:  # depthwise, then dense: no sum at all
        return (per_row * first.reshape(1, groups, *first.shape[2:])).reshape(-1, groups, *dims), bias
    one = in_fewer_groups(first, groups, common).reshape(common, columns, -1, *[first.shape[2:].numel()])
    two = per_row.reshape(common, count, columns, -1)
    # one of the last dimensions is 1
    weight = torch.einsum("gmia,gomb->goiab", one, two)
    return weight.reshape(common * count, -1, *dims), bias
