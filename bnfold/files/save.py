"""Write outputs so that each is there whole or not at all, and several together or none.

Every output is complete in memory before the first byte goes to disk, or stands in tensors that are. It is written to a
temporary folder beside its destination, flushed, read back, and opened by the library that its users will open it with.
Only when all of them have passed are they renamed into place, in the order given. Killed at any moment, a run leaves
each old file or each new one, never a part of one; a temporary folder that it left is removed by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import BnfoldError, FileAccessError, first_line
from bnfold.files.destinations import cannot_write, check_targets, target_of
from bnfold.files.signals import Held, Interrupted
from bnfold.files.staging import Staging, sweep
from bnfold.printable import shown_path

__all__ = [
    "Content",
    "Output",
    "Parts",
    "Sidecar",
    "Written",
    "check_targets",
    "chunks",
    "size_of",
    "write_outputs",
    "write_staged",
]

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Parts:
    """Content that is never held as a whole.

    Attributes:
        parts: gives it from its beginning, one part after the other; the same bytes each time.
        nbytes: how many these are.
    """

    parts: Callable[[], Iterator[bytes | memoryview]]
    nbytes: int


Content = bytes | bytearray | memoryview | Parts


def chunks(content: Content) -> Iterator[memoryview]:
    """Yield the bytes of some content, in pieces of a few MiB."""
    for part in content.parts() if isinstance(content, Parts) else (content,):
        flat = memoryview(part).cast("B")
        for start in range(0, flat.nbytes, _CHUNK):
            yield flat[start : start + _CHUNK]


def size_of(content: Content) -> int:
    """Return how many bytes some content has."""
    return content.nbytes if isinstance(content, Parts) else memoryview(content).nbytes


@dataclass(frozen=True)
class Sidecar:
    """A file that an output needs beside it, under this very name."""

    name: str
    content: Content


@dataclass(frozen=True)
class Output:
    """A file to write.

    Attributes:
        path: where to.
        content: all of it.
        check: opens the written file, given its path, and raises if it is not usable. It is called while the file
            still stands in its temporary folder, its sidecars beside it.
        sidecars: files that belong to it, written to the same folder.
    """

    path: Path
    content: Content
    check: Callable[[Path], None] | None = None
    sidecars: tuple[Sidecar, ...] = ()


@dataclass(frozen=True)
class Written:
    """A file that was written: its path, the SHA-256 of its bytes in hexadecimal digits, and its size in bytes."""

    path: Path
    sha256: str
    size: int


@dataclass
class _File:
    """One file on its way to its place."""

    target: Path
    content: Content
    staged: Path
    sha256: str = ""
    existed: bool = False
    old: Path | None = None
    placed: bool = False


def write_outputs(outputs: Sequence[Output], *, inputs: Sequence[Path], force: bool) -> list[Written]:
    """Write all ``outputs``, or none of them.

    Args:
        outputs: in the order in which they are to appear; a report about the others last.
        inputs: the files that were read; none of them is written to.
        force: whether a file that exists is replaced. Its permission bits are kept; a new file's are the umask's.

    Returns:
        What was written, each output directly followed by its sidecars.

    Raises:
        UsageError: an output is one of the inputs, or two outputs are the same file.
        FileAccessError: a target exists and ``force`` is not given, it is no regular file, the disk is full, the folder
            cannot be written to, or a written file did not pass its check.
        KeyboardInterrupt: the user stopped it; nothing was written, or everything.
    """
    if not outputs:
        return []
    for output in outputs:
        if any(Path(sidecar.name).name != sidecar.name for sidecar in output.sidecars):
            raise ValueError("a sidecar stands beside its output and is named without a folder")
    paths = [path for output in outputs for path in _paths(output)]
    check_targets(paths, inputs=inputs, force=force)
    folders = list(dict.fromkeys(target_of(path).parent for path in paths))
    for folder in folders:
        sweep(folder)
    files: list[_File] = []
    where = folders[0]
    try:
        with Held() as signals, contextlib.ExitStack() as stages:
            staging: dict[Path, Path] = {}
            for where in folders:
                staging[where] = stages.enter_context(Staging(where)).path
            for output in outputs:  # a sidecar before its output, so that no output stands without it
                for path, content in reversed(list(zip(_paths(output), _contents(output), strict=True))):
                    where = target_of(path)
                    files.append(_File(where, content, staging[where.parent] / where.name))
                    _write(files[-1], signals)
            for output in outputs:
                where = target_of(output.path)
                _check(output, staging[where.parent] / where.name)
                signals.check()
            _place_all(files, force=force)
    except Interrupted:
        raise KeyboardInterrupt from None
    except OSError as error:
        size = sum(size_of(content) for output in outputs for content in _contents(output))
        raise cannot_write(where, error, size) from None
    done = {file.target: file for file in files}
    return [Written(path, done[target_of(path)].sha256, size_of(done[target_of(path)].content)) for path in paths]


def write_staged(
    paths: Sequence[Path], write: Callable[[Path], None], *, inputs: Sequence[Path], force: bool
) -> list[Written]:
    """Write files that are too large to be held in memory: all of them, or none.

    Args:
        paths: in one folder, the file that needs the others first.
        write: is given a temporary folder on the same file system, and writes all of them there under their names.
        inputs: the files that were read; none of them is written to.
        force: whether a file that exists is replaced.

    Raises:
        UsageError: an output is one of the inputs.
        FileAccessError: as for :func:`write_outputs`.
        KeyboardInterrupt: the user stopped it; nothing was written, or everything.
    """
    check_targets(paths, inputs=inputs, force=force)
    targets = [target_of(path) for path in paths]
    folder = targets[0].parent
    sweep(folder)
    try:
        with Held() as signals, Staging(folder) as stage:
            write(stage.path)
            files = [_File(target, b"", stage.path / path.name) for path, target in zip(paths, targets, strict=True)]
            for file in files:
                _seal(file, signals)
            _place_all(list(reversed(files)), force=force)
    except Interrupted:
        raise KeyboardInterrupt from None
    except OSError as error:
        raise cannot_write(targets[0], error, 0) from None
    return [Written(path, file.sha256, file.target.stat().st_size) for path, file in zip(paths, files, strict=True)]


def _seal(file: _File, signals: Held) -> None:
    """Flush a staged file, and read it."""
    found = hashlib.sha256()
    with open(file.staged, "rb") as back:
        os.fsync(back.fileno())
        while read := back.read(_CHUNK):
            signals.check()
            found.update(read)
    file.sha256 = found.hexdigest()


def _paths(output: Output) -> list[Path]:
    return [output.path, *(target_of(output.path).parent / sidecar.name for sidecar in output.sidecars)]


def _contents(output: Output) -> list[Content]:
    return [output.content, *(sidecar.content for sidecar in output.sidecars)]


def _write(file: _File, signals: Held) -> None:
    """Write one file to its temporary folder, and read it back."""
    mode = 0o666
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(file.target).st_mode)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    wanted = hashlib.sha256()
    with os.fdopen(os.open(file.staged, flags, mode & 0o777), "wb", buffering=0) as out:
        if mode != 0o666:
            os.fchmod(out.fileno(), mode & 0o777)
        for chunk in chunks(file.content):
            wanted.update(chunk)
            left = chunk
            while left:
                signals.check()
                left = left[out.write(left) or 0 :]
        os.fsync(out.fileno())
    file.sha256 = wanted.hexdigest()
    found = hashlib.sha256()
    with open(file.staged, "rb") as back:
        while read := back.read(_CHUNK):
            signals.check()
            found.update(read)
    if found.hexdigest() != file.sha256:
        raise FileAccessError(f"{shown_path(file.target)} does not read back as it was written.", fix="Check the disk.")


def _check(output: Output, staged: Path) -> None:
    """Open a written file as its users will."""
    if output.check is None:
        return
    try:
        output.check(staged)
    except BnfoldError:
        raise
    except Exception as error:
        raise FileAccessError(
            f"{shown_path(output.path)} was not written: it does not load again ({first_line(error, typed=True)}).",
            fix="Please report this with the model.",
        ) from error


def _place_all(files: list[_File], *, force: bool) -> None:
    """Move all files into place, or, where one cannot be moved, put back what was there."""
    for number, file in enumerate(files):
        file.existed = os.path.lexists(file.target)
        if file.existed:
            old = file.staged.parent / f".bnfold-old-{number}"
            with contextlib.suppress(OSError):  # a file system without hard links has no second name for the old file
                os.link(file.target, old)
                file.old = old
    try:
        for file in files:
            _place(file, force=force)
        for folder in dict.fromkeys(file.target.parent for file in files):
            _sync_folder(folder)
    except OSError:
        for file in reversed(files):
            if file.placed:
                with contextlib.suppress(OSError):
                    _put_back(file)
        raise


def _place(file: _File, *, force: bool) -> None:
    if force:
        os.replace(file.staged, file.target)
    else:
        try:
            os.link(file.staged, file.target)  # unlike a rename, it fails if a file has appeared there meanwhile
        except FileExistsError:
            raise
        except OSError:
            if os.path.lexists(file.target):
                raise
            os.replace(file.staged, file.target)
    file.placed = True


def _put_back(file: _File) -> None:
    """Undo the placing of one file; where its old content has no second name, the new one stays."""
    if file.old is not None:
        os.replace(file.old, file.target)
    elif not file.existed:
        os.unlink(file.target)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be opened or synced
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
