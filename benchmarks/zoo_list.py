"""Which models there are, and which of them are asked for.

``zoo.csv`` beside this file lists 820 models of timm 1.0.31 and torchvision 0.28 that hold BatchNorms, and
``zoo_clients.csv`` those of other libraries, each with an expression that builds it. A *family* is the file in which a
library defines a model: ``resnet``, ``efficientnet``, ``faster_rcnn``.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Entry", "read_list", "sample", "select", "shard"]

ALSO = ("timm/mobileone_s0", "timm/repvgg_a0")  # blocks of parallel branches, which their family's smallest lacks
LISTS = tuple(Path(__file__).resolve().parent / name for name in ("zoo.csv", "zoo_clients.csv"))


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        library: the package that it comes from, as it is imported.
        family: the file of the library that defines it.
        model: its name in the library.
        parameters: how many numbers its parameters hold.
        batchnorms: how many BatchNorm modules it holds.
        batchnorm_classes: the names of their classes.
        shape: of one input as its library trains it, channels first; empty where the library does not say. Of a client
            the shape that it is checked at.
        traces: whether plain ``torch.fx.symbolic_trace`` took it when the list was made.
        builder: ``module:expression``, which builds a client; empty for a model that timm or torchvision knows by name.
        more: of a client, an expression for the tuple of what is passed after the first input ``x``.
        other: another shape of one input, to try the fold at; where it is empty, a taller and wider one.
    """

    library: str
    family: str
    model: str
    parameters: int
    batchnorms: int
    batchnorm_classes: tuple[str, ...]
    shape: tuple[int, ...]
    traces: bool
    builder: str = ""
    more: str = ""
    other: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """``library/model``, unique in the zoo."""
        return f"{self.library}/{self.model}"


def read_list() -> list[Entry]:
    """Read the lists of all models, in their order."""
    rows = [row for path in LISTS for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
    return [
        Entry(
            library=row["library"],
            family=row["family"],
            model=row["model"],
            parameters=int(row["parameters"]),
            batchnorms=int(row["batchnorms"]),
            batchnorm_classes=tuple(row["batchnorm_classes"].split("|")),
            shape=_shape(row["input_chw"]),
            traces=row["symbolic_trace"] == "yes",
            builder=row.get("builder", ""),
            more=row.get("more", ""),
            other=_shape(row.get("other_chw", "")),
        )
        for row in rows
    ]


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x") if size)


def select(
    entries: Iterable[Entry],
    *,
    patterns: Sequence[str] = (),
    families: Sequence[str] = (),
    libraries: Sequence[str] = (),
    max_parameters: float | None = None,
) -> list[Entry]:
    """Return the entries that meet every condition given, smallest first.

    Args:
        entries: what to select from.
        patterns: shell patterns, one of which the name or ``library/name`` must match.
        families: shell patterns, one of which the family or ``library/family`` must match.
        libraries: shell patterns, one of which the library must match; ``"clients"`` stands for all but timm and
            torchvision.
        max_parameters: the most parameters a model may have.
    """
    found = [
        entry
        for entry in entries
        if (not patterns or _matches(patterns, entry.model, entry.key))
        and (not families or _matches(families, entry.family, f"{entry.library}/{entry.family}"))
        and (not libraries or _matches(libraries, entry.library, "clients" if entry.builder else ""))
        and (max_parameters is None or entry.parameters <= max_parameters)
    ]
    return sorted(found, key=lambda entry: (entry.parameters, entry.key))


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def sample(entries: Iterable[Entry]) -> list[Entry]:
    """Return the smallest model of each kind, smallest first.

    A kind is a library, a family, the classes of its BatchNorms, and whether plain symbolic tracing takes it: at least
    one model of every family, and a second where a family has models that are built in another way. ``ALSO`` is added.
    """
    smallest: dict[tuple[object, ...], Entry] = {}
    for entry in select(entries):
        kind = (entry.library, entry.family, entry.batchnorm_classes, entry.traces)
        smallest.setdefault((entry.key,) if entry.key in ALSO else kind, entry)
    return list(smallest.values())


def shard(entries: Sequence[Entry], text: str) -> list[Entry]:
    """Return part ``i`` of ``n`` equal parts, for text ``"i/n"`` with i from 1 to n; every n-th entry.

    Raises:
        ValueError: the text does not say that.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"{text!r} is not a shard: write 1/4 for the first of four parts")
    return list(entries[int(part) - 1 :: int(parts)])
