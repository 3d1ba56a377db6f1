"""One process per job: results come back, and what hangs, dies or eats memory costs its own job only."""

from __future__ import annotations

import operator
import os
import time

from benchmarks.zoo_pool import run_all


def test_every_job_gives_its_result() -> None:
    finished = list(run_all(operator.neg, [1, 2, 3], processes=2, timeout=60, memory=2**33))
    assert sorted((one.job, one.result, one.failure) for one in finished) == [
        (1, -1, None),
        (2, -2, None),
        (3, -3, None),
    ]


def test_a_job_that_hangs_is_ended_and_the_others_run() -> None:
    start = time.perf_counter()
    finished = {one.job: one for one in run_all(time.sleep, [600, 0], processes=1, timeout=3, memory=2**33)}
    assert (finished[600].failure, finished[0].failure) == ("timeout", None)
    assert time.perf_counter() - start < 120


def test_a_job_that_ends_its_process_is_reported() -> None:
    (finished,) = run_all(os._exit, [3], processes=1, timeout=60, memory=2**33)
    assert (finished.failure, finished.result) == ("died", None)


def test_a_job_over_the_memory_limit_is_ended() -> None:
    (finished,) = run_all(time.sleep, [600], processes=1, timeout=60, memory=1)
    assert finished.failure == "memory"
    assert finished.peak_bytes > 1
