"""What exactly one BatchNorm layer computes, with its own numbers, and how far other ways of writing it are off.

A layer in eval mode is ``y = fma(x, alpha, beta)`` with two numbers per channel (:mod:`bnfold.affine`). The formula in
the paper is the same in real numbers and another one in float32, where each operation rounds. :func:`explain` measures
by how much, on inputs that are distributed as the layer's statistics say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.affine import affine_of_statistics, exact_terms, fused_multiply_add
from bnfold.errors import UsageError

__all__ = ["Channel", "Explanation", "Way", "explain", "ulps_between"]

_ELEMENTS = 1 << 18  # of the inputs that the ways are measured on, about


@dataclass(frozen=True)
class Channel:
    """The numbers of one channel; ``scale`` and ``shift`` in float64, the others as they are stored."""

    index: int
    mean: float
    variance: float
    weight: float | None
    bias: float | None
    scale: float
    shift: float


@dataclass(frozen=True)
class Way:
    """One way to write the layer, and how far it is from what the layer answers.

    Attributes:
        formula: as a person would write it.
        usual_ulps: 99 of 100 elements are no further than this, in units in the last place of the layer's answer.
        largest_ulps: largest distance, in the same unit.
        largest: largest absolute distance, in the unit of the output.
        differing: share of the elements that are not the same float32 number, 0 to 1.
        remark: a few words.
    """

    formula: str
    usual_ulps: int
    largest_ulps: int
    largest: float
    differing: float
    remark: str = ""


@dataclass(frozen=True)
class Explanation:
    """All that is to be said about one layer.

    Attributes:
        name: qualified name.
        kind: the class of the layer.
        eps: added to the variance.
        channels: number of channels.
        scales: of all channels.
        sample: some channels: the first ones, and those with the smallest scale in magnitude and the most negative one.
        negative: number of channels with a negative scale.
        zero: number of channels with scale 0.
        ways: the ways of writing it, the layer's own first.
        measured_on: what the ways were measured on, in words.
        momentum: of the running statistics; None for a cumulative average.
    """

    name: str
    kind: str
    eps: float
    channels: int
    scales: tuple[float, ...]
    sample: tuple[Channel, ...]
    negative: int
    zero: int
    ways: tuple[Way, ...]
    measured_on: str
    momentum: float | None


def explain(layer: Any, name: str, *, kind: str = "", seed: int = 0, channels_shown: int = 6) -> Explanation:
    """Explain a BatchNorm layer.

    Args:
        layer: with ``running_mean``, ``running_var`` and ``eps``; not changed.
        name: its qualified name.
        kind: what it is called; its class, if not given.
        seed: of the inputs that the ways are measured on.
        channels_shown: how many channels the sample has at least, if there are as many.

    Raises:
        UsageError: it has no running statistics, so it has no fixed equation, or its statistics are not numbers.
    """
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise UsageError(
            f"{name} has no running statistics: it uses the mean and variance of each batch, in eval mode too, so "
            "there is no fixed equation.",
            fix="Nothing needs to be done; bnfold leaves such layers as they are.",
        )
    mean, variance = mean.detach().cpu(), variance.detach().cpu()
    weight, bias = _detached(layer, "weight"), _detached(layer, "bias")
    eps, momentum = float(getattr(layer, "eps", 0.0)), getattr(layer, "momentum", None)
    affine = affine_of_statistics(mean, variance, weight, bias, eps)
    if not affine.is_finite:
        raise UsageError(
            f"{name} holds statistics or parameters that give no finite scale and shift.",
            fix="Look for a NaN, an infinity or a negative running variance in it.",
        )
    scale, shift = affine.scale, affine.shift
    chosen = list(range(min(channels_shown, len(scale))))
    chosen += [int(scale.argmin()), int(scale.abs().argmin())]
    sample = tuple(
        Channel(
            index,
            float(mean[index]),
            float(variance[index]),
            None if weight is None else float(weight[index]),
            None if bias is None else float(bias[index]),
            float(scale[index]),
            float(shift[index]),
        )
        for index in dict.fromkeys(chosen)
    )
    ways, measured_on = _ways(mean, variance, weight, bias, eps, seed)
    return Explanation(
        name=name,
        kind=kind or type(layer).__name__,
        eps=eps,
        channels=len(scale),
        scales=tuple(scale.tolist()),
        sample=sample,
        negative=int((scale < 0).sum()),
        zero=int((scale == 0).sum()),
        ways=ways,
        measured_on=measured_on,
        momentum=None if momentum is None else float(momentum),
    )


def _detached(layer: Any, name: str) -> Tensor | None:
    value = getattr(layer, name, None)
    return value.detach().cpu() if isinstance(value, Tensor) else None


def ulps_between(found: Tensor, expected: Tensor) -> Tensor:
    """Return how many float32 numbers apart two tensors are, elementwise, int64; the two zeros are one number.

    >>> one = torch.tensor([1.0])
    >>> ulps_between(torch.nextafter(one, torch.tensor([2.0])), one).tolist()
    [1]
    """
    return (_rank(found) - _rank(expected)).abs()


def _rank(values: Tensor) -> Tensor:
    """Return the place of each float32 number among all of them, in their order."""
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _ways(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, seed: int
) -> tuple[tuple[Way, ...], str]:
    """Measure the ways of writing the layer; all in float32 on the CPU."""
    m, v = mean.float(), variance.float()
    weight, bias = None if weight is None else weight.float(), None if bias is None else bias.float()
    w = torch.ones_like(m) if weight is None else weight
    b = torch.zeros_like(m) if bias is None else bias
    channels = m.numel()
    rows = max(8, min(4096, math.ceil(_ELEMENTS / max(channels, 1))))
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    x = (m.double() + normal * v.double().clamp(min=0).sqrt()).float()
    with torch.no_grad():
        layer = F.batch_norm(x, m, v, weight=weight, bias=bias, training=False, eps=eps)
        alpha, beta = exact_terms(m, v, weight, bias, eps)
        batch_mean, biased = x.mean(0), x.var(0, unbiased=False)
        real = affine_of_statistics(m, v, w, b, eps)
        ways: list[tuple[str, Callable[[], Tensor], str]] = [
            ("fma(x, alpha, beta)", lambda: fused_multiply_add(x, alpha, beta), "the layer's own way"),
            ("addcmul(beta, x, alpha)", lambda: torch.addcmul(beta, x, alpha), "the same, as a torch call"),
            ("x * alpha + beta", lambda: x * alpha + beta, "rounds twice"),
            ("w * (x - m) / sqrt(v + eps) + b", lambda: w * (x - m) / torch.sqrt(v + eps) + b, "as people write it"),
            ("(x - m) * rsqrt(v + eps) * w + b", lambda: (x - m) * torch.rsqrt(v + eps) * w + b, ""),
            ("scale * x + shift in float64, rounded once", lambda: real(x.double()).float(), "nearest to real numbers"),
            ("eps forgotten", lambda: w * (x - m) / torch.sqrt(v) + b, "a mistake"),
            (
                "the batch's mean and biased variance",
                lambda: F.batch_norm(x, None, None, w, b, training=True, eps=eps),
                "training mode",
            ),
            (
                "the batch's mean and unbiased variance",
                lambda: w * (x - batch_mean) / torch.sqrt(biased * rows / (rows - 1) + eps) + b,
                "a mistake, in either mode",
            ),
        ]
        told = tuple(_measured(formula, compute(), layer, remark) for formula, compute, remark in ways)
    return told, f"{rows} x {channels} normal numbers with the layer's own mean and variance per channel"


def _measured(formula: str, found: Tensor, layer: Tensor, remark: str) -> Way:
    ulps = ulps_between(found, layer)
    comparable = torch.isfinite(found) & torch.isfinite(layer)
    distance = torch.where(comparable, (found.double() - layer.double()).abs(), torch.inf)
    distance = torch.where(found == layer, 0.0, distance)
    usual = int(ulps.flatten().kthvalue(max(1, math.ceil(0.99 * ulps.numel()))).values)
    return Way(formula, usual, int(ulps.max()), float(distance.max()), float((ulps > 0).double().mean()), remark)
