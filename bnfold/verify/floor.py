"""The noise floor: how far the original itself is from the oracle, in its own precision.

    floor  =  max(its error on this input,  its typical relative error * peak,  half an ulp of the peak)

The second and third terms keep the floor away from zero where the original happens to be exact: a saturated sigmoid,
ten outputs that round well. Where a witness stands above its limit all the same, one measurement is not trusted: some
networks amplify a single rounding (a gate near its edge, a subtraction of near-equals), and then the ratio of two
errors has no meaning, as the ratio of two draws has none. The original is run again some times, with its weights moved
by as much as rounding moves the weights of a right fold, and the largest of those errors is the floor. A network that
does not amplify keeps its floor, and a wrong fold of it stays found.

Source of the idea: Parker 1997, "Monte Carlo Arithmetic", UCLA CSD-970002.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bnfold.capture.nests import Leaf
from bnfold.verify.compare import Error, Floor, measure
from bnfold.verify.inputs import Case
from bnfold.verify.original import Run

__all__ = ["ALGEBRA", "Evaluated", "NoiseFloor"]

ALGEBRA = 1e-10
"""Largest error of float64 algebra relative to the peak: rounding leaves about 1e-15, a wrong number far more."""

DRAWS = 8
JUMP = 1e5  # units in the last place of the peak: 1 % for float32


@dataclass(frozen=True)
class Evaluated:
    """One case with what the oracle and the original answered.

    Attributes:
        case: the inputs.
        oracle: the outputs in float64.
        original: the outputs in the original's own precision.
        jumps: positions of outputs that the original's own rounding moves beyond all proportion; the number is by how
            many times the peak. A tie is broken otherwise there (the index of a maximum), or the network is chaotic:
            a comparison would agree only by chance, so none is made.
        eps: of the most precise weights of the original: an output that is cast to a wider dtype is no more precise.
    """

    case: Case
    oracle: list[Leaf]
    original: list[Leaf]
    jumps: Mapping[int, float] = field(default_factory=dict)
    eps: float = 0.0

    @staticmethod
    def of(case: Case, oracle: list[Leaf], original: list[Leaf], eps: float = 0.0) -> Evaluated:
        """Return the case with its jumps found."""
        plain = Evaluated(case, oracle, original, eps=eps)
        jumps: dict[int, float] = {}
        for position, (exact, own) in enumerate(zip(oracle, original, strict=True)):
            if own.is_tensor and own.value.is_floating_point():
                error = measure(exact.value, own.value)
                if error.largest > JUMP * plain.unit(position) * error.peak:
                    jumps[position] = error.largest / error.peak if error.peak > 0 else math.inf
        return replace(plain, jumps=jumps)

    def unit(self, position: int) -> float:
        """Return the unit in the last place, relative to the value, with which a floating output was computed."""
        return max(self.eps, torch.finfo(self.original[position].dtype).eps)


class NoiseFloor:
    """The floors of every case and output.

    Args:
        evaluated: what the original answered.
        moved: from the number of a draw to the original with its weights moved; None where that is not possible.
        seed: of the draws.
    """

    def __init__(
        self, evaluated: Sequence[Evaluated], moved: Callable[[int], Run] | None = None, *, seed: int = 0
    ) -> None:
        self._evaluated = evaluated
        self._moved = moved
        self._seed = seed
        self._floors: list[dict[int, Floor]] = [{} for _ in evaluated]
        self._drawn: set[int] = set()
        self._causes: dict[tuple[int, int], tuple[str, ...]] = {}
        # a detector answers a list with as many entries as there are images: later cases may have more outputs
        for position in range(max((len(item.original) for item in evaluated), default=0)):
            self._measure(position)

    def of(self, number: int, position: int) -> Floor:
        """Return the floor of case ``number`` and output ``position``."""
        return self._floors[number][position]

    def apart(self) -> NoiseFloor:
        """Return floors of the same values; what is allowed for there is not allowed for here."""
        other = copy.copy(self)
        other._floors, other._drawn = [dict(floors) for floors in self._floors], set(self._drawn)
        other._causes = dict(self._causes)
        return other

    def redraw(self, numbers: Iterable[int]) -> bool:
        """Measure the floors of cases more thoroughly; return whether that was still to be done for any."""
        new = [number for number in dict.fromkeys(numbers) if number not in self._drawn]
        if self._moved is None or not new:
            return False
        self._drawn.update(new)
        for draw in range(DRAWS):
            run = self._moved(self._seed * DRAWS + draw)
            for number in new:
                self._raise(number, run(self._evaluated[number].case.inputs))
        return True

    def raise_to(self, number: int, position: int, least: Floor, cause: str) -> bool:
        """Raise one floor to at least this, and keep why; return whether that is more than it was."""
        now = self._floors[number][position]
        raised = Floor(max(now.largest, least.largest), max(now.mean, least.mean))
        if raised == now:
            return False
        self._floors[number][position] = raised
        causes = self._causes.get((number, position), ())
        self._causes[number, position] = tuple(dict.fromkeys((*causes, cause)))
        return True

    def causes(self, number: int, position: int) -> tuple[str, ...]:
        """Return what raised the floor of case ``number`` and output ``position`` since it was first measured."""
        return self._causes.get((number, position), ())

    def _raise(self, number: int, answer: Sequence[Leaf]) -> None:
        """Raise the floors of a case to the errors of another answer of the original."""
        for position in self._floors[number]:
            if position >= len(answer):
                continue
            exact, value = self._evaluated[number].oracle[position].value, answer[position].value
            if isinstance(value, Tensor) and value.shape == exact.shape:
                error = measure(exact, value)
                self.raise_to(number, position, Floor(error.largest, error.mean), "redrawn")

    def _measure(self, position: int) -> None:
        errors = [_own_error(item, position) for item in self._evaluated]
        numbers = [error for error in errors if error is not None and not error.counted and error.peak > 0]
        typical = statistics.median([error.largest / error.peak for error in numbers] or [0.0])
        typical_mean = statistics.median([error.mean / error.peak for error in numbers] or [0.0])
        for item, floors, error in zip(self._evaluated, self._floors, errors, strict=True):
            if position >= len(item.original):
                continue
            if error is None:
                floors[position] = Floor(0.0, 0.0)
            elif error.counted:
                floors[position] = Floor(error.largest, 0.0)
            else:
                least = _least(item, position)
                floors[position] = Floor(
                    max(error.largest, max(typical, least) * error.peak),
                    max(error.mean, max(typical_mean, least / 2) * error.peak),
                )


def _own_error(item: Evaluated, position: int) -> Error | None:
    if position in item.jumps or position >= len(item.original):
        return None
    own, exact = item.original[position], item.oracle[position]
    if not own.is_tensor or not exact.is_tensor or own.value.shape != exact.value.shape:
        return None
    return measure(exact.value, own.value)


def _least(item: Evaluated, position: int) -> float:
    """Return the least floor, relative to the peak: half an ulp, or for float64 what the algebra may err."""
    return max(item.unit(position) / 2, ALGEBRA / 10)
