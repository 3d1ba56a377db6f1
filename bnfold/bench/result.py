"""What a measurement of latency found, as plain data.

All times are in seconds for one call of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

__all__ = ["Bench", "Machine", "Skipped", "Spread", "Timing", "median_interval", "quantile", "timing_of"]


@dataclass(frozen=True)
class Spread:
    """How the times of one contestant are spread.

    Attributes:
        median: half of the runs took no longer, in seconds.
        minimum: the shortest run.
        maximum: the longest run.
        lower: the first quartile.
        upper: the third quartile.
        runs: how many runs there were.
    """

    median: float
    minimum: float
    maximum: float
    lower: float
    upper: float
    runs: int

    @staticmethod
    def of(times: Sequence[float]) -> Spread:
        """Return the spread of at least one time.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, minimum=1.0, maximum=3.0, lower=1.5, upper=2.5, runs=3)
        """
        values = sorted(times)
        return Spread(
            median(values), values[0], values[-1], quantile(values, 0.25), quantile(values, 0.75), len(values)
        )


@dataclass(frozen=True)
class Timing:
    """The latency of both models on one target at one batch size.

    Attributes:
        target: ``"eager"``, ``"channels-last"``, ``"compile"`` or ``"onnxruntime"``.
        batch: the batch size; None where the inputs have no batch dimension.
        original: times of the original.
        folded: times of the folded model.
        speedup: the median over all rounds of original / folded; above 1, folding made it faster.
        low: lower end of the 95 % confidence interval of that median.
        high: upper end of it.
    """

    target: str
    batch: int | None
    original: Spread
    folded: Spread
    speedup: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``"faster"`` or ``"slower"`` where the interval leaves 1 on one side, else ``"the same"``."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "the same"


@dataclass(frozen=True)
class Skipped:
    """A target that was not measured.

    Attributes:
        target: its name.
        batch: the batch size, or None for all.
        reason: one sentence.
    """

    target: str
    batch: int | None
    reason: str


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        processor: the model of the CPU.
        cores: how many the process may use.
        system: operating system and architecture.
        load: how many processes wanted a core in the last minute, before the measurement; None where unknown.
    """

    processor: str
    cores: int
    system: str
    load: float | None


@dataclass(frozen=True)
class Bench:
    """The latency of a model before and after folding.

    Attributes:
        machine: where it was measured.
        threads: how many each target computes with.
        clock: ``"wall"``, or ``"cpu"`` for the process's CPU time.
        timings: one for each target and batch size.
        skipped: what could not be measured, and why.
        difference: how far the two models' outputs are apart, as a part of the largest output; None where unknown. It
            guards against timing two different functions, and is no proof of anything.
    """

    machine: Machine
    threads: int
    clock: str
    timings: tuple[Timing, ...]
    skipped: tuple[Skipped, ...] = ()
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data; each timing with its ``verdict``."""
        data = asdict(self)
        data["unit"] = "seconds per call"
        data["timings"] = [asdict(timing) | {"verdict": timing.verdict} for timing in self.timings]
        data["skipped"] = [asdict(skipped) for skipped in self.skipped]
        return data


def timing_of(target: str, batch: int | None, original: Sequence[float], folded: Sequence[float]) -> Timing:
    """Return what times taken in turn say: run ``i`` of one was taken beside run ``i`` of the other.

    What slows the machine down for a while slows both runs of a round, and leaves their ratio alone.
    """
    ratios = [before / after for before, after in zip(original, folded, strict=True)]
    low, high = median_interval(ratios)
    return Timing(target, batch, Spread.of(original), Spread.of(folded), median(ratios), low, high)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval for the median of what ``values`` are drawn from, by order statistics.

    The number of values below the median is binomial with p = 1/2, so values ``k`` from either end enclose it with a
    probability that depends on nothing else. With fewer than six values all of them together do not reach 95 %; then
    the interval is from the least to the largest.

    Source:
        Conover, Practical Nonparametric Statistics, 3rd ed. 1999, section 3.2.

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (1.0, 6.0)
    """
    ordered, count = sorted(values), len(values)
    if count > 1000:  # the normal approximation; the binomial terms would underflow
        rank = math.floor((count + 1 - 1.96 * math.sqrt(count)) / 2)
    else:
        rank, below, term = 0, 0.0, 0.5**count  # P(fewer than `rank` values lie below), P(just `rank` do)
        while below + term <= 0.025:
            below += term
            rank += 1
            term *= (count - rank + 1) / rank
    left_out = max(rank - 1, 0)  # at either end
    return ordered[left_out], ordered[-1 - left_out]


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of the ordered values lie, between neighbours by a straight line."""
    place = part * (len(ordered) - 1)
    first = math.floor(place)
    second = min(first + 1, len(ordered) - 1)
    return ordered[first] + (place - first) * (ordered[second] - ordered[first])
