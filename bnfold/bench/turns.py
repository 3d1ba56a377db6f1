"""Times callables against each other: in turn, each round in a new order.

Short runs one after the other compare two moments of the machine more than two programs. Here all contestants run in
every round, so that whatever else the machine does meets them alike, and the order within a round is drawn anew, so
that none of them always runs in the other's wake.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["CLOCKS", "Clock", "measure"]

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}

_WARM_UP = 3  # runs of each before any counts: the first ones allocate, compile and fill caches
_LEAST = 5  # rounds, however long they take
_MOST = 100_000
_SHORTEST = 1e-3  # seconds: a run is repeated inside one measurement until that takes at least so long


def measure(
    contestants: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    clock: Clock = time.perf_counter,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds that one call of each contestant took, in each round.

    Args:
        contestants: what to call, by name.
        seconds: how long to go on, in the clock's time; at least five rounds are run.
        clock: the time now, in seconds.
        seed: of the order within the rounds.
        progress: is told how much of the time has gone, from 0 to 1.

    Returns:
        For each contestant one time per round; run ``i`` of all of them belongs to one round.
    """
    repeats = {name: _repeats(run, clock) for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names, shuffled = list(contestants), random.Random(seed)
    with _no_garbage_collection():
        begin = clock()
        for number in range(_MOST):
            gone = clock() - begin
            if gone >= seconds and number >= _LEAST:
                break
            if progress is not None:
                progress(min(gone / seconds, 1.0) if seconds > 0 else 1.0)
            shuffled.shuffle(names)
            for name in names:
                times[name].append(_time(contestants[name], repeats[name], clock))
    return times


def _repeats(run: Callable[[], object], clock: Clock) -> int:
    """Warm up, and return how many calls make one measurement."""
    for _ in range(_WARM_UP):
        run()
    once = _time(run, 1, clock)
    return 1 if once >= _SHORTEST else max(1, round(_SHORTEST / max(once, _SHORTEST / 1000)))


def _time(run: Callable[[], object], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before and not during the runs: it would be counted for whoever runs just then."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
