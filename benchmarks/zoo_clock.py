"""Stages of a check: which one runs, how long each takes, and what an error says in one line."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bnfold.fold import api

__all__ = ["Stage", "message", "since", "timed"]

STAGES = {"_capture": "capture", "plan_model": "plan", "rewrite_model": "rewrite"}  # functions of bnfold.fold.api


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


@contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Measure a fold and, within it, its stages: the functions that bnfold.fold.api calls for them."""
    originals = {name: getattr(api, name) for name in STAGES}
    spent = dict.fromkeys(originals, 0.0)
    depth = [0]

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                depth[0] -= 1
                if depth[0] == 0:  # a stage inside a stage belongs to the outer one
                    spent[name] += time.perf_counter() - start

        return wrapper

    for name, function in originals.items():
        setattr(api, name, timed(name, function))
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds["fold"] = since(start)
        for name, function in originals.items():
            setattr(api, name, function)
            seconds[STAGES[name]] = round(spent[name], 4)


def message(error: BaseException) -> str:
    """Return an error's type and text in one line of at most 400 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else text[:397] + "..."


def since(start: float) -> float:
    """Return the seconds since a reading of ``time.perf_counter``."""
    return round(time.perf_counter() - start, 4)
