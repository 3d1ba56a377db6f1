"""What the HTML page shows beyond the other reports, as plain data: graphs, affines, errors at each site, hashes.

It is gathered (:mod:`bnfold.report.gather`) only when a page is asked for. A *vertex* is one call of the graph; an edge
is a value that one call reads from another. Parameters, and values that hold shapes only, are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Affine", "Details", "InputFile", "Picture", "Role", "SiteError", "Vertex", "Way", "files_read"]

Role = Literal["batchnorm", "weights", "affine", "end", "other"]


@dataclass(frozen=True)
class Vertex:
    """One call of a graph.

    Attributes:
        name: of its node; the same before and after a fold for a call that is still there.
        label: the layer's qualified name, or the node's name for a bare function call.
        kind: what it computes, in words: ``"Conv2d 1→32, 3×3"``.
        role: how it is drawn.
        inputs: the vertices that it reads, by index.
    """

    name: str
    label: str
    kind: str
    role: Role
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Way:
    """The way that one BatchNorm's affine took through the graph before the fold.

    Attributes:
        decision: index of the BatchNorm's decision in the document.
        site: vertex of the BatchNorm's call.
        into: vertices that absorbed the affine.
        edges: ``(reader, read)`` pairs of vertices that the way runs along.
    """

    decision: int
    site: int
    into: tuple[int, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Picture:
    """The graph of a model, or of one piece of it, before and after.

    Attributes:
        title: name of the piece; empty for a whole model.
        before: vertices in the order in which they run; the last ones may be outputs.
        after: likewise; empty where nothing was folded.
        ways: one for each BatchNorm call that stands in ``before``.
    """

    title: str
    before: tuple[Vertex, ...]
    after: tuple[Vertex, ...] = ()
    ways: tuple[Way, ...] = ()


@dataclass(frozen=True)
class Affine:
    """The affine of one BatchNorm call: C scales and C shifts, as float64 rounded to what a plot shows."""

    decision: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def negative(self) -> int:
        """How many scales are negative."""
        return sum(value < 0 for value in self.scale)

    @property
    def near_zero(self) -> int:
        """How many scales are within a thousandth of the layer's largest one in magnitude."""
        edge = self.edge
        return sum(abs(value) <= edge for value in self.scale)

    @property
    def edge(self) -> float:
        """What counts as near zero: a thousandth of the largest magnitude."""
        return 1e-3 * max((abs(value) for value in self.scale), default=0.0)


@dataclass(frozen=True)
class SiteError:
    """How far the value after a BatchNorm is from the float64 oracle, relative to its largest element.

    Attributes:
        decision: index of the decision.
        floor: of the original in its own precision.
        error: of the folded model, at the same place.
    """

    decision: int
    floor: float
    error: float


@dataclass(frozen=True)
class InputFile:
    """A file that was read: its path, SHA-256 in hexadecimal, and size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Details:
    """All of it.

    Attributes:
        seed: of the random inputs.
        files: the files that were read.
        pictures: of the graph, or of each piece.
        affines: for each decision that has one.
        sites: errors at each site that can be compared.
        remarks: what could not be gathered, and why: sentences.
    """

    seed: int | None = None
    files: tuple[InputFile, ...] = ()
    pictures: tuple[Picture, ...] = ()
    affines: tuple[Affine, ...] = ()
    sites: tuple[SiteError, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def files_read(paths: Iterable[Path]) -> tuple[InputFile, ...]:
    """Return the files with their hashes; folders and files that have gone are left out."""
    found = []
    for path in paths:
        if not path.is_file():
            continue
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        found.append(InputFile(str(path), digest.hexdigest(), path.stat().st_size))
    return tuple(found)
