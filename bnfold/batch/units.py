"""Times and sizes as people write them."""

from __future__ import annotations

import math
import re

__all__ = ["memory_in_words", "parse_memory", "parse_seconds", "seconds_in_words"]

GIB = 1 << 30
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}
_TIMES = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_memory(text: str) -> int:
    """Return a size in bytes.

    >>> parse_memory("3GiB"), parse_memory("500 MB"), parse_memory("2g")
    (3221225472, 500000000, 2147483648)

    Raises:
        ValueError: it is no positive size.
    """
    size = _parsed(text, _UNITS)
    if size is None or size < 1:
        raise ValueError(f"{text!r} is no size; write 3GiB or 500MB.")
    return int(size)


def parse_seconds(text: str) -> float:
    """Return a time in seconds.

    >>> parse_seconds("90"), parse_seconds("15m"), parse_seconds("1.5h")
    (90.0, 900.0, 5400.0)

    Raises:
        ValueError: it is no positive time.
    """
    seconds = _parsed(text, _TIMES)
    if seconds is None or seconds <= 0:
        raise ValueError(f"{text!r} is no time; write 90, 15m or 1.5h.")
    return seconds


def _parsed(text: str, units: dict[str, int]) -> float | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        return None
    number = float(match[1]) * units[match[2].lower()]
    return number if math.isfinite(number) else None


def memory_in_words(count: float) -> str:
    """Return a size in the unit that limits are given in.

    >>> memory_in_words(3 << 30), memory_in_words(700 << 20)
    ('3 GiB', '700 MiB')
    """
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"


def seconds_in_words(seconds: float) -> str:
    """Return a time for people.

    >>> seconds_in_words(4.2), seconds_in_words(75), seconds_in_words(7300)
    ('4.2 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60} min"
