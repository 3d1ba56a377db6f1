"""Errors against the oracle, in units of the noise floor.

For one output on one input let ``e`` be the witness's error against the oracle and ``f`` that of the original itself.

    floor      = max(largest |f|,  typical relative floor of all inputs * peak,  half an ulp of the peak)
    rms floor  = the same with the root mean squares
    passed     = largest |e| <= MAX_FLOORS * floor   and   rms e <= RMS_FLOORS * rms floor

The second and third terms keep the floor away from zero where the original happens to be exact (a saturated sigmoid, a
few outputs that round well). The largest error is what a single wrong element raises; the mean is steadier, so its
limit is lower and it catches a small error spread over a deep network. ``docs/verification.md`` shows what both
measure on right and wrong folds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnfold.verify.outputs import Leaf, leaf_difference
from bnfold.verify.report import Comparison

__all__ = ["ALGEBRA", "Error", "Limits", "Reading", "difference_of_values", "floors_of", "judge", "measure"]

ALGEBRA = 1e-10
"""Largest error of the algebra, relative to the peak: float64 leaves about 1e-15, any wrong number far more."""


@dataclass(frozen=True)
class Limits:
    """How many noise floors a witness may be away from the oracle.

    Attributes:
        largest: for the largest error.
        mean: for the root mean square error.
    """

    largest: float
    mean: float


@dataclass(frozen=True)
class Error:
    """How far one tensor is from the oracle's.

    Attributes:
        largest: largest absolute error; 0 for an empty tensor.
        mean: root mean square error.
        peak: largest absolute value of the oracle's tensor, where both are finite.
        size: number of elements.
        where: index of the largest error.
    """

    largest: float
    mean: float
    peak: float
    size: int
    where: tuple[int, ...] | None


@dataclass(frozen=True)
class Reading:
    """One witness on one output and one input: its error and the floor to judge it by."""

    case: str
    error: Error
    floor: float
    mean_floor: float


def measure(oracle: Tensor, tensor: Tensor) -> Error:
    """Return how far ``tensor`` is from ``oracle``; elements that are not finite in the oracle or in it do not count.

    Args:
        oracle: float64 (or complex128, integer, boolean), any shape.
        tensor: same shape, any dtype.
    """
    exact, other = _wide(oracle), _wide(tensor).to(oracle.device)
    difference = (other - exact).abs()
    counted = torch.isfinite(difference)
    difference = torch.where(counted, difference, 0)
    size = difference.numel()
    if size == 0:
        return Error(0.0, 0.0, 0.0, 0, None)
    flat = int(difference.argmax())
    peak = float(torch.where(counted, exact.abs(), 0).max())
    mean = float(difference.square().mean().sqrt())
    where = tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), difference.shape))
    return Error(float(difference.flatten()[flat]), mean, peak, size, where)


def floors_of(errors: Sequence[Error], ulp: float) -> list[tuple[float, float]]:
    """Return ``(floor, rms floor)`` per input from the original's own errors on them.

    Args:
        errors: of the original, one per input, for one output.
        ulp: distance from 1 to the next number of the output's dtype.
    """
    ratios = [(error.largest / error.peak, error.mean / error.peak) for error in errors if error.peak > 0]
    typical, typical_mean = (
        (statistics.median(column) for column in zip(*ratios, strict=True)) if ratios else (0.0, 0.0)
    )
    return [
        (
            max(error.largest, max(typical, ulp / 2) * error.peak),
            max(error.mean, max(typical_mean, ulp / 4) * error.peak),
        )
        for error in errors
    ]


def judge(name: str, readings: Sequence[Reading], limits: Limits, *, stage: str = "fold") -> Comparison:
    """Return the comparison of one witness on one output: the reading that stands worst against its limits."""

    def strain(reading: Reading) -> float:
        return max(
            _ratio(reading.error.largest, limits.largest * reading.floor),
            _ratio(reading.error.mean, limits.mean * reading.mean_floor),
        )

    worst = max(readings, key=strain)
    passed = strain(worst) <= 1
    error = worst.error
    detail = ""
    if not passed:
        times = max(_ratio(error.largest, worst.floor), _ratio(error.mean, worst.mean_floor))
        largest_is_fine = error.largest <= limits.largest * worst.floor
        what = "the mean error" if largest_is_fine else f"the error at index {error.where}"
        detail = f"{what} is {times:.3g} times what the original's own rounding makes, on {worst.case}"
    return Comparison(
        name=name,
        max_abs=error.largest,
        peak=error.peak,
        rms=error.mean,
        noise_floor=worst.floor,
        allowed=limits.largest * worst.floor,
        passed=passed,
        rms_floor=worst.mean_floor,
        rms_allowed=limits.mean * worst.mean_floor,
        where=error.where,
        case=worst.case,
        detail=detail,
        stage=stage,
    )


def difference_of_values(original: Leaf, candidate: Leaf, *, names: bool = True) -> str | None:
    """Return one sentence on what differs beyond rounding: kind, shape, dtype, NaN and infinity; None if nothing does.

    Args:
        original: the output of the original in its own precision.
        candidate: of the witness.
        names: whether an output that is no tensor is compared too (an ONNX export has none).
    """
    if names or original.is_tensor:
        difference = leaf_difference(original, candidate)
        if difference is not None:
            return difference
    if not original.is_tensor:
        return None
    left, right = original.value, candidate.value.to(original.value.device)
    if not (left.is_floating_point() or left.is_complex()):
        return None
    for kind, test in (("NaN", torch.isnan), ("infinity", torch.isinf)):
        there, here = test(left), test(right)
        if not torch.equal(there, here):
            index = tuple(int(i) for i in (there != here).nonzero()[0])
            return (
                f"{candidate.name} holds {kind} at {index}, where the original does not"
                if bool(here[index])
                else f"{candidate.name} holds no {kind} at {index}, where the original does"
            )
    infinite = torch.isinf(left) if not left.is_complex() else torch.zeros_like(left, dtype=torch.bool)
    if not torch.equal(left[infinite], right[infinite]):
        return f"{candidate.name} holds an infinity of the other sign"
    return None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _ratio(error: float, limit: float) -> float:
    if limit > 0:
        return error / limit
    return 0.0 if error == 0 else math.inf
