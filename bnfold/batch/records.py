"""``results.jsonl``: one line for each model, written when it ends, and the lock of the folder that it stands in.

A line counts once its end is written. A run that was killed in the middle of one leaves a line without an end, which
the next run cuts off; the model is then not done, and is done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from bnfold.errors import FileAccessError
from bnfold.printable import shown_path

__all__ = ["RESULTS", "Record", "Records", "hold_folder", "read_records"]

Record = dict[str, Any]
RESULTS = "results.jsonl"
_LOCK, _CHILDREN = ".lock", ".children"
_PATIENCE = 60.0  # seconds that what a killed run left has to end in


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, passing over a last line without an end.

    Raises:
        FileAccessError: it cannot be read, or a line is no record.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FileAccessError(f"{shown_path(path)} cannot be read: {error}.", fix="Give another -o.") from error
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("name"), str) or "outcome" not in record:
            raise FileAccessError(
                f"{shown_path(path)}, line {number}, is no record.",
                fix="Remove that line: its model is then done again.",
            )
        records.append(record)
    return records


class Records:
    """The records of a folder, for as long as the ``with`` lasts nobody else's.

    Attributes:
        done: the record of each model that has one, by name.

    Raises:
        FileAccessError: another run is at work in the folder, or it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RESULTS
        self.done: dict[str, Record] = {}
        self._locks = contextlib.ExitStack()
        self._children = -1

    def __enter__(self) -> Records:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._cut_torn_line()
            self.done = {record["name"]: record for record in read_records(self.path)}
        except OSError as error:
            self._locks.close()
            raise FileAccessError(
                f"The folder {shown_path(self.folder)} cannot be written to: {error.strerror}.", fix="Give another -o."
            ) from error
        except BaseException:
            self._locks.close()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._locks.close()

    def append(self, record: Record) -> None:
        """Add a model's record, and wait until the disk has it."""
        line = json.dumps(_plain(record), allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())  # one call: all of it, or less than a line where the process is killed in it
            self.done[record["name"]] = record
            os.fsync(file.fileno())

    def drop(self, names: Iterable[str]) -> None:
        """Remove the records of models that are to be done again, all at once or none."""
        names = set(names) & set(self.done)
        if not names:
            return
        self.done = {name: record for name, record in self.done.items() if name not in names}
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in self.done.values())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)

    def _lock(self) -> None:
        """Take the folder, once the processes of a run that was killed have ended."""
        try:
            fcntl.flock(self._opened(_LOCK), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileAccessError(
                f"Another bnfold batch is at work in {shown_path(self.folder)}.", fix="Wait for it, or give another -o."
            ) from error
        self._children = self._opened(_CHILDREN)
        if not self.wait_for_processes():
            raise FileAccessError(
                f"Processes of an earlier run are at work in {shown_path(self.folder)}.", fix="End them first."
            )

    def wait_for_processes(self) -> bool:
        """Wait until no process works in the folder any more; return whether that has come true."""
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(self._children, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() - start > _PATIENCE:
                    return False
                time.sleep(0.05)
                continue
            fcntl.flock(self._children, fcntl.LOCK_UN)
            return True

    def _opened(self, name: str) -> int:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        self._locks.callback(os.close, descriptor)
        return descriptor

    def _cut_torn_line(self) -> None:
        try:
            with self.path.open("r+b") as file:
                content = file.read()
                if content and not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
        except FileNotFoundError:
            self.path.touch()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinity become strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def hold_folder(folder: str) -> int:
    """Let the next run wait for this process, and for its forks, to end; return what holds it.

    Args:
        folder: of the results.
    """
    descriptor = os.open(Path(folder, _CHILDREN), os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor
