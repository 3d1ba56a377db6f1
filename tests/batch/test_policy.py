"""The policy: what fits runs, what is large comes first, nothing waits for ever."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.batch import policy
from bnfold.batch.job import Job
from bnfold.batch.policy import Need, Queue, estimate, limit_for
from bnfold.cli.room import GIB, machine_memory

NEEDS = st.lists(st.integers(1, 150), min_size=1, max_size=40)


def simulate(needs: list[int], memory: int, slots: int, seed: int) -> list[list[int]]:
    """Run the queue with ends in random order; return the needs that ran together after each start."""
    queue = Queue([Need(number, need) for number, need in enumerate(needs)], memory=memory, slots=slots)
    running: list[Need[int]] = []
    seen: list[list[int]] = []
    chance = random.Random(seed)
    started = set()
    while len(queue) or running:
        while (need := queue.next()) is not None:
            assert need.what not in started
            started.add(need.what)
            running.append(need)
            seen.append([each.memory for each in running])
        assert running, "something waits and nothing runs"
        done = running.pop(chance.randrange(len(running)))
        queue.ended(done)
    assert started == set(range(len(needs)))
    assert (queue.free, queue.running) == (memory, 0)
    return seen


@given(NEEDS, st.integers(1, 100), st.integers(1, 6), st.integers(0, 5))
def test_all_run_within_memory_and_slots_and_what_is_too_large_runs_alone(
    needs: list[int], memory: int, slots: int, seed: int
) -> None:
    for together in simulate(needs, memory, slots, seed):
        assert len(together) <= slots
        assert len(together) == 1 or sum(together) <= memory


@given(NEEDS, st.integers(1, 6))
def test_the_largest_that_fits_is_next(needs: list[int], slots: int) -> None:
    queue = Queue([Need(number, need) for number, need in enumerate(needs)], memory=100, slots=slots)
    first = queue.next()
    assert first is not None
    assert first.memory == max(needs)
    second = queue.next()
    left = sorted(needs)[:-1]
    fits = [need for need in left if need <= 100 - first.memory]
    assert (second.memory if second else None) == (max(fits) if fits and slots > 1 else None)


def test_a_large_one_is_not_overtaken_for_ever() -> None:
    queue = Queue([Need("small", 10) for _ in range(100)], memory=100, slots=2)
    running = [queue.next(), queue.next()]
    queue.add([Need("large", 95)])  # as one is that ran out of memory
    order: list[str | None] = []
    while "large" not in order:
        ended = running.pop(0)
        assert ended is not None
        queue.ended(ended)
        started = queue.next()
        order.append(started.what if started else None)
        running += [started] if started else []
    assert order == ["small"] * 4 + [None, "large"]


def test_what_is_added_later_takes_its_place() -> None:
    queue = Queue([Need("a", 5)], memory=10, slots=1)
    queue.add([Need("b", 7), Need("c", 3)])
    order = []
    while (need := queue.next()) is not None:
        order.append(need.what)
        queue.ended(need)
    assert order == ["b", "a", "c"]


def test_the_estimate_grows_with_the_file_and_goes_by_an_earlier_run_where_there_was_one(tmp_path: Path) -> None:
    (tmp_path / "small.pt").write_bytes(bytes(1000))
    (tmp_path / "large.onnx").write_bytes(bytes(1000))
    (tmp_path / "large.onnx.data").write_bytes(bytes(1000_000))

    def job(name: str | None) -> Job:
        path = None if name is None else str(tmp_path / name)
        return Job("a", path, (), "", () if path is None else (path, f"{path}.data", str(tmp_path / "code.py")))

    small, large = estimate(job("small.pt")), estimate(job("large.onnx"))
    assert policy.BASE < small < policy.BASE + 100_000
    assert large > policy.BASE + 10_000_000
    assert estimate(job(None)) == policy.UNKNOWN
    assert estimate(job("missing.pt")) == policy.BASE
    assert estimate(job("small.pt"), earlier=10 * GIB) == 11 * GIB


@pytest.mark.parametrize(
    ("expected", "given", "limit"), [(GIB, None, 4 * GIB), (3 * GIB, None, 9 * GIB), (9 * GIB, None, 10 * GIB)]
)
def test_the_limit_is_a_multiple_of_the_estimate_and_never_more_than_there_is(
    expected: int, given: int | None, limit: int
) -> None:
    assert limit_for(expected, 10 * GIB, given) == limit
    assert limit_for(expected, 10 * GIB, 4 * GIB) == 4 * GIB
    assert limit_for(expected, 10 * GIB, 40 * GIB) == 10 * GIB


def test_the_machine_keeps_some_of_its_memory() -> None:
    assert 0 < machine_memory() < psutil.virtual_memory().total
    assert policy.cores() >= 1
