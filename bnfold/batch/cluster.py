"""Models on a cluster of Ray: a task each, and in it the same watcher and the same limits as on one machine.

Ray places the tasks by the cores and the memory that they claim; it only counts the memory, and the watcher enforces
it. What a task cannot be blamed for, a node that went away, is tried elsewhere by the run, not by Ray, so that no model
is done twice at a time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnfold.batch.attempt import Attempt, Ended
from bnfold.batch.child import read_state
from bnfold.batch.job import Job, with_paths
from bnfold.batch.local import start_watcher
from bnfold.batch.watch import Limits
from bnfold.errors import BnfoldError, MissingPackageError, UsageError
from bnfold.printable import shown, shown_path

__all__ = ["Cluster"]

_TOKEN = ".shared"
_AHEAD = 2  # tasks for each core that are handed to Ray at a time: those that wait there start at once


class Cluster:
    """The nodes of a Ray cluster.

    Args:
        address: of the cluster; empty for the one that is there, or one made on this machine.
        jobs: the most models at a time; None for one a core of the cluster.
        ship: send files to the nodes and back.
        output: the folder of the results, which must be on storage that all nodes share where ``ship`` is False.

    Attributes:
        slots: how many models are handed to Ray at a time.
        memory: bytes of all nodes together; Ray counts them node by node.
        largest: bytes that one model may hold alone, on the largest node.

    Raises:
        MissingPackageError: Ray is not installed.
        UsageError: there is no cluster at the address, or none of its nodes has a core.
    """

    def __init__(self, address: str, *, jobs: int | None = None, ship: bool = False, output: Path) -> None:
        self._ray = _ray()
        self._ship = ship
        self._output = output.absolute()
        self._started = not self._ray.is_initialized()
        self._running: dict[Any, Attempt] = {}
        if self._started:
            self._connect(address)
        self.slots = self.largest = self.memory = 0
        self._jobs = jobs
        self._look_at_nodes()
        self._task = self._ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_in_task)

    def _connect(self, address: str) -> None:
        if address and Path(address).exists():
            raise UsageError(f"{shown_path(address)} is no address of a cluster.", fix="Write --ray=auto.")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(address=address or None, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"There is no Ray cluster at {shown(address or 'this machine')}: {shown(error, 200)}.",
                fix="Start one with `ray start --head`, and give its address.",
            ) from error

    def _look_at_nodes(self) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UsageError("No node of the Ray cluster has a core.", fix="Add a node: `ray start --address=...`.")
        self.slots = self._jobs or _AHEAD * int(sum(node["CPU"] for node in nodes))
        self.largest = int(max(node.get("memory", 0) for node in nodes))
        self.memory = int(sum(node.get("memory", 0) for node in nodes))  # beyond it Ray would keep small ones waiting

    def __enter__(self) -> Cluster:
        self._token = secrets.token_hex(8)
        (self._output / _TOKEN).write_text(self._token, encoding="ascii")
        return self

    def __exit__(self, *_: object) -> None:
        """End every task that still runs; leave the cluster, where it was not there before."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)  # the watcher sees that its task is gone, and ends the rest
        self._running = {}
        (self._output / _TOKEN).unlink(missing_ok=True)
        if self._started:
            self._ray.shutdown()

    def start(self, attempt: Attempt) -> None:
        """Hand an attempt to Ray."""
        job = attempt.job
        files = {path: self._ray.put(Path(path).read_bytes()) for path in _readable(job)} if self._ship else None
        limits = Limits(attempt.limit, job.seconds, attempt.expected, 1)
        names, references = ([*files], [*files.values()]) if files is not None else (None, [])
        task = self._task.options(memory=min(attempt.expected, self.largest), name=job.name)
        self._running[task.remote(job, limits, self._token, names, *references)] = attempt

    def wait(self, seconds: float) -> Iterator[Ended]:
        """Wait until attempts end, or for some seconds; yield those that ended."""
        done, _ = self._ray.wait([*self._running], num_returns=1, timeout=seconds) if self._running else ([], [])
        while done:
            for reference in done:
                yield self._ended(reference, self._running.pop(reference))
            done, _ = self._ray.wait([*self._running], num_returns=1, timeout=0) if self._running else ([], [])

    def _ended(self, reference: Any, attempt: Attempt) -> Ended:
        errors = self._ray.exceptions
        try:
            told, files = self._ray.get(reference)
        except errors.OutOfMemoryError as error:  # Ray's own watch over a node
            told = {"outcome": "out-of-memory", "error": f"Ray ended it, the node's memory being full: {_first(error)}"}
            return Ended(attempt, told)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BnfoldError) else None
            text = str(cause) if cause else f"Its task failed: {type(error.cause).__name__}: {error.cause}"
            return Ended(attempt, {"outcome": "failed", "error": text[:500]})
        except errors.RayError as error:
            self._look_at_nodes()
            return Ended(attempt, lost=_first(error))
        if files is not None:
            _unpack(files, attempt.job.folder)
        return Ended(attempt, told)

    def stages(self) -> dict[str, str]:
        """Return the stage of each model that runs, by name; of one whose node shares no storage nothing is known."""
        return {
            attempt.job.name: str(read_state(attempt.job.folder).get("stage", "on the cluster"))
            for attempt in self._running.values()
        }


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingPackageError(
            "Running on a cluster needs Ray, which is not installed.", fix="Run `pip install 'bnfold[ray]'`."
        ) from error
    return ray


def _first(error: Exception) -> str:
    """Return the first line of what Ray says, which goes on for many."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return shown(line.strip().rstrip("."), 200)


def _readable(job: Job) -> list[str]:
    return [path for path in job.reads if os.path.isfile(path) and os.access(path, os.R_OK)]


# --- on the node --------------------------------------------------------------------------------------------------


def _in_task(
    job: Job, limits: Limits, token: str, names: list[str] | None, *contents: bytes
) -> tuple[dict[str, Any], dict[str, bytes] | None]:
    """Watch over a job, in a task of Ray; return a part of its record, and its files where they are shipped."""
    if names is None:
        shared = Path(job.folder).parent.parent / _TOKEN
        if not shared.is_file() or shared.read_text(encoding="ascii") != token:
            raise UsageError(
                f"The folder {shown_path(shared.parent)} is not shared with node {os.uname().nodename}.",
                fix="Give -o on storage that all nodes share, or --ship.",
            )
        return start_watcher(job, limits, "spawn").result(), None
    with tempfile.TemporaryDirectory(prefix="bnfold-batch-") as folder:
        moved = dict(zip(names, _unpacked(names, contents, folder), strict=True))
        here = str(Path(folder, "models", Path(job.folder).name))
        told = start_watcher(with_paths(job, moved | {job.folder: here}), limits, "spawn").result()
        files = {
            path.relative_to(here).as_posix(): path.read_bytes() for path in Path(here).rglob("*") if path.is_file()
        }
    return told, files


def _unpacked(names: list[str], contents: tuple[bytes, ...], folder: str) -> Iterator[str]:
    """Write the files that were sent; files that stood beside each other stand beside each other."""
    folders: dict[str, str] = {}
    for name, content in zip(names, contents, strict=True):
        place = folders.setdefault(os.path.dirname(name), os.path.join(folder, "read", str(len(folders))))
        os.makedirs(place, exist_ok=True)
        path = os.path.join(place, os.path.basename(name))
        Path(path).write_bytes(content)
        yield path


def _unpack(files: dict[str, bytes], folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
