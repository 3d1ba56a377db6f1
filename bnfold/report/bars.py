"""Small pictures made of characters: bars to both sides of zero, and how numbers are spread; ASCII where need be."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["bar", "spread"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"


def bar(value: float, largest: float, *, width: int = 8, plain: bool = False) -> str:
    """Return a bar from zero, in the middle, to the left for a negative value; ``largest`` fills its side.

    >>> bar(1.0, 2.0, width=4)
    '    │██  '
    >>> bar(-1.9, 2.0, width=4)
    '████│    '
    >>> bar(0.6, 2.0, width=4, plain=True)
    '    |#   '
    """
    zero, full = ("|", "#") if plain else ("│", "█")
    if not largest or not math.isfinite(value):
        return " " * width + zero + " " * width
    halves = round(min(abs(value) / largest, 1.0) * width * 2)
    whole, rest = divmod(halves, 2)
    half = "" if plain or not rest else ("▐" if value < 0 else "▌")
    drawn = half + full * whole if value < 0 else full * whole + half
    return drawn.rjust(width) + zero + " " * width if value < 0 else " " * width + zero + drawn.ljust(width)


def spread(values: Sequence[float], *, width: int = 48, plain: bool = False) -> tuple[str, str]:
    r"""Return how numbers are spread, as a histogram of one line, and a line below it that marks its ends and zero.

    >>> print("\n".join(spread([0.0, 0.1, 0.1, 0.4], width=4)))
    ▄█ ▄
    │
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([*finite, 0.0]), max([*finite, 0.0])
    span = (high - low) or 1.0
    counts = [0] * width
    for value in finite:
        counts[min(int((value - low) / span * width), width - 1)] += 1
    steps, top = (_ASCII if plain else _EIGHTHS), max(counts) or 1
    heights = "".join(steps[math.ceil(count / top * (len(steps) - 1))] for count in counts)
    zero = min(int(-low / span * width), width - 1)
    return heights, " " * zero + ("|" if plain else "│")
