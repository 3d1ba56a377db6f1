"""Which dimensions of an export are to stay free: what may be asked for, and what is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bnfold.errors import UsageError

__all__ = ["DEFAULT", "Dynamic", "Wanted", "wanted"]

Dynamic: TypeAlias = Any
"""``("batch",)``, ``("batch", "size")``, ``("size",)`` or ``()``; or the ``dynamic_shapes`` of ``torch.export``."""

DEFAULT = ("batch",)
_WORDS = ("batch", "size")


@dataclass(frozen=True)
class Wanted:
    """What is to stay free.

    Attributes:
        batch: the first dimension.
        size: height and width; the length of a sequence; depth, height and width of a volume.
        by_name: those of ``batch`` and ``size`` that the user named: where one cannot be free, that is an error.
        shapes: torch's own ``dynamic_shapes``, instead of the above; None without.
    """

    batch: bool = True
    size: bool = False
    by_name: frozenset[str] = frozenset()
    shapes: Any = None


def wanted(dynamic: Dynamic, *, by_name: bool | None = None) -> Wanted:
    """Return what ``dynamic`` asks for.

    Args:
        dynamic: the words, in a tuple or a list or as one string with commas (``"none"`` for neither); or torch's own
            ``dynamic_shapes``; or a :class:`Wanted`, which is returned as it is.
        by_name: whether the user has named the words. By default, if they are other than :data:`DEFAULT`.

    Raises:
        UsageError: a word is none of the two.
    """
    if isinstance(dynamic, Wanted):
        return dynamic
    words = dynamic
    if isinstance(dynamic, str):
        words = () if dynamic == "none" else tuple(word.strip() for word in dynamic.split(","))
    if not isinstance(words, (tuple, list)) or not all(isinstance(word, str) for word in words):
        return Wanted(batch=False, shapes=dynamic)
    _check(words)
    named = tuple(words) != DEFAULT if by_name is None else by_name
    return Wanted("batch" in words, "size" in words, frozenset(words) if named else frozenset())


def _check(words: Iterable[str]) -> None:
    for word in words:
        if word not in _WORDS:
            raise UsageError(
                f"`{word}` is no dimension that can stay free.",
                fix="Say batch, size, both with a comma between, or none.",
            )
