"""A layout for graphs of hundreds of layers: one row for each call, in the order in which they run, lanes for values.

A value keeps a vertical lane from the row that computes it to the row of its last reader; a call stands in the lane of
its own value. Names never overlap, a chain is a straight line, a skip connection a second lane, and a densely
connected block as many lanes as values are alive.

The graphs before and after a fold share their rows, so that what is gone is a gap that one can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.report.details import Vertex

__all__ = ["Placed", "Side", "place"]


@dataclass(frozen=True)
class Side:
    """One graph, placed.

    Attributes:
        rows: for each row, the index of the vertex that stands in it, or None.
        row: for each vertex, its row.
        lane: for each vertex, the lane of its value.
        last: for each vertex, the row of its last reader; its own where nobody reads it.
        lanes: how many there are.
    """

    rows: tuple[int | None, ...]
    row: tuple[int, ...]
    lane: tuple[int, ...]
    last: tuple[int, ...]
    lanes: int


@dataclass(frozen=True)
class Placed:
    """Both graphs in shared rows; ``after`` is None where there is none."""

    before: Side
    after: Side | None


def place(before: Sequence[Vertex], after: Sequence[Vertex] = ()) -> Placed:
    """Return the rows and lanes of the graphs.

    A call of the same name stands in the same row on both sides; one that is new gets a row of its own.
    """
    left: list[int | None] = []
    right: list[int | None] = []
    position = {vertex.name: index for index, vertex in enumerate(after)}
    known = {vertex.name for vertex in before}
    reached = 0
    for index, vertex in enumerate(before):
        twin = position.get(vertex.name)
        if twin is not None and twin >= reached:
            for new in range(reached, twin):  # what stands only on the right, before the twin
                left.append(None)
                right.append(new)
            reached = twin + 1
            left.append(index)
            right.append(twin)
        else:
            left.append(index)
            right.append(None)
    for new in range(reached, len(after)):
        left.append(None)
        right.append(new)
    if not known & position.keys():  # nothing in common: the rows say nothing
        right = [*range(len(after)), *[None] * (len(left) - len(after))]
    return Placed(_side(before, left), _side(after, right) if after else None)


def _side(vertices: Sequence[Vertex], rows: Sequence[int | None]) -> Side:
    order = [(number, vertex) for number, vertex in enumerate(rows) if vertex is not None]
    row = [0] * len(vertices)
    for number, vertex in order:
        row[vertex] = number
    last = list(row)
    for reader, one in enumerate(vertices):
        for read in one.inputs:
            last[read] = max(last[read], row[reader])
    ending: dict[int, list[int]] = {}
    for vertex, number in enumerate(last):
        ending.setdefault(number, []).append(vertex)
    lane = [0] * len(vertices)
    free: set[int] = set()
    count = 0
    for number, vertex in order:
        free |= {lane[done] for done in ending.get(number, ()) if done != vertex}
        ends_here = [lane[read] for read in vertices[vertex].inputs if last[read] == number]
        if ends_here:
            lane[vertex] = min(ends_here)
        elif free:
            lane[vertex] = min(free)
        else:
            lane[vertex], count = count, count + 1
        free.discard(lane[vertex])
        if last[vertex] == number:  # nobody reads it
            free.add(lane[vertex])
    return Side(tuple(rows), tuple(row), tuple(lane), tuple(last), count)
