"""The statistics, against what can be counted by hand; and the plain data."""

from __future__ import annotations

import json
import random
from math import comb

import pytest

from bnfold.bench.machine import this_machine
from bnfold.bench.result import Bench, Skipped, Spread, median_interval, quantile, timing_of


def test_a_spread_has_the_median_the_ends_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 1.0, 5.0, 2.0, 4.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize(("part", "value"), [(0.0, 1.0), (0.25, 1.75), (0.5, 2.5), (1.0, 4.0)])
def test_a_quantile_lies_between_its_neighbours(part: float, value: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], part) == value


def coverage(count: int, left_out: int) -> float:
    """P(the order statistics ``left_out`` from either end enclose the median), counted from the binomial."""
    return 1 - 2 * sum(comb(count, below) for below in range(left_out + 1)) / 2**count


@pytest.mark.parametrize("count", [6, 7, 20, 99, 100, 1000])
def test_the_interval_is_the_narrowest_that_holds_the_median_95_times_in_100(count: int) -> None:
    low, high = median_interval([float(value) for value in range(count)])
    left_out = int(low)
    assert high == count - 1 - left_out
    assert coverage(count, left_out) >= 0.95 > coverage(count, left_out + 1)


def test_many_values_are_taken_by_the_normal_approximation() -> None:
    low, high = median_interval([float(value) for value in range(5000)])
    assert coverage(5000, int(low)) == pytest.approx(0.95, abs=0.002)
    assert high == 4999 - low


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_values_have_an_interval_of_all(count: int) -> None:
    assert median_interval([float(value) for value in range(count)]) == (0.0, count - 1.0)


def test_the_speedup_is_that_within_the_rounds_so_a_slow_spell_does_not_count() -> None:
    spell = [1.0] * 10 + [50.0] * 10
    random.Random(0).shuffle(spell)
    timing = timing_of("eager", 1, [2.0 * slow for slow in spell], spell)
    assert (timing.speedup, timing.low, timing.high, timing.verdict) == (2.0, 2.0, 2.0, "faster")


@pytest.mark.parametrize(
    ("ratio", "verdict"), [([1.1] * 20, "faster"), ([0.9] * 20, "slower"), ([0.9, 1.1] * 10, "the same")]
)
def test_the_verdict_is_only_what_the_interval_allows(ratio: list[float], verdict: str) -> None:
    assert timing_of("eager", 1, ratio, [1.0] * 20).verdict == verdict


def test_a_pair_of_unequal_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        timing_of("eager", 1, [1.0, 2.0], [1.0])


def test_the_plain_data_is_json_with_everything_in_it() -> None:
    timing = timing_of("eager", 8, [2.0] * 6, [1.0] * 6)
    skipped = Skipped("compile", None, "no compiler.")
    data = json.loads(json.dumps(Bench(this_machine(), 2, "wall", (timing,), (skipped,), 1e-7).to_dict()))
    assert data.keys() == {"machine", "threads", "clock", "unit", "timings", "skipped", "difference"}
    assert data["unit"] == "seconds per call"
    assert data["machine"].keys() == {"processor", "cores", "system", "load"}
    (told,) = data["timings"]
    assert told.keys() == {"target", "batch", "original", "folded", "speedup", "low", "high", "verdict"}
    assert told["original"].keys() == {"median", "minimum", "maximum", "lower", "upper", "runs"}
    assert (told["target"], told["batch"], told["speedup"], told["verdict"]) == ("eager", 8, 2.0, "faster")
    assert data["skipped"] == [{"target": "compile", "batch": None, "reason": "no compiler."}]


def test_the_machine_is_named() -> None:
    machine = this_machine()
    assert machine.processor.strip()
    assert machine.cores >= 1
    assert "\n" not in machine.processor + machine.system
