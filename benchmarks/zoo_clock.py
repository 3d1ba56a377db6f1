"""Stages of a check: which one runs, how long each takes; and what an error says in one line."""

from __future__ import annotations

import time

__all__ = ["Stage", "message", "since"]


class Stage:
    """Which stage a check is in, and how many seconds each took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.name = ""
        self.start = time.perf_counter()

    def enter(self, name: str) -> None:
        """End the stage that runs, and begin another; an empty name begins none."""
        if self.name:
            self.seconds[self.name] = since(self.start)
        self.name, self.start = name, time.perf_counter()


def message(error: BaseException) -> str:
    """Return an error's type and text in one line of at most 400 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else text[:397] + "..."


def since(start: float) -> float:
    """Return the seconds since a reading of ``time.perf_counter``."""
    return round(time.perf_counter() - start, 4)
