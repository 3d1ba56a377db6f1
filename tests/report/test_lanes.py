"""The layout of a graph: no two values share a lane while both are alive, and what stayed keeps its row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bnfold.report.details import Vertex
from bnfold.report.lanes import Side, place


@st.composite
def graphs(draw: st.DrawFn) -> list[Vertex]:
    count = draw(st.integers(1, 25))
    vertices = []
    for number in range(count):
        reads = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        vertices.append(Vertex(f"n{number}", f"n{number}", "op", "other", tuple(sorted(reads))))
    return vertices


def without(vertices: list[Vertex], gone: set[int]) -> list[Vertex]:
    """Remove vertices, and let their readers read what they read."""
    left = [index for index in range(len(vertices)) if index not in gone]

    def behind(index: int) -> set[int]:
        return {index} if index not in gone else set().union(*(behind(read) for read in vertices[index].inputs))

    kept = []
    for index in left:
        reads = set().union(*(behind(read) for read in vertices[index].inputs))
        kept.append(Vertex(vertices[index].name, "", "op", "other", tuple(sorted(left.index(read) for read in reads))))
    return kept


def check(vertices: list[Vertex], side: Side) -> None:
    assert sorted(side.row) == list(side.row)
    assert all(side.rows[row] == vertex for vertex, row in enumerate(side.row))
    for reader, vertex in enumerate(vertices):
        assert all(side.row[read] < side.row[reader] <= side.last[read] for read in vertex.inputs)
    alive = [(side.row[v], side.last[v], side.lane[v]) for v in range(len(vertices))]
    for number, (first, last, lane) in enumerate(alive):
        assert 0 <= lane < side.lanes
        for other_first, other_last, other_lane in alive[:number]:
            # a value that is read for the last time where another is computed leaves its lane to it
            overlap = max(first, other_first) < min(last, other_last) or first == other_first
            assert not (overlap and lane == other_lane)


@given(graphs())
def test_no_two_values_that_are_alive_share_a_lane(vertices: list[Vertex]) -> None:
    placed = place(vertices)
    assert placed.after is None
    check(vertices, placed.before)


@given(graphs(), st.sets(st.integers(0, 24), max_size=8), st.integers(0, 25))
def test_what_stays_keeps_its_row_and_what_is_new_gets_one(vertices: list[Vertex], gone: set[int], at: int) -> None:
    after = without(vertices, gone)
    new = Vertex("new", "new", "op", "other")
    at = min(at, len(after))
    shift = [*range(at), *range(at + 1, len(after) + 1)]
    moved = [Vertex(v.name, v.label, v.kind, v.role, tuple(shift[read] for read in v.inputs)) for v in after]
    after = [*moved[:at], new, *moved[at:]]
    placed = place(vertices, after)
    assert placed.after is not None
    assert len(placed.before.rows) == len(placed.after.rows)
    check(vertices, placed.before)
    check(after, placed.after)
    rows = {vertex.name: placed.before.row[index] for index, vertex in enumerate(vertices)}
    if len(after) > 1:
        assert all(placed.after.row[index] == rows[v.name] for index, v in enumerate(after) if v is not new)


def test_a_chain_is_one_lane_and_a_skip_connection_a_second() -> None:
    def chain(*reads: tuple[int, ...]) -> list[Vertex]:
        return [Vertex(str(n), str(n), "op", "other", read) for n, read in enumerate(reads)]

    assert place(chain((), (0,), (1,), (2,))).before.lanes == 1
    residual = place(chain((), (0,), (1,), (0, 2), (3,))).before
    assert residual.lanes == 2
    assert residual.lane == (0, 1, 1, 0, 0)
