"""The stages of a run: how long each takes, and a progress bar once the whole takes more than a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bnfold.cli.listener import listener
from bnfold.report.escape import visible

__all__ = ["Stages"]

_PATIENCE = 1.0  # seconds of silence before a bar appears


class Stages:
    """Times stages and shows where the run is.

    Args:
        console: the terminal's stderr.
        names: the stages to come, in order, with what to say while each runs.
        show: whether a bar may be shown at all.

    Attributes:
        seconds: what each stage took so far; of a part of a stage by ``"stage.part"``.
    """

    def __init__(self, console: Console, names: Sequence[tuple[str, str]], *, show: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._order = [name for name, _ in names]
        self._sentences = dict(names)
        self._lock = threading.Lock()
        self._done = False
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None
        if show and console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._progress.add_task("starting", total=float(len(self._order)))

    def __enter__(self) -> Stages:
        if self._progress is not None:
            self._timer = threading.Timer(_PATIENCE, self._appear)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Take the bar away, for good."""
        with self._lock:
            self._done = True
            if self._timer is not None:
                self._timer.cancel()
            if self._progress is not None:
                self._progress.stop()

    def _appear(self) -> None:
        with self._lock:
            if not self._done and self._progress is not None:
                self._progress.start()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage; what it is entered for again is added up."""
        self._show(self._sentences.get(name, name), self._order.index(name))
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def add_parts(self, name: str, parts: Mapping[str, float]) -> None:
        """Say how long the parts of the stage ``name`` took, in seconds."""
        for part, seconds in parts.items():
            key = f"{name}.{part}"
            self.seconds[key] = self.seconds.get(key, 0.0) + seconds

    def inside(self, name: str, sentence: str, done: float) -> None:
        """Say how far the stage ``name`` is: ``done`` from 0 to 1."""
        self._show(sentence, self._order.index(name) + min(max(done, 0.0), 1.0))

    def _show(self, sentence: str, completed: float) -> None:
        listener().stage(sentence)
        if self._progress is not None:
            self._progress.update(self._task, description=visible(sentence), completed=completed)
