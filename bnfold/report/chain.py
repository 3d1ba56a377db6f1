"""The way of one BatchNorm's affine through the graph, as text: what it stands at, what it passes, where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from bnfold.printable import shortened
from bnfold.report.escape import visible

__all__ = ["Link", "render_chain"]

Part = Literal["site", "takes", "passes", "near"]

_STYLES = {"site": "bold", "takes": "green", "passes": "", "near": "dim"}


@dataclass(frozen=True)
class Link:
    """One call of the chain.

    Attributes:
        label: the layer's name.
        kind: what it computes.
        part: whether it is the BatchNorm, takes the affine, lets it pass, or only stands beside.
        words: what happens there.
    """

    label: str
    kind: str
    part: Part
    words: str = ""


def render_chain(links: Sequence[Link], *, plain: bool = False) -> Iterator[Text]:
    """Yield one line for each call, in the order in which they run, and a line that joins those of the way.

    Args:
        links: of the way, and perhaps the calls beside its ends.
        plain: ASCII only.
    """
    way = [number for number, link in enumerate(links) if link.part != "near"]
    names = [shortened(visible(link.label), 36) for link in links]
    kinds = [shortened(visible(link.kind), 36) for link in links]
    if plain:
        kinds = [kind.replace("→", "->").replace("×", "x") for kind in kinds]
    wide, wider = max(map(len, names), default=0), max(map(len, kinds), default=0)
    for number, (link, name, kind) in enumerate(zip(links, names, kinds, strict=True)):
        joint = _joint(number, way, link.part, plain=plain)
        line = Text(f"  {name:<{wide}}  ", style="bold" if link.part == "site" else "")
        line += Text(f"{kind:<{wider}}  ", style="dim")
        line += Text(f"{joint} {visible(link.words)}".rstrip(), style=_STYLES[link.part])
        line.rstrip()
        yield line


def _joint(number: int, way: Sequence[int], part: Part, *, plain: bool) -> str:
    """Return the piece of line beside a call: ``<┐``, `` │``, ``─┘``."""
    top, middle, bottom, across = ("+", "|", "+", "-") if plain else ("┐", "│", "┘", "─")
    if not way or not way[0] <= number <= way[-1]:
        return "  "
    head = {"takes": "<", "site": across}.get(part, " ")
    if way[0] == way[-1]:
        return "  "
    if number == way[0]:
        return head + top
    if number == way[-1]:
        return head + bottom
    return head + (middle if head == " " else ("+" if plain else "┤"))
