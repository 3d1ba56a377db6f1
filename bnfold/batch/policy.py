"""The policy: how much memory a model will need, and which one starts next. It starts nothing itself.

What is known beforehand is the size of the file and its kind, and from an earlier run how much the model held. Measured
on networks of 1 to 150 million parameters, a fold with both outputs and its proof holds 0.45 GiB and 70 bytes for each
parameter, which is 17.5 times a file of float32 weights: original and fold, each in float64 too, the exports, and the
session that runs them.
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from bnfold.batch.job import Job, size_of

__all__ = ["Need", "Queue", "estimate", "limit_for", "machine_memory"]

GIB = 1 << 30
BASE = 6 * GIB // 10
"""Bytes that a process holds with a model of no size: torch, ONNX Runtime, and what they compute with."""

BYTES_FOR_EACH = {".pt": 18.0, ".pth": 18.0, ".safetensors": 18.0, ".pt2": 18.0, ".onnx": 12.0}
"""Bytes held for each byte of the file."""

UNKNOWN = 2 * GIB
"""For a model that code makes, of which nothing is known."""

SLACK = 3.0  # how many times its estimate a model may hold, where no limit is given
LEAST_LIMIT = 4 * GIB
OVERTAKERS = 2  # times the slots: so many may start before a larger one that waits for room

T = TypeVar("T")


def estimate(job: Job, earlier: int | None = None) -> int:
    """Return the bytes that a job will about hold.

    Args:
        job: what is to be run.
        earlier: what it held in an earlier run, if there was one.
    """
    if earlier:
        return earlier * 11 // 10
    if job.source is None:
        return job.memory or UNKNOWN
    factor = BYTES_FOR_EACH.get(Path(job.source).suffix.lower(), 18.0)
    return BASE + int(factor * sum(size_of(path) for path in job.reads if path.startswith(job.source)))


def limit_for(expected: int, largest: int, given: int | None) -> int:
    """Return the bytes that a job may hold in its first attempt.

    Args:
        expected: its estimate.
        largest: that a job may hold alone, on the largest machine there is.
        given: the user's limit.
    """
    if given is not None:
        return min(given, largest)
    return min(max(int(expected * SLACK), LEAST_LIMIT), largest)


def machine_memory() -> int:
    """Return the bytes of memory that this machine, or the container in it, has to spare now, but for a part."""
    memory = psutil.virtual_memory()
    spare = memory.available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        if limit.isdecimal():
            spare = min(spare, int(limit) - used)
    except (OSError, ValueError):
        pass
    return max(int(spare * 0.92), GIB // 4)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Need(Generic[T]):
    """Something that waits to start, and the bytes that it needs."""

    what: T
    memory: int


class Queue(Generic[T]):
    """What waits, and which starts next: the largest that fits, so that the long ones do not come last.

    A large one that waits for room is overtaken by smaller ones that fit, but not for ever: after a while nothing else
    starts until it fits. One that needs more than there is runs alone.

    Args:
        waiting: in any order.
        memory: bytes for all that run at a time.
        slots: how many run at a time.

    Attributes:
        free: bytes that nothing that runs needs.
        running: how many run.
    """

    def __init__(self, waiting: list[Need[T]], *, memory: int, slots: int) -> None:
        self._waiting = sorted(waiting, key=lambda need: need.memory)  # the largest last
        self._total = self.free = memory
        self._slots = slots
        self._overtaken = 0
        self.running = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, needs: list[Need[T]]) -> None:
        """Let more wait."""
        for need in needs:
            bisect.insort(self._waiting, need, key=lambda each: each.memory)

    def next(self) -> Need[T] | None:
        """Take what starts now out of the queue; None where nothing can."""
        if not self._waiting or self.running >= self._slots:
            return None
        index = len(self._waiting) - 1
        if self.running and self._waiting[index].memory > self.free:
            if self._overtaken >= OVERTAKERS * self._slots:
                return None
            index = bisect.bisect_right(self._waiting, self.free, key=lambda need: need.memory) - 1
            if index < 0:
                return None
            self._overtaken += 1
        else:
            self._overtaken = 0
        need = self._waiting.pop(index)
        self.free -= need.memory
        self.running += 1
        return need

    def ended(self, need: Need[T]) -> None:
        """Give back what something that ran has needed."""
        self.free += need.memory
        self.running -= 1
