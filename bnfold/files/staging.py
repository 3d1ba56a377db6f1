"""The temporary folders in which outputs are made ready, and what an interrupted run left of them.

Each run stages its files in a folder ``.bnfold-tmp-PID-RANDOM`` inside of the destination folder, under their final
names: on the same file system, so that a rename moves them; and beside each other, so that a model finds its sidecar
when it is checked. The folder is locked for as long as its process lives; one that can be locked is left over.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Staging", "sweep"]

_PREFIX = ".bnfold-tmp-"
_LEFT_OVER = re.compile(r"\.bnfold-tmp-(\d+)-[0-9a-f]{8}")
_CERTAINLY_OLD = 24 * 3600.0


class Staging:
    """A locked temporary folder inside ``folder``, removed with its files at the end of the ``with``.

    Attributes:
        path: the temporary folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = -1

    def __enter__(self) -> Staging:
        os.mkdir(self.path, 0o700)
        self._lock = _locked(self.path)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _remove(self.path)
        if self._lock >= 0:
            os.close(self._lock)


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary folders that interrupted runs left in ``folder``; return them.

    A folder counts as left over when nobody holds its lock and the process in its name is gone, or a day has passed.
    """
    removed = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        match = _LEFT_OVER.fullmatch(name)
        path = folder / name
        if match is None or not _is_real_folder(path):
            continue
        try:
            age = time.time() - path.lstat().st_mtime
        except OSError:  # its owner has removed it just now
            continue
        if _is_alive(int(match[1])) and age < _CERTAINLY_OLD:
            continue
        lock = _locked(path)
        if lock >= 0:
            _remove(path)
            os.close(lock)
            removed.append(path)
    return removed


def _locked(path: Path) -> int:
    """Return an open descriptor of a folder that holds its lock, or -1 where another process does."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except (ImportError, OSError):
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return -1
    except OSError:  # this file system has no locks
        pass
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a staging folder and the files directly in it; nothing is followed and nothing else is touched."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)
        os.rmdir(folder)


def _is_real_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
