"""Who listens to a run from within its own process: ``bnfold batch``, to tell what a model's process is doing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Listener", "listen", "listener"]


class Listener(Protocol):
    """Hears what a run shows and says, as it does."""

    def stage(self, sentence: str) -> None:
        """Hear that another stage, or another step within it, has begun."""

    def error(self, what: str, fix: str) -> None:
        """Hear what went wrong and what to do about it."""


class _Nobody:
    def stage(self, sentence: str) -> None: ...

    def error(self, what: str, fix: str) -> None: ...


_now: list[Listener] = [_Nobody()]


def listener() -> Listener:
    """Return who listens now; someone who does nothing where nobody does."""
    return _now[0]


def listen(who: Listener) -> None:
    """Let ``who`` hear everything from now on, until the process ends."""
    _now[0] = who
