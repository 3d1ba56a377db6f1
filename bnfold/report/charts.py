"""Small charts as SVG: errors on a logarithmic scale, the spread of a layer's scales, the errors along the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from bnfold.report.details import Affine, SiteError

__all__ = ["error_bar", "error_range", "scale_bars", "site_chart", "squeezed"]

BINS = 24
LEVELS = 4095
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def error_range(comparisons: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the decades, as exponents of ten, that hold all errors, noise floors and limits."""
    keys = ("max_abs", "noise_floor", "allowed")
    logs = [math.log10(c[key]) for c in comparisons for key in keys if c.get(key)]
    return (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-8.0, 0.0)


def error_bar(comparison: dict[str, Any], low: float, high: float) -> Markup:
    """Draw one comparison: what is allowed as a band, the noise floor as a tick, the error as a mark on it."""
    width, span = 300, max(high - low, 1)

    def x(value: float | None) -> float:
        return 0.0 if not value else round(min(max((math.log10(value) - low) / span, 0), 1) * width, 1)

    error, floor, allowed = (comparison.get(key) for key in ("max_abs", "noise_floor", "allowed"))
    passed = comparison["passed"]
    words = f"error {_short(error)}, noise floor {_short(floor)}, allowed {_short(allowed)}"
    decades = "".join(f"M{(power - low) / span * width:.1f} 2V18" for power in range(int(low), int(high) + 1))
    mark = Markup('<circle class="dot" cx="{}" cy="10" r="5"/>').format(x(error))
    if not passed:
        mark = Markup('<path class="cross" d="M-5 -5L5 5M-5 5L5 -5" transform="translate({} 10)"/>').format(x(error))
    if error is None:
        mark = Markup("")
    return Markup(
        '<svg class="bar-chart" viewBox="-7 0 314 20" role="img"><title>{}</title><path class="grid" d="{}"/>'
        '<rect class="allowed" x="0" y="6" width="{}" height="8"/><path class="floor" d="M{} 3V17"/>{}</svg>'
    ).format(words, decades, x(allowed), x(floor), mark)


def scale_bars(affine: Affine) -> Markup:
    """Draw how a layer's scales are spread: a histogram from the least to the largest, the negative ones marked."""
    values = affine.scale
    low, high = min(*values, 0.0), max(*values, 0.0)
    span = (high - low) or 1.0
    counts, negative = [0] * BINS, [0] * BINS
    for value in values:
        if not math.isfinite(value):
            return Markup('<span class="k">not finite</span>')
        place = min(int((value - low) / span * BINS), BINS - 1)
        counts[place] += 1
        negative[place] += value < 0
    top = max(counts)
    plain: list[str] = []
    below: list[str] = []
    for place, count in enumerate(counts):
        if count:
            bar = f"M{place * 4 + 2} 22v{-max(1.5, 20 * count / top):.3g}"
            (below if negative[place] * 2 > count else plain).append(bar)
    zero = -low / span * BINS * 4
    words = f"scales from {min(values):.3g} to {max(values):.3g}"
    return Markup(
        '<svg class="spread" viewBox="-1 0 98 24" role="img"><title>{}</title><path class="zero" d="M{:.3g} 0V24"/>'
        '<path class="up" d="{}"/><path class="down" d="{}"/></svg>'
    ).format(words, zero, "".join(plain), "".join(below))


def site_chart(sites: Sequence[SiteError], names: Sequence[str]) -> Markup:
    """Draw the error after each BatchNorm, in the order in which they run, beside the original's own."""
    positive = [value for site in sites for value in (site.error, site.floor) if value > 0]
    if not positive:
        return Markup("")
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)
    width, height, left = 900, 150, 46

    def x(number: int) -> float:
        return round(left + (number + 0.5) / len(sites) * (width - left), 1)

    def y(value: float) -> float:
        return round(8 + (1 - (math.log10(value) - low) / (high - low)) * height, 1) if value > 0 else 8.0 + height

    grid = Markup("").join(
        Markup('<path class="grid" d="M{0} {1}H{2}"/><text class="axis" x="{3}" y="{4}">1e{5}</text>').format(
            left, y(10.0**power), width, left - 6, y(10.0**power) + 4, power
        )
        for power in range(low, high + 1, max(1, (high - low) // 6))
    )
    stems = "".join(f"M{x(n)} {y(s.floor)}V{y(s.error)}" for n, s in enumerate(sites))
    size = max(1.5, min(4.0, 300 / len(sites)))
    floors = "".join(f"M{x(n) - size:g} {y(s.floor)}h{2 * size:g}" for n, s in enumerate(sites))
    circle = Markup(
        '<circle class="dot{}" cx="{}" cy="{}" r="{}"><title>{}: {} of the peak, original {}</title></circle>'
    )
    marks = Markup("").join(
        circle.format(
            " far" if s.error > 10 * s.floor else "", x(n), y(s.error), size, name, *map(_short, (s.error, s.floor))
        )
        for n, (s, name) in enumerate(zip(sites, names, strict=True))
    )
    return Markup(
        '<svg class="sites" viewBox="0 0 {} {}" role="img"><title>Error after each BatchNorm</title>{}'
        '<path class="stem" d="{}"/><path class="floor" d="{}"/>{}</svg>'
    ).format(width, height + 16, grid, stems, floors, marks)


def squeezed(affine: Affine) -> dict[str, Any]:
    """Return an affine for the page's plot in about five characters a channel.

    Each number is one of 4,096 steps between the least and the largest, as two digits in base 64; of each scale a
    letter says whether it is negative (``n``), near zero (``z``), both (``b``) or neither (``.``), exactly.
    """
    edge = affine.edge
    letters = "".join(".nzb"[(value < 0) + 2 * (abs(value) <= edge)] for value in affine.scale)
    scale, shift = _digits(affine.scale), _digits(affine.shift)
    return {"i": affine.decision, "a": scale, "b": shift, "f": letters}


def _digits(values: Sequence[float]) -> list[Any]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = (high - low) or 1.0
    steps = [round((value - low) / span * LEVELS) if math.isfinite(value) else 0 for value in values]
    return [low, high, "".join(_DIGITS[step >> 6] + _DIGITS[step & 63] for step in steps)]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
