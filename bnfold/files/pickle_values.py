"""What a pickle that is read without being obeyed consists of: names, and claims of storages, tensors and objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BadPickleError", "Made", "Name", "Pickle", "Storage", "TensorClaim", "children"]


class BadPickleError(Exception):
    """What is wrong with a pickle: a clause that follows the file's name."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle asks for by name; it is not looked up."""

    full: str


@dataclass(frozen=True)
class Storage:
    """A claim of memory that an entry of the archive holds."""

    kind: str
    key: str
    elements: int


@dataclass(eq=False)
class TensorClaim:
    """A claim of a tensor: its place in a storage, in elements, and what else was given with it."""

    storage: Storage
    shape: tuple[int, ...]
    hooks: object
    is_parameter: bool = False


@dataclass(eq=False)
class Made:
    """An object that would be made from class ``name``, with the state that would be given to it."""

    name: str
    state: dict[str, Any] | None = None


@dataclass
class Pickle:
    """What a pickle holds.

    Attributes:
        root: the outermost object, of plain values, :class:`Name`, :class:`Storage`, :class:`TensorClaim` and
            :class:`Made`.
        asked: the names it asks for that were not in ``known``, in the order of their first appearance.
    """

    root: Any = None
    asked: list[str] = field(default_factory=list)


def children(value: object) -> Iterator[object]:
    """Yield the values directly inside a value read from a pickle."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, Made):
        yield value.state
    elif isinstance(value, TensorClaim):
        yield value.hooks
