"""Models on this machine: each has a watcher, a process of pebble's that can be killed, and under it its own process.

pebble and not loky: an executor of loky is broken as a whole when one of its processes is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pebble
from pebble import concurrent

from bnfold.batch.attempt import Attempt, Ended
from bnfold.batch.child import read_state
from bnfold.batch.job import FOLD, Job, digest
from bnfold.batch.policy import cores
from bnfold.batch.records import hold_folder
from bnfold.batch.watch import Limits, watch
from bnfold.cli.room import machine_memory

__all__ = ["Here", "start_watcher"]

PRELOAD = ("bnfold.batch.preload",)


class Here:
    """The processes of this machine.

    Args:
        jobs: how many models at a time; None for one a core.
        work: what runs for each model; its module is imported once for all.

    Attributes:
        slots: how many models run at a time.
        memory: bytes for all of them together.
        largest: bytes that one model may hold alone.
    """

    def __init__(self, jobs: int | None = None, work: str = FOLD) -> None:
        self.slots = jobs or cores()
        self.memory = self.largest = machine_memory()
        self._work = work.partition(":")[0]
        self._threads = max(1, cores() // self.slots)
        self._running: dict[Future[Any], Attempt] = {}

    def __enter__(self) -> Here:
        _preload(self._threads, [*PRELOAD, self._work])
        return self

    def __exit__(self, *_: object) -> None:
        """End every process that still runs."""
        for future in self._running:
            future.cancel()
        for future in self._running:
            _stopped(future)
        self._running = {}

    def start(self, attempt: Attempt) -> None:
        """Start an attempt."""
        limits = Limits(attempt.limit, attempt.job.seconds, attempt.expected, self._threads)
        self._running[start_watcher(attempt.job, limits)] = attempt

    def wait(self, seconds: float) -> Iterator[Ended]:
        """Wait until attempts end, or for some seconds; yield those that ended."""
        done, _ = wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED)
        for future in done:
            yield Ended(self._running.pop(future), _part_of_record(future))

    def stages(self) -> dict[str, str]:
        """Return the stage of each model that runs, by name."""
        return {
            attempt.job.name: str(read_state(attempt.job.folder).get("stage", "starting"))
            for attempt in self._running.values()
        }


def _part_of_record(future: Future[Any]) -> dict[str, Any]:
    try:
        return dict(future.result())
    except (pebble.ProcessExpired, CancelledError) as error:
        return {
            "outcome": "died",
            "exit_code": None,
            "error": f"The process that watched over it was ended: {error}.",
            "summary": None,
            "outputs": [],
        }


def start_watcher(job: Job, limits: Limits, method: str | None = None) -> Future[Any]:
    """Start a watcher over a job; its result is a part of the job's record.

    Args:
        job: what is to be done.
        limits: for it.
        method: how the watcher's process is made: by default from the server that has torch imported.
    """
    context: Any = multiprocessing.get_context(method or ("forkserver" if sys.platform == "linux" else "spawn"))
    where = {"context": context, "mp_context": context}  # pebble 5.2 declares the second and reads the first
    with _without_main():
        future: Future[Any] = concurrent.process(daemon=False, **where)(_watched)(job, limits)
    return future


def _watched(job: Job, limits: Limits) -> dict[str, Any]:
    """Watch over a job; runs in the watcher."""
    results = Path(job.folder).parent.parent
    held = hold_folder(str(results)) if results.is_dir() else -1
    sha256, key = digest(job)
    try:
        told = watch(job, limits) | {"sha256": sha256, "key": key}
    except SystemExit:
        os._exit(0)  # nobody waits for a result
    if held >= 0:
        os.close(held)
    return told


def _preload(threads: int, modules: list[str]) -> None:
    """Start the server that watchers are forked from, with modules imported and torch for so many threads."""
    if sys.platform != "linux":
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    found = os.pathsep.join(path for path in sys.path if path)  # the server imports before it is told of sys.path
    with _environment(OMP_NUM_THREADS=str(threads), PYTHONPATH=found):
        forkserver.ensure_running()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from running the user's script again in every process: nothing in it is needed there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _stopped(future: Future[Any]) -> None:
    """Wait until pebble has ended the process of a cancelled future."""
    with contextlib.suppress(BaseException):
        future.result(timeout=0)
