"""Errors against the oracle, and whether two tensors differ in more than rounding.

For one output on one input let ``e`` be the witness's error against the oracle, elementwise. Two numbers judge it, each
against a floor (:mod:`bnfold.verify.floor`) that says how large the original's own rounding makes it:

    passed  =  largest |e| <= limits.largest * floor.largest   and   rms e <= limits.mean * floor.mean

The largest error is what a single wrong element raises. The mean is steadier, so its limit is lower, and it catches a
small error that is spread over all elements.

Outputs of integers and booleans (an argmax, a mask) are judged by how many elements differ: rounding flips a few of
them, where two candidates are as good as equal, in the original too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnfold.capture.nests import Leaf, leaf_difference
from bnfold.verify.report import Comparison, Stage

__all__ = ["Error", "Floor", "Limits", "Reading", "beyond_rounding", "judge", "measure"]


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
class Floor:
    """How large the original's own rounding makes an error.

    Attributes:
        largest: the largest absolute error, in the unit of the output (for integers: the number of other elements).
        mean: the root mean square error; 0 for integers.
    """

    largest: float
    mean: float


@dataclass(frozen=True)
class Error:
    """How far one tensor is from the oracle's.

    Attributes:
        largest: largest absolute error, 0 for an empty tensor. For integers and booleans: how many elements differ.
        mean: root mean square error; 0 for integers and booleans.
        peak: largest absolute value of the oracle's tensor where both are finite. For integers: the number of elements.
        where: index of the largest error, or of the first element that differs; None where nothing does.
        counted: whether the numbers are counts of elements.
    """

    largest: float
    mean: float
    peak: float
    where: tuple[int, ...] | None
    counted: bool = False


@dataclass(frozen=True)
class Reading:
    """One witness on one output and one input: its error and the floor to judge it by."""

    case: str
    error: Error
    floor: Floor

    def strain(self, limits: Limits) -> float:
        """Return how much of what is allowed the error takes; more than 1 fails."""
        if self.error.counted:
            return _ratio(self.error.largest, _allowed_count(limits, self.floor, self.error.peak))
        return max(
            _ratio(self.error.largest, limits.largest * self.floor.largest),
            _ratio(self.error.mean, limits.mean * self.floor.mean),
        )


def measure(oracle: Tensor, tensor: Tensor) -> Error:
    """Return how far ``tensor`` is from ``oracle``; elements that are not finite in one of them do not count.

    Args:
        oracle: the exact values, any shape.
        tensor: same shape; floating (or complex) where ``oracle`` is.
    """
    other = tensor.to(oracle.device)
    if not (oracle.is_floating_point() or oracle.is_complex()):
        differs = oracle != other
        where = _index(int(differs.flatten().byte().argmax()), differs.shape) if bool(differs.any()) else None
        return Error(float(differs.sum()), 0.0, float(differs.numel()), where, counted=True)
    wide = torch.complex128 if oracle.is_complex() or other.is_complex() else torch.float64
    exact = oracle.to(wide)
    difference = torch.sub(other, exact).abs()  # computed in the wider of the two dtypes
    if difference.numel() == 0:
        return Error(0.0, 0.0, 0.0, None)
    flat = difference.flatten()
    position = int(flat.argmax())  # of NaN and infinity, too: so one look tells whether all is finite
    largest = float(flat[position])
    if not math.isfinite(largest):
        finite = torch.isfinite(difference)
        exact = torch.where(finite, exact, 0)
        flat = torch.where(finite, difference, 0).flatten()
        position = int(flat.argmax())
        largest = float(flat[position])
    peak = float(torch.linalg.vector_norm(exact, ord=math.inf))
    where = _index(position, difference.shape) if largest > 0 else None
    return Error(largest, _root_mean_square(flat, largest), peak, where)


def judge(name: str, readings: Sequence[Reading], limits: Limits, *, stage: Stage = "fold") -> Comparison:
    """Return the comparison of one witness on one output: the reading that stands worst against its limits."""
    worst = max(readings, key=lambda reading: (reading.strain(limits), reading.error.largest))
    error, floor = worst.error, worst.floor
    passed = worst.strain(limits) <= 1
    if error.counted:
        allowed, mean_allowed, mean, mean_floor = (
            _allowed_count(limits, floor, error.peak), math.nan, math.nan, math.nan,
        )  # fmt: skip
        detail = f"{error.largest:.0f} of {error.peak:.0f} elements differ from the oracle's, first {error.where}"
    else:
        allowed, mean_allowed = limits.largest * floor.largest, limits.mean * floor.mean
        mean, mean_floor = error.mean, floor.mean
        if error.largest > allowed:
            times = _ratio(error.largest, floor.largest)
            detail = f"the error at {list(error.where or ())} is {times:.3g} times what rounding makes in the original"
        else:
            times = _ratio(error.mean, floor.mean)
            detail = f"the mean error is {times:.3g} times what rounding makes in the original"
    return Comparison(
        name=name,
        max_abs=error.largest,
        peak=error.peak,
        rms=mean,
        noise_floor=floor.largest,
        allowed=allowed,
        passed=passed,
        rms_floor=mean_floor,
        rms_allowed=mean_allowed,
        where=error.where,
        case=worst.case,
        detail="" if passed else f"{detail}, on {worst.case}",
        stage=stage,
    )


def beyond_rounding(expected: Leaf, actual: Leaf) -> str | None:
    """Return one sentence on what differs beyond rounding, or None.

    That is: being a tensor, shape, dtype, where NaN and the infinities stand, and the value of what is no tensor.
    """
    difference = leaf_difference(expected, actual)
    if difference is not None or not expected.is_tensor:
        return difference
    left, right = expected.value, actual.value.to(expected.value.device)
    if not (left.is_floating_point() or left.is_complex()):
        return None
    for kind, test in (("NaN", torch.isnan), ("infinity", torch.isinf)):
        there, here = test(left), test(right)
        if not torch.equal(there, here):
            index = [int(i) for i in (there != here).nonzero()[0]]
            if bool(here[tuple(index)]):
                return f"{actual.name} is {kind} at {index}, where the original is not"
            return f"{actual.name} is not {kind} at {index}, where the original is"
    if not left.is_complex():
        infinite = torch.isinf(left)
        if not torch.equal(left[infinite], right[infinite]):
            return f"{actual.name} has an infinity of the other sign"
    return None


def _root_mean_square(values: Tensor, largest: float) -> float:
    """Return the root mean square, scaled where squares would overflow or vanish."""
    if largest == 0:
        return 0.0
    scale = 1.0 if 1e-100 < largest < 1e100 else largest
    scaled = values if scale == 1.0 else values / scale
    return float(torch.linalg.vector_norm(scaled)) * scale / math.sqrt(values.numel())


def _allowed_count(limits: Limits, floor: Floor, size: float) -> float:
    """Return how many integers may differ: what the original's do, some times over, and one in ten thousand."""
    return math.floor(limits.largest * floor.largest + size / 10_000)


def _index(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        flat, position = divmod(flat, size)
        index.append(position)
    return tuple(reversed(index))


def _ratio(error: float, limit: float) -> float:
    if limit > 0:
        return error / limit
    return 0.0 if error == 0 else math.inf
