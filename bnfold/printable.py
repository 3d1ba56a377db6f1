"""How names and errors from a file that someone else made are put into a sentence.

A name in a model file is chosen by whoever made the file. It may hold escape sequences, line ends or a megabyte of
text; a message must stay one line of a few hundred characters that a terminal prints as it stands.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["MESSAGE_LIMIT", "bytes_in_words", "listed", "shortened", "shown", "shown_path"]

MESSAGE_LIMIT = 400
"""No message about a file is this long or longer, in characters."""


def shown(name: object, limit: int = 60) -> str:
    r"""Return ``name`` as printable text of at most ``limit`` characters, escaped and shortened in its middle.

    >>> shown("bn\x1b[31m1")
    'bn\\x1b[31m1'
    >>> shown("a" * 100, 9)
    'aaaa…aaaa'
    """
    text = name if isinstance(name, str) else repr(name)
    text = shortened(text, 4 * limit)  # escaping a megabyte to keep 60 characters would be a waste
    text = "".join(char if char.isprintable() else _escape(char) for char in text)
    return shortened(text, limit)


def shown_path(path: str | os.PathLike[str], limit: int = 80) -> str:
    """Return a path as printable text, its end kept, since the end names the file."""
    text = "".join(char if char.isprintable() else _escape(char) for char in os.fspath(path))
    return text if len(text) <= limit else "…" + text[-(limit - 1) :]


def shortened(text: str, limit: int) -> str:
    """Return ``text`` with its middle left out where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    left = (limit - 1) // 2
    return text[:left] + "…" + text[len(text) - (limit - 1 - left) :]


def listed(names: Iterable[object], limit: int = 3, width: int = 60) -> str:
    """Return the first ``limit`` of ``names`` as `` `a`, `b` and 7 more``.

    >>> listed(["a", "b", "c", "d"], 2)
    '`a`, `b` and 2 more'
    """
    every = list(names)
    first = ", ".join(f"`{shown(name, width)}`" for name in every[:limit])
    rest = len(every) - limit
    return first if rest <= 0 else f"{first} and {rest} more"


def bytes_in_words(count: int) -> str:
    """Return a size for people.

    >>> bytes_in_words(1_500_000)
    '1.5 MB'
    """
    if count < 1000:
        return f"{count} bytes"
    for unit, size in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if count < 1000 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.2e} bytes"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
