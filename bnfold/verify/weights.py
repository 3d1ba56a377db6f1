"""The weights of a folded module against those that its plan gives in float64: each is that number, rounded once.

A comparison of outputs cannot see a channel that no input brings to life. This one reads the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bnfold.verify.compare import measure
from bnfold.verify.report import Comparison

__all__ = ["compare_weights"]

ULPS = 16.0
"""Units in the last place of a tensor's peak that a weight may be off: an explicit affine's shift is computed in its
own precision, bit for bit as the BatchNorm does, which leaves a few."""


def compare_weights(exact: nn.Module, candidate: nn.Module) -> Comparison | None:
    """Return the comparison of the weights, or None where the two do not hold tensors of the same names and shapes.

    Args:
        exact: the plan applied in float64.
        candidate: the folded module as it is.
    """
    want, have = dict(_tensors(exact)), dict(_tensors(candidate))
    if want.keys() != have.keys() or any(want[name].shape != have[name].shape for name in want):
        return None
    worst, strain, wrong = None, -1.0, ""
    for name, right in want.items():
        tensor = have[name]
        ulp = torch.finfo(tensor.dtype).eps
        if not bool(torch.isfinite(tensor).eq(torch.isfinite(right.to(tensor.device))).all()):
            worst, strain, wrong = (measure(right, tensor), ulp), math.inf, name
            continue
        error = measure(right, tensor)
        ratio = error.largest / (ULPS * ulp * error.peak) if error.peak > 0 else math.inf if error.largest > 0 else 0.0
        if ratio > strain:
            worst, strain, wrong = (error, ulp), ratio, name
    if worst is None:
        return None
    error, ulp = worst
    detail = f"`{wrong}` at {list(error.where or ())} is not what the plan gives in float64"
    return Comparison(
        name="weights against the plan",
        max_abs=error.largest,
        peak=error.peak,
        rms=error.mean,
        noise_floor=ulp / 2 * error.peak,
        allowed=ULPS * ulp * error.peak,
        passed=strain <= 1,
        where=error.where,
        detail="" if strain <= 1 else detail,
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()
