"""How a run goes, on stderr: a live picture in a terminal, a line every minute elsewhere; failures as they come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bnfold.batch.records import Record
from bnfold.batch.units import memory_in_words, seconds_in_words
from bnfold.report.escape import visible

if TYPE_CHECKING:
    from bnfold.cli.terminal import Terminal

__all__ = ["OnStderr", "Progress", "Silent"]

_LINE_SECONDS = 60.0
_SHOWN_RUNNING = 12


class Progress(Protocol):
    """Who is told how a run goes."""

    def begin(self, done: int, weights: Mapping[str, float]) -> None:
        """Hear how many models were done before, and which are to be done, each with what it weighs beside others."""

    def say(self, sentence: str) -> None:
        """Hear something that the user should know."""

    def ended(self, record: Record) -> None:
        """Hear that a model has its record."""

    def look(self, stages: Mapping[str, str], waiting: int) -> None:
        """Hear which models run, each with its stage, and how many wait; several times a second."""


class Silent:
    """Tells nobody."""

    def begin(self, done: int, weights: Mapping[str, float]) -> None:
        """Do nothing."""

    def say(self, sentence: str) -> None:
        """Do nothing."""

    def ended(self, record: Record) -> None:
        """Do nothing."""

    def look(self, stages: Mapping[str, str], waiting: int) -> None:
        """Do nothing."""


class OnStderr:
    """Tells a person. To be used in a ``with``, at the end of which the picture goes away.

    Args:
        terminal: whose stderr is written to.
        line_seconds: from one line to the next, where that is no terminal.
    """

    def __init__(self, terminal: Terminal, *, line_seconds: float = _LINE_SECONDS) -> None:
        self._terminal = terminal
        self._line_seconds = line_seconds
        self._weights: dict[str, float] = {}
        self._outcomes: Counter[str] = Counter()
        self._total = self._before = 0
        self._done_weight = 0.0
        self._since: dict[str, float] = {}
        self._start = self._last_line = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> OnStderr:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, done: int, weights: Mapping[str, float]) -> None:
        """Start the clock, and the picture."""
        self._weights = dict(weights)
        self._before, self._total = done, done + len(weights)
        self._start = self._last_line = time.monotonic()
        if done:
            self.say(f"{done} of {self._total} models are done already.")
        if self._terminal.err.is_terminal and not self._terminal.quiet:
            self._live = Live(console=self._terminal.err, transient=True, auto_refresh=False)
            self._live.start()

    def say(self, sentence: str) -> None:
        """Print a note."""
        self._terminal.note(sentence)

    def ended(self, record: Record) -> None:
        """Count it; print what is not equivalent."""
        self._outcomes[record["outcome"]] += 1
        self._done_weight += self._weights.get(record["name"], 0.0)
        self._since.pop(record["name"], None)
        if record["outcome"] != "equivalent":
            self._terminal.warn(failure_line(record))

    def look(self, stages: Mapping[str, str], waiting: int) -> None:
        """Renew the picture, or print the line that is due."""
        now = time.monotonic()
        for name in stages:
            self._since.setdefault(name, now)
        if self._live is not None:
            self._live.update(self._picture(stages, waiting, now), refresh=True)
        elif now - self._last_line >= self._line_seconds and not self._terminal.quiet:
            self._last_line = now
            self._terminal.err.print(Text(self._line(len(stages), waiting, now)), soft_wrap=True)

    def _line(self, running: int, waiting: int, now: float) -> str:
        done = self._before + sum(self._outcomes.values())
        bad = sum(self._outcomes.values()) - self._outcomes["equivalent"]
        parts = [f"{done} of {self._total} done", f"{running} running", f"{waiting} waiting"]
        if bad:
            parts.append(f"{bad} not equivalent")
        return ", ".join(parts) + f"; {seconds_in_words(now - self._start)}{self._left(now)}"

    def _left(self, now: float) -> str:
        """Say how long it may still take, once there is something to tell by."""
        total = sum(self._weights.values())
        if self._done_weight <= 0 or self._done_weight >= total:
            return ""
        left = (now - self._start) * (total - self._done_weight) / self._done_weight
        return f", about {seconds_in_words(left)} left"

    def _picture(self, stages: Mapping[str, str], waiting: int, now: float) -> Group:
        rows = Table.grid(padding=(0, 2))
        for name in list(stages)[:_SHOWN_RUNNING]:
            rows.add_row(
                Text(visible(name), overflow="ellipsis", no_wrap=True),
                Text(visible(stages[name]), style="cyan"),
                Text(seconds_in_words(now - self._since[name]), style="dim"),
            )
        if len(stages) > _SHOWN_RUNNING:
            rows.add_row(Text(f"and {len(stages) - _SHOWN_RUNNING} more", style="dim"))
        done = self._before + sum(self._outcomes.values())
        bar = ProgressBar(total=max(self._total, 1), completed=done, width=40)
        return Group(rows, bar, Text(self._line(len(stages), waiting, now)))


def failure_line(record: Record) -> str:
    """Return what became of a model that is not equivalent, in a line."""
    error = f": {record['error']}" if record.get("error") else "."
    held = f" It held {memory_in_words(record['peak_bytes'])}." if record["outcome"] == "out-of-memory" else ""
    return f"{record['name']} {record['outcome']}{error}{held}"
