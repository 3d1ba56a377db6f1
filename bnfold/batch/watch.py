"""Over a model's process: it starts it, holds it to its limits, ends it with all its children, and says how it went.

The watcher is a small process too, one for each model, here and on a cluster. It imports neither torch nor the model's
code. Where whoever started it goes away, killed perhaps, it ends the model's process and then itself, so that nothing
is left to run. On Linux it adopts what the model's process leaves behind, be it in a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from bnfold.batch.child import STATE, read_state, work
from bnfold.batch.job import Job
from bnfold.batch.units import memory_in_words, seconds_in_words

__all__ = ["LOG", "Limits", "watch"]

LOG = "log.txt"
LOOK_SECONDS = 0.05
"""Between two looks at the memory: an allocation fills some 100 MB meanwhile."""

_FAMILY_SECONDS = 0.5  # between two searches for children, which read the whole process table
_LOG_BYTES = 64 << 20
_KEPT_FREE = 0.03  # of the machine's memory: below, what is over its estimate ends before the machine does
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl


@dataclass(frozen=True)
class Limits:
    """What one attempt may take.

    Attributes:
        memory: bytes that the process and its children may hold together.
        seconds: of wall-clock time; None for no limit.
        expected: bytes that were reckoned with: above this the process ends where the machine's memory does.
        threads: to compute with; None for one a core.
    """

    memory: int
    seconds: float | None = None
    expected: int = 0
    threads: int | None = None


def watch(job: Job, limits: Limits) -> dict[str, Any]:
    """Do a job in a process of its own, and return how it went, as a part of its record."""
    signal.signal(signal.SIGTERM, _leave)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    shutil.rmtree(job.folder, ignore_errors=True)
    os.makedirs(job.folder, exist_ok=True)
    killed_for_memory, start = _oom_kills(), time.monotonic()
    pid = _start(job, limits.threads)
    try:
        family = _Family(pid)
        ended = _wait(pid, limits, family, Path(job.folder, LOG))
    finally:
        _end_all(pid)
    seconds = round(time.monotonic() - start, 3)
    state = read_state(job.folder)
    for name in (STATE, Path(STATE).with_suffix(".tmp").name):
        Path(job.folder, name).unlink(missing_ok=True)
    if ended.code == -signal.SIGKILL and ended.stopped is None and _oom_kills() > killed_for_memory:
        ended.stopped = "memory"
    told = _told(ended, state, limits)
    if told["outcome"] in ("timeout", "out-of-memory", "died"):
        _keep_log_only(job.folder)
    return told | {"seconds": seconds, "peak_bytes": max(family.peak, ended.peak)}


@dataclass
class _Ended:
    """How a process ended: its exit code, below 0 for a signal; why it was stopped; the most memory that it held."""

    code: int
    stopped: str | None = None
    peak: int = 0


def _told(ended: _Ended, state: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Return outcome, exit code, summary, outputs and error."""
    result: dict[str, Any] = {"summary": None, "outputs": [], **(state.get("result") or {})}
    told: dict[str, Any] = {"exit_code": ended.code if ended.code >= 0 else None, "error": state.get("error")}
    at = f" while {state['stage']}" if state.get("stage") else ""
    if ended.stopped == "time" and limits.seconds is not None:
        told |= {"outcome": "timeout", "exit_code": None}
        told["error"] = f"It took longer than {seconds_in_words(limits.seconds)}{at}, and was ended."
    elif ended.stopped == "memory" or state.get("no_memory"):
        told |= {"outcome": "out-of-memory", "exit_code": None}
        told["error"] = f"It ran out of memory{at}: it may hold {memory_in_words(limits.memory)}."
    elif "outcome" in result:
        return told | result | {"exit_code": result.get("exit_code", 0)}
    elif ended.code < 0:
        told |= {"outcome": "died", "error": f"Its process was ended by {_signal_name(-ended.code)}{at}."}
    elif state.get("error"):
        told["outcome"] = "failed"
    else:
        told |= {"outcome": "died", "error": f"Its process ended itself with exit code {ended.code}{at}."}
    return {"summary": None, "outputs": []} | told


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- the process --------------------------------------------------------------------------------------------------


def _start(job: Job, threads: int | None) -> int:
    """Fork the model's process and return its id.

    The watcher runs one thread and holds no lock, so that a fork is safe; the server that local watchers are forked
    from has torch imported already, so that it is quick.
    """
    log = os.open(Path(job.folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    watcher = os.getpid()
    pid = os.fork()
    if pid:
        os.close(log)
        return pid
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != watcher:
            os._exit(code)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        code = work(job, threads)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, limits: Limits, family: _Family, log: Path) -> _Ended:
    """Wait until the process has ended, or end it where it is over a limit."""
    start, stopped = time.monotonic(), None
    starter = multiprocessing.parent_process()
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            scale = 1 if sys.platform == "darwin" else 1024
            return _Ended(os.waitstatus_to_exitcode(status), stopped, usage.ru_maxrss * scale)
        if starter is not None and not starter.is_alive():
            raise SystemExit(0)  # nobody waits for the result
        if stopped is None:
            if limits.seconds is not None and time.monotonic() - start > limits.seconds:
                stopped = "time"
            elif family.over(limits):
                stopped = "memory"
            if stopped is not None:
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            if log.stat().st_size > _LOG_BYTES:
                os.truncate(log, 0)  # what is written next stands at its end: it is opened to append
        time.sleep(LOOK_SECONDS)


class _Family:
    """The process and its children, and what they hold together.

    Attributes:
        peak: the most bytes that they were seen to hold.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._first = psutil.Process(pid)
        self._children: list[psutil.Process] = []
        self._searched = 0.0

    def over(self, limits: Limits) -> bool:
        """Whether they hold more than they may."""
        if time.monotonic() - self._searched > _FAMILY_SECONDS:
            self._searched = time.monotonic()
            with contextlib.suppress(psutil.Error):
                self._children = psutil.Process().children(recursive=True)  # of the watcher: what it adopted too
        held = self._held()
        if held > limits.memory or (held > limits.expected and self._machine_is_full()):
            if len(self._children) > 1:
                held = self._held_by_share()  # pages that forked processes share were counted for each
            self.peak = max(self.peak, held)
            return held > limits.memory or (held > limits.expected and self._machine_is_full())
        self.peak = max(self.peak, held)
        return False

    def _members(self) -> Iterator[psutil.Process]:
        yield self._first
        yield from (child for child in self._children if child.pid != self._first.pid)

    def _held(self) -> int:
        total = 0
        for one in self._members():
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
        return total

    def _held_by_share(self) -> int:
        total = 0
        for one in self._members():
            with contextlib.suppress(psutil.Error):
                full = one.memory_full_info()
                total += getattr(full, "pss", full.uss)
        return total

    @staticmethod
    def _machine_is_full() -> bool:
        memory = psutil.virtual_memory()
        return bool(memory.available < _KEPT_FREE * memory.total)


def _end_all(pid: int) -> None:
    """End the process, if it still runs, and everything that it left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for _ in range(100):  # a process that is being ended may still fork
        left = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(left, timeout=0.1)


def _leave(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _keep_log_only(folder: str) -> None:
    """Remove what a process that was ended had begun to write."""
    for path in Path(folder).iterdir():
        if path.name == LOG:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _oom_kills() -> int:
    """How many processes the kernel has ended for memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
