"""Where outputs may go, and what the words are when they cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from bnfold.errors import FileAccessError, UsageError, first_line
from bnfold.files.staging import Staging
from bnfold.printable import bytes_in_words, shown_path

__all__ = ["cannot_write", "check_folders", "check_targets", "target_of"]


def check_targets(paths: Sequence[Path], *, inputs: Sequence[Path], force: bool) -> None:
    """Check that files could be written to ``paths``, before the work that makes their content.

    Raises:
        UsageError: an output is one of the inputs, or two outputs are the same file.
        FileAccessError: the folder is missing, a target exists and ``force`` is not given, or is no regular file.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        if "\0" in os.fspath(path):
            raise FileAccessError(f"{shown_path(path)} is not a file name.", fix="Choose another -o.")
        target = target_of(path)
        for given in inputs:
            if _same(target, given):
                raise UsageError(
                    f"{shown_path(path)} is the input itself, {shown_path(given)}.",
                    fix="Write to another file with -o.",
                )
        where = os.path.normcase(target)
        twin = next((other for place, other in seen.items() if place == where or _same(target, Path(place))), None)
        if twin is not None:
            raise UsageError(
                f"{shown_path(path)} and {shown_path(twin)} are the same file.", fix="Give each output its own."
            )
        seen[where] = path
        _check_target(path, target, force=force)


def check_folders(paths: Sequence[Path]) -> None:
    """Check that the folders of ``paths`` can be written to, by making a temporary folder in each.

    Raises:
        FileAccessError: one cannot.
    """
    where = Path()
    try:
        for where in dict.fromkeys(target_of(path).parent for path in paths):
            with Staging(where):
                pass
    except OSError as error:
        raise cannot_write(where, error, 0) from None


def target_of(path: Path) -> Path:
    """Return the place that a path means: a link is followed, so that the file is replaced and not the link."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def staged_beside(path: Path) -> Iterator[Path]:
    """Have a temporary folder on the file system of a file to be written while the context lasts.

    Raises:
        FileAccessError: its folder is missing, or cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        folder = target_of(path).parent
        if not folder.is_dir():
            raise FileAccessError(f"There is no folder {shown_path(folder)}.", fix="Make it first.")
        try:
            stage = stack.enter_context(Staging(folder))
        except OSError as error:
            raise cannot_write(path, error, 0) from None
        yield stage.path


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _check_target(path: Path, target: Path, *, force: bool) -> None:
    name = shown_path(path)
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        if not os.path.isdir(target.parent):
            raise FileAccessError(f"There is no folder {shown_path(target.parent)}.", fix="Make it first.") from None
        if os.path.islink(path):
            raise FileAccessError(
                f"{name} is a link to a file that does not exist.", fix="Name the file itself."
            ) from None
        return
    except OSError as error:
        raise cannot_write(target, error, 0) from None
    if stat.S_ISDIR(mode):
        raise FileAccessError(f"{name} is a folder.", fix="Name a file in it with -o.")
    if not stat.S_ISREG(mode):
        raise FileAccessError(f"{name} is a device, pipe or socket, not a file.", fix="Name a file with -o.")
    if not force:
        raise FileAccessError(f"{name} exists already.", fix="Give --force to replace it, or write elsewhere with -o.")


def cannot_write(where: Path, error: OSError, needed: int) -> FileAccessError:
    """Return what a failed write of ``needed`` bytes means to a user."""
    name = f"a file in {shown_path(where)}" if os.path.isdir(where) else shown_path(where)
    size = bytes_in_words(needed) if needed else "some room"
    old = "Nothing was written; existing files are unchanged."
    words = {
        errno.ENOSPC: (f"The disk is full: no room for {name}", f"Free {size}, or write elsewhere with -o."),
        errno.EDQUOT: (f"Your disk quota is used up: no room for {name}", f"Free {size}, or write elsewhere with -o."),
        errno.EFBIG: (f"{name} is larger than this system allows", "Raise the limit (`ulimit -f`)."),
        errno.EROFS: (f"{name} is on a read-only file system", "Write elsewhere with -o."),
        errno.EACCES: (
            f"There is no permission to write {name}",
            "Write elsewhere with -o, or change the permissions.",
        ),
        errno.EPERM: (f"There is no permission to write {name}", "Write elsewhere with -o, or change the permissions."),
        errno.ENAMETOOLONG: (f"The name of {name} is too long", "Choose a shorter name with -o."),
        errno.EEXIST: (
            f"{name} was created in the meantime",
            "Give --force to replace it, or write elsewhere with -o.",
        ),
        errno.ENOENT: (f"{name} cannot be created", "Write elsewhere with -o."),
    }
    what, fix = words.get(
        error.errno or 0,
        (f"{name} cannot be written ({error.strerror or first_line(error, typed=True)})", "Check the disk."),
    )
    return FileAccessError(f"{what}. {old}", fix=fix)
