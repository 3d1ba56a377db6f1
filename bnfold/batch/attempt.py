"""One attempt at a model, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from bnfold.batch.job import Job

__all__ = ["Attempt", "Ended", "Place"]


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job.

    Attributes:
        job: what is to be done.
        expected: bytes that it will about hold.
        limit: bytes that it may hold.
        before: how earlier attempts ended, each a sentence.
        lost: how often the machine that it ran on went away; that is not the model's fault.
    """

    job: Job
    expected: int
    limit: int
    before: tuple[str, ...] = ()
    lost: int = 0


@dataclass(frozen=True)
class Ended:
    """An attempt that has ended.

    Attributes:
        attempt: which.
        told: a part of the model's record: outcome, exit code, error, seconds, and so on.
        lost: why nothing is known of it, where its machine went away; None else.
    """

    attempt: Attempt
    told: dict[str, Any] = field(default_factory=dict)
    lost: str | None = None


class Place(Protocol):
    """Where models run: this machine, or a cluster.

    Attributes:
        slots: how many models it is given at a time.
        memory: bytes for all of them together.
        largest: bytes that one model may hold alone.
    """

    slots: int
    memory: int
    largest: int

    def __enter__(self) -> Place: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that still runs."""

    def start(self, attempt: Attempt) -> None:
        """Start an attempt."""

    def wait(self, seconds: float) -> Iterator[Ended]:
        """Wait until attempts end, or for some seconds; yield those that ended."""

    def stages(self) -> dict[str, str]:
        """Return the stage of each model that runs, by name."""
