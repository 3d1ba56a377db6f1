"""Run one job per process, some at a time, each under a limit of time and of memory.

A model that crashes its interpreter, hangs, or eats the memory costs its own record and nothing else. The processes are
forked from a server that has imported torch and the libraries once.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

__all__ = ["Finished", "run_all"]

Job = TypeVar("Job")
POLL_SECONDS = 0.5
SPARE_BYTES = 2 * 2**30  # left to everybody else on the machine


@dataclass(frozen=True)
class Finished(Generic[Job]):
    """What became of one job.

    Attributes:
        job: the job.
        result: what the function returned, or None.
        failure: why there is no result: ``"timeout"``, ``"memory"`` or ``"died"``; None where there is one.
        seconds: how long it took.
        peak_bytes: the most memory that its process was seen to hold.
    """

    job: Job
    result: Any
    failure: str | None
    seconds: float
    peak_bytes: int


@dataclass
class _Running(Generic[Job]):
    job: Job
    process: Any
    pipe: Connection
    start: float
    peak: int = 0


def run_all(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    *,
    processes: int,
    timeout: float,
    memory: float,
    preload: Sequence[str] = (),
    needs: Callable[[Job], float] = lambda _job: 0.0,
) -> Iterator[Finished[Job]]:
    """Run ``function(job)`` for every job in a process of its own; yield what became of each as it ends.

    Args:
        function: importable by name, as are the jobs' classes; its result must pickle.
        jobs: in the order in which they start.
        processes: how many run at a time.
        timeout: seconds that one may take.
        memory: bytes that one process may hold.
        preload: modules that the server imports once for all.
        needs: about how many bytes a job will need; it waits while the machine has less to spare, unless it is alone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting, running = list(reversed(jobs)), list[_Running[Job]]()
    try:
        while waiting or running:
            while waiting and len(running) < processes and (not running or _room(needs(waiting[-1]))):
                running.append(_start(context, function, waiting.pop()))
            wait([one.pipe for one in running], timeout=POLL_SECONDS)
            for one in list(running):
                finished = _look(one, timeout, memory)
                if finished is not None:
                    running.remove(one)
                    yield finished
    finally:
        for one in running:
            one.process.kill()
            one.process.join()


def _start(context: Any, function: Callable[[Job], Any], job: Job) -> _Running[Job]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, function, job), daemon=True)
    process.start()
    theirs.close()
    return _Running(job, process, ours, time.perf_counter())


def _work(pipe: Connection, function: Callable[[Job], Any], job: Job) -> None:
    """Run the job; what it prints goes nowhere: a failing torch.export prints megabytes."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    pipe.send(function(job))
    pipe.close()


def _look(one: _Running[Job], timeout: float, memory: float) -> Finished[Job] | None:
    """What became of a process, or None while it runs within its limits."""
    one.peak = max(one.peak, _resident_bytes(one.process.pid))
    seconds = time.perf_counter() - one.start
    result, failure = None, None
    if one.pipe.poll():
        try:
            result = one.pipe.recv()
        except EOFError:
            failure = "died"
    elif not one.process.is_alive():
        failure = "died"
    elif seconds > timeout:
        failure = "timeout"
    elif one.peak > memory:
        failure = "memory"
    else:
        return None
    if failure is not None:
        one.process.kill()
    one.process.join()
    one.pipe.close()
    return Finished(one.job, result, failure, round(seconds, 2), one.peak)


def _resident_bytes(pid: int) -> int:
    """Memory that a process holds, or 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def _room(needed: float) -> bool:
    """Whether the machine can spare that many bytes; yes where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return True
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return free is None or free - needed > SPARE_BYTES
