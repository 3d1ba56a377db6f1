"""Contestants take turns; the clock here is one that only the contestants move."""

from __future__ import annotations

import gc

import pytest

from bnfold.bench.turns import measure

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")  # each measurement collects garbage before


class Course:
    """A clock, and contestants that each take a fixed time and leave their name."""

    def __init__(self, **durations: float) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.contestants = {name: self.contestant(name, duration) for name, duration in durations.items()}

    def contestant(self, name: str, duration: float):
        def run() -> None:
            self.now += duration
            self.calls.append(name)

        return run

    def clock(self) -> float:
        return self.now


def test_each_gets_its_own_time_and_as_many_runs_as_the_others() -> None:
    course = Course(slow=0.25, quick=0.125)
    times = measure(course.contestants, seconds=3.0, clock=course.clock)
    assert times == {"slow": [0.25] * 8, "quick": [0.125] * 8}


def test_in_every_round_each_runs_once_and_the_order_changes() -> None:
    course = Course(a=0.25, b=0.25)
    rounds = len(measure(course.contestants, seconds=20.0, clock=course.clock)["a"])
    timed = course.calls[-2 * rounds :]
    orders = [tuple(timed[start : start + 2]) for start in range(0, len(timed), 2)]
    assert set(orders) == {("a", "b"), ("b", "a")}
    assert 0.25 < orders.count(("a", "b")) / rounds < 0.75


def test_the_order_is_that_of_the_seed() -> None:
    def order(seed: int) -> list[str]:
        course = Course(a=0.25, b=0.25)
        measure(course.contestants, seconds=10.0, clock=course.clock, seed=seed)
        return course.calls

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_run_too_short_to_time_is_repeated_and_divided() -> None:
    course = Course(short=2**-13, long=0.5)
    times = measure(course.contestants, seconds=5.0, clock=course.clock)
    assert times["short"][0] == 2**-13
    assert course.calls.count("short") > 5 * course.calls.count("long")


def test_at_least_five_rounds_are_run_however_little_time_there_is() -> None:
    course = Course(a=100.0)
    assert len(measure(course.contestants, seconds=0.0, clock=course.clock)["a"]) == 5


def test_a_run_that_takes_no_time_by_the_clock_comes_to_an_end() -> None:
    course = Course(nothing=0.0, something=0.25)
    times = measure(course.contestants, seconds=1.0, clock=course.clock)
    assert set(times["nothing"]) == {0.0}


def test_progress_goes_from_none_to_all() -> None:
    course, told = Course(a=0.25), []
    measure(course.contestants, seconds=4.0, clock=course.clock, progress=told.append)
    assert told[0] == 0.0
    assert told == sorted(told)
    assert 0.9 < told[-1] <= 1.0


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_it_runs_and_then_as_before(enabled: bool) -> None:
    seen: list[bool] = []
    course = Course(a=0.25)
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        measure({"a": lambda: (course.contestants["a"](), seen.append(gc.isenabled()))}, seconds=2, clock=course.clock)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert seen[-1] is False


def test_the_collector_is_put_back_where_a_contestant_fails() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure({"a": fail}, seconds=1.0)
    assert gc.isenabled()
