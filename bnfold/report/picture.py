"""The graph before and after a fold as SVG: lanes and names, with the way of each affine drawn along the lanes.

The picture is cut into parts of some rows each, so that a browser draws those in view only and a printer does not cut a
row in two. All that a row needs is drawn in that row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bnfold.fold.decision import Decision, MergeDecision
from bnfold.printable import shortened
from bnfold.report.details import Picture, Vertex
from bnfold.report.escape import visible
from bnfold.report.lanes import Side, place
from bnfold.report.words import became, merged_with

__all__ = ["Drawing", "drawn"]

ROW = 24
"""Height of a row."""

ROWS = 40
"""Rows in a part."""

_LETTER = 6.3  # width of an average letter at 12 px
_BEFORE, _AFTER = 580, 520  # room for words
_MARK = {"batchnorm": "M-6 0L0 -6L6 0L0 6Z", "weights": "M-6 -5H6V5H-6Z", "affine": "M-6 0L0 -6L6 0L0 6Z"}
_ARROW = {"backward": "↑", "forward": "↓", "sideways": "↔", None: "·"}


@dataclass(frozen=True)
class Drawing:
    """One picture: its title, its parts as SVG, and where each BatchNorm stands in it.

    Attributes:
        title: name of the piece; empty for a whole model.
        parts: the SVG of each part, top to bottom.
        after: x of the graph after the fold, in the units of the SVG; None where there is none.
        sites: for each decision's index, the id of its row.
    """

    title: str
    parts: tuple[Markup, ...]
    after: float | None
    sites: Mapping[int, str]


def drawn(
    picture: Picture, decisions: Sequence[Decision], number: int = 0, merges: Sequence[MergeDecision] = ()
) -> Drawing:
    """Draw a picture.

    Args:
        picture: the graphs.
        decisions: of the whole document.
        number: of the picture in the document, for ids that are its own.
        merges: convolutions that became one, marked after the fold.
    """
    merged = {merge.into: merged_with(merge) for merge in merges if merge.action == "merge"}
    placed = place(picture.before, picture.after)
    way = {way.site: decisions[way.decision] for way in picture.ways}
    into: dict[str, list[int]] = defaultdict(list)
    edges: dict[tuple[int, int], Decision] = {}
    for taken in picture.ways:
        for end in taken.into:
            into[picture.before[end].name].append(taken.decision)
        for edge in taken.edges:
            edges.setdefault(edge, decisions[taken.decision])
    left = _Half(picture.before, placed.before, 12, edges, into, decisions, merged)
    right = None
    width = left.lanes_width + 24 + _BEFORE
    if placed.after is not None:
        right = _Half(picture.after, placed.after, width + 12, {}, into, decisions, merged)
        width += right.lanes_width + 24 + _AFTER
    total = max(len(half.side.rows) for half in (left, right) if half is not None)
    numbers = {way.site: way.decision for way in picture.ways}
    sites = {index: f"p{number}r{placed.before.row[site]}" for site, index in numbers.items()}
    parts = []
    for start in range(0, total, ROWS):
        rows = range(start, min(start + ROWS, total))
        body: list[Markup] = []
        for half in filter(None, (left, right)):
            body += half.lines(rows)
        for row in rows:
            body.append(Markup('<g class="r" id="p{}r{}">').format(number, row))
            body.append(Markup('<rect class="bar" y="{}" width="{}" height="{}"/>').format(
                (row - start) * ROW, width, ROW))  # fmt: skip
            body += left.words(row, start, way, numbers)
            if right is not None:
                body += right.taken(row, start)
            body.append(Markup("</g>"))
        parts.append(
            Markup('<svg class="part" viewBox="0 0 {0} {1}" style="--w:{0};--h:{1}">{2}</svg>').format(
                width, len(rows) * ROW, Markup("").join(body)
            )
        )
    return Drawing(visible(picture.title), tuple(parts), None if right is None else right.x, sites)


class _Half:
    """One side of a picture."""

    def __init__(
        self,
        vertices: Sequence[Vertex],
        side: Side,
        x: float,
        edges: Mapping[tuple[int, int], Decision],
        into: Mapping[str, Sequence[int]],
        decisions: Sequence[Decision],
        merged: Mapping[str, str],
    ) -> None:
        self.vertices = vertices
        self.side = side
        self.step = max(4.0, min(16.0, 260 / max(side.lanes, 1)))
        self.x = x
        self.lanes_width = self.step * max(side.lanes - 1, 0)
        self.text = self._edge_of_words()
        self.edges = edges
        self.into = into
        self.decisions = decisions
        self.merged = merged
        self.readers: list[list[int]] = [[] for _ in vertices]
        for number, vertex in enumerate(vertices):
            for read in vertex.inputs:
                self.readers[read].append(number)

    def _edge_of_words(self) -> list[float]:
        """For each row, where its words begin: beside all lanes, or beside those in use there, if there are many."""
        used = [self.side.lanes - 1] * len(self.side.rows)
        if self.side.lanes > 6:
            used = [0] * len(used)
            for vertex, last in enumerate(self.side.last):
                for row in range(self.side.row[vertex], last + 1):
                    used[row] = max(used[row], self.side.lane[vertex])
        return [round(self.x + self.step * lane + 14, 1) for lane in used]

    def at(self, vertex: int) -> float:
        """X of a vertex."""
        return round(self.x + self.step * self.side.lane[vertex], 1)

    def lines(self, rows: range) -> Iterable[Markup]:
        """Yield the lanes that run through some rows, and the links from them to their readers; ways on top."""
        top, end = rows.start, rows.stop
        plain: list[str] = []
        ways: dict[str, list[str]] = defaultdict(list)
        for index, last in enumerate(self.side.last):
            first = self.side.row[index]
            if last < top or first >= end or first == last:
                continue
            self._value(index, top, end, plain, ways)
        if plain:
            yield Markup('<path class="e" d="{}"/>').format("".join(plain))
        for kind, found in ways.items():
            yield Markup('<path class="w {}" d="{}"/>').format(kind, "".join(found))

    def _value(self, index: int, top: int, end: int, plain: list[str], ways: dict[str, list[str]]) -> None:
        """Add the lane of one value, within some rows, and its links; what belongs to a way a second time, for it."""
        x, first = self.at(index), (self.side.row[index] - top) * ROW + ROW / 2
        down, taken = first, dict[str, float]()
        for reader in self.readers[index]:
            row, across = self.side.row[reader], self.at(reader)
            y = (row - top) * ROW + (ROW / 2 if across == x else 0)  # a lane ends at its reader, or above it
            down = max(down, y)
            decision = self.edges.get((reader, index))
            kind = "" if decision is None else _way_class(decision)
            if kind:
                taken[kind] = max(taken.get(kind, first), y)
            if across != x and top <= row < end:
                link = f"M{x:g} {y:g}C{x:g} {y + 9:g} {across:g} {y + 2:g} {across:g} {y + ROW / 2:g}"
                (ways[kind] if kind else plain).append(link)
        limit = (end - top) * ROW
        for found, lowest in ((plain, down), *((ways[kind], lowest) for kind, lowest in taken.items())):
            if min(lowest, limit) > max(first, 0):
                found.append(f"M{x:g} {max(first, 0):g}V{min(lowest, limit):g}")

    def words(self, row: int, start: int, way: Mapping[int, Decision], numbers: Mapping[int, int]) -> Iterable[Markup]:
        """Yield the mark and the words of a row before the fold."""
        index = self.side.rows[row] if row < len(self.side.rows) else None
        if index is None:
            return
        vertex, y = self.vertices[index], (row - start) * ROW + ROW / 2
        decision = way.get(index)
        yield self._mark(index, y, decision)
        if decision is None:
            yield self._label(vertex, self.text[row], y, "", _BEFORE)
            return
        told = _told(decision)
        room = int(_BEFORE / _LETTER) - min(len(vertex.label), 44) - 3
        outcome = Markup('<tspan class="o {}" dx="8">{}</tspan>').format(
            decision.action, shortened(visible(told), max(room, 20))
        )
        title = Markup("<title>{}</title>").format(visible(decision.detail)) if decision.action != "fold" else ""
        yield Markup('<a href="#b{}"><text x="{:g}" y="{:g}">{}<tspan class="n">{}</tspan>{}</text></a>').format(
            numbers[index],
            self.text[row],
            y + 4,
            title,
            shortened(visible(vertex.label), 44),
            outcome,
        )

    def taken(self, row: int, start: int) -> Iterable[Markup]:
        """Yield the mark and the words of a row after the fold: what the call took up."""
        index = self.side.rows[row] if row < len(self.side.rows) else None
        if index is None:
            return
        vertex, y = self.vertices[index], (row - start) * ROW + ROW / 2
        took = [self.decisions[number] for number in self.into.get(vertex.name, ())]
        yield self._mark(index, y, took[0] if took else None)
        names = ", ".join(decision.batchnorm for decision in took[:3])
        more = f" and {len(took) - 3} more" if len(took) > 3 else ""
        notes = [f"took {names}{more}"] if took else []
        if vertex.label in self.merged:
            notes.append(f"merged with {self.merged[vertex.label]}")
        yield self._label(vertex, self.text[row], y, "; ".join(notes), _AFTER)

    def _mark(self, index: int, y: float, decision: Decision | None) -> Markup:
        vertex = self.vertices[index]
        shape = _MARK.get(vertex.role)
        action = f" {decision.action}" if decision is not None else ""
        if shape is None:
            return Markup('<circle class="m {}" cx="{}" cy="{}" r="{}"/>').format(
                vertex.role, self.at(index), y, 5 if vertex.role == "end" else 3.5
            )
        return Markup('<path class="m {}{}" d="{}" transform="translate({} {})"/>').format(
            vertex.role, action, Markup(shape), self.at(index), y
        )

    def _label(self, vertex: Vertex, x: float, y: float, note: str, width: float) -> Markup:
        room = int(width / _LETTER)
        label = shortened(visible(vertex.label), 40)
        kind = shortened(visible(vertex.kind), 44)
        if kind == label or vertex.kind in vertex.label:
            kind = ""
        told = shortened(visible(note), max(room - len(label) - len(kind) - 3, 12)) if note else ""
        parts = Markup('<tspan class="n">{}</tspan>').format(label)
        if kind:
            parts += Markup('<tspan class="k" dx="7">{}</tspan>').format(kind)
        if told:
            parts += Markup('<tspan class="o fold" dx="8">{}</tspan>').format(told)
        whole = visible(f"{vertex.label} {vertex.kind} {note}")
        title = Markup("<title>{}</title>").format(whole) if "…" in parts else ""
        return Markup('<text x="{:g}" y="{:g}">{}{}</text>').format(x, y + 4, title, parts)


def _way_class(decision: Decision) -> str:
    return decision.direction or "backward"


def _told(decision: Decision) -> str:
    """The outcome in a few words."""
    if decision.action != "fold":
        return f"{became(decision)}: {decision.reason}"
    into = ", ".join(decision.into[:3]) + (f" and {len(decision.into) - 3} more" if len(decision.into) > 3 else "")
    through = f" through {', '.join(decision.through)}" if decision.through else ""
    return f"{_ARROW[decision.direction]} into {into}{through}"
