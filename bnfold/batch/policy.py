"""The policy: how much memory a model will need, and which one starts next. It starts nothing itself.

What is known beforehand is the size of the file and its kind, and from an earlier run how much the model held. What a
fold needs for weights of that size is told by :mod:`bnfold.cli.room`.
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bnfold.batch.job import Job, size_of
from bnfold.cli.room import BASE as EMPTY
from bnfold.cli.room import GIB, Work

__all__ = ["Need", "Queue", "estimate", "limit_for"]

OF_ONNX = 12.0
"""Bytes held for each byte of an .onnx file."""

VALUES = 15 * GIB // 100
"""Bytes for what lies between the layers, of which nothing is known beforehand."""

BASE = EMPTY + VALUES
"""Bytes that a process holds with a model of no size."""

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
    size = sum(size_of(path) for path in job.reads if path.startswith(job.source))
    if Path(job.source).suffix.lower() == ".onnx":
        return BASE + int(OF_ONNX * size)
    return VALUES + Work(size).bytes_needed


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
