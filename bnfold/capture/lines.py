"""Which line of the user's code is running."""

from __future__ import annotations

import sys
import traceback
from types import CodeType, FrameType

from bnfold.graph.leaves import is_foreign

__all__ = ["line_of_error", "user_frame", "user_line"]

_FOREIGN: dict[CodeType, bool] = {}


def user_line() -> str | None:
    """Return ``file:line`` of the innermost frame of the user's code, among those above the caller's."""
    frame = user_frame(3)
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def user_frame(depth: int = 2) -> FrameType | None:
    """Return the innermost frame of the user's code, among those above the caller's."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        foreign = _FOREIGN.get(code)
        if foreign is None:
            if len(_FOREIGN) > 10_000:
                _FOREIGN.clear()
            foreign = _FOREIGN[code] = is_foreign(code.co_filename)
        if not foreign:
            return frame
        if code.co_name == "_record_run":  # what called bnfold is no code of the model's
            return None
        frame = frame.f_back
    return None


def line_of_error(error: BaseException) -> str | None:
    """Return ``file:line`` of the innermost line of the user's code that an error passed."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_foreign(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return None
