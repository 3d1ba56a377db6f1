"""Memory that is free, but that the C library has not given back to the system.

Each layer of a large model allocates and frees tens of megabytes in other sizes than the one before it; what lies
between them adds up to several bytes a parameter.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["give_back"]


def give_back() -> None:
    """Give free memory back to the system, where its C library can: glibc's."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    with contextlib.suppress(OSError, AttributeError):
        trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
        return trim
    return None
