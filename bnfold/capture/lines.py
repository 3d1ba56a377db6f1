"""Which line of the user's code is running."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from functools import lru_cache
from types import FrameType

from torch import nn

from bnfold.graph.leaves import is_foreign

__all__ = ["DEPTH", "here", "line_of_error", "place_of", "user_frame", "user_line", "user_lines"]

DEPTH = 6
"""How many lines of a call's way through the user's code are noted."""

_INSTALLED = tuple({sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib")})


def user_line() -> str | None:
    """Return ``file:line`` of the innermost frame of the user's code, among those above the caller's."""
    frame = user_frame(3)
    return None if frame is None else _line(frame, here())


def user_lines(folder: str) -> tuple[str, ...]:
    """Return up to :data:`DEPTH` lines of the user's code that lead to the caller's caller, the innermost first.

    Code of a layer that holds the statistics itself (``timm``'s ``BatchNormAct2d``) is left out where other lines lead
    to it: it is the same line for every such layer.

    Args:
        folder: the working folder, of :func:`here`.
    """
    frames = _user_frames(sys._getframe(2), DEPTH + 1)
    of_model = [frame for frame in frames if not _of_normalisation(frame)]
    return tuple(dict.fromkeys([_line(frame, folder) for frame in (of_model or frames)[:DEPTH]]))


def user_frame(depth: int = 2) -> FrameType | None:
    """Return the innermost frame of the user's code, among those above the caller's."""
    return next(iter(_user_frames(sys._getframe(depth), 1)), None)


def _user_frames(frame: FrameType | None, most: int) -> list[FrameType]:
    found: list[FrameType] = []
    while frame is not None and len(found) < most:
        code = frame.f_code
        if not is_foreign(code.co_filename):
            found.append(frame)
        elif code.co_name == "_record_run":  # what called bnfold is no code of the model's
            break
        frame = frame.f_back
    return found


def _of_normalisation(frame: FrameType) -> bool:
    if frame.f_code.co_name != "forward":
        return False
    owner = frame.f_locals.get("self")
    return isinstance(owner, nn.Module) and "running_var" in owner.__dict__.get("_buffers", ())


def _line(frame: FrameType, folder: str) -> str:
    return f"{_place(frame.f_code.co_filename, folder)}:{frame.f_lineno}"


def place_of(filename: str) -> str:
    """Return a source file as a reader on another machine would look for it, with ``/`` between.

    Relative to the folder of its packages where it is installed, else to the working folder where it lies there, else
    the file in its package.
    """
    return _place(filename, here())


def here() -> str:
    """Return the working folder; empty where it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@lru_cache(maxsize=4096)
def _place(filename: str, folder: str) -> str:
    path = os.path.abspath(filename) if folder or os.path.isabs(filename) else filename
    root = next((packages for packages in _INSTALLED if path.startswith(packages)), None)
    if root is None and folder and path.startswith(folder.rstrip(os.sep) + os.sep):
        root = folder
    if root is None:
        root = os.path.dirname(path)
        while os.path.isfile(os.path.join(root, "__init__.py")):
            root = os.path.dirname(root)
    return os.path.relpath(path, root).replace(os.sep, "/")


def line_of_error(error: BaseException) -> str | None:
    """Return ``file:line`` of the innermost line of the user's code that an error passed."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_foreign(frame.filename):
            return f"{place_of(frame.filename)}:{frame.lineno}"
    return None
