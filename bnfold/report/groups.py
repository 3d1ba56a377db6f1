"""Decisions that say the same about layers that repeat, as one: a pattern of their names, and one sentence.

>>> pattern(["block1.bn2", "block1.bn3"]), pattern(["stem.bn"])
('block1.bn*', 'stem.bn')
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnfold.fold.decision import Decision
from bnfold.report.words import why

__all__ = ["FEWEST", "Group", "grouped", "pattern"]

FEWEST = 3
"""So many decisions that say the same are one group; fewer stand for themselves."""

_NUMBER = re.compile(r"\d+")
_LISTED = re.compile(r"`([^`]*)`(?:, `[^`]*`)*(?: and (?:`[^`]*`|\d+ more))?")
_PATTERNS = 3  # told of one group; the others are counted


@dataclass(frozen=True)
class Group:
    """Decisions that say the same, or one that stands for itself.

    Attributes:
        members: their numbers in the plan, in order.
        names: the patterns of the layers' names, with how many each stands for: ``"stage*.bn1 (8), stem.bn"``.
        into: the patterns of what absorbed them.
        through: the patterns of what they moved through.
        reason: why they did not fold, with patterns for the names and ranges for the numbers that differ.
    """

    members: tuple[int, ...]
    names: str
    into: str
    through: str
    reason: str


def grouped(decisions: Sequence[Decision]) -> list[Group]:
    """Return all decisions as groups, each where its first member stands.

    Decisions are of one group where they have the same action, direction and reason, and their sentences differ in
    names and numbers alone; those that folded, where their names and what absorbed them differ in numbers alone.
    """
    numbers: dict[object, list[int]] = {}
    for number, decision in enumerate(decisions):
        numbers.setdefault(_key(decision), []).append(number)
    parts = [
        part
        for members in numbers.values()
        for part in ([members] if len(members) >= FEWEST else [[number] for number in members])
    ]
    return [_group([(number, decisions[number]) for number in part]) for part in sorted(parts)]


def pattern(names: Sequence[str]) -> str:
    """Return names that differ in numbers alone as one, with ``*`` for the numbers that differ."""
    slots = [_NUMBER.findall(name) for name in names]
    same = iter([len(set(values)) == 1 for values in zip(*slots, strict=True)])
    return _NUMBER.sub(lambda found: found[0] if next(same) else "*", names[0])


def _group(members: Sequence[tuple[int, Decision]]) -> Group:
    decisions = [decision for _, decision in members]
    return Group(
        tuple(number for number, _ in members),
        _patterns((decision.batchnorm for decision in decisions), count=True),
        _patterns(name for decision in decisions for name in decision.into),
        _patterns(name for decision in decisions for name in decision.through),
        _sentence([_reason(decision) for decision in decisions]),
    )


def _key(decision: Decision) -> object:
    if decision.action == "fold":
        names = ((decision.batchnorm,), decision.into, decision.through)
        return decision.direction, tuple(tuple(dict.fromkeys(map(_bare, part))) for part in names)
    between = _LISTED.split(_reason(decision))[::2]
    return decision.action, decision.reason, *(re.sub(r"scales? (is|are)", "scales are", _bare(b)) for b in between)


def _reason(decision: Decision) -> str:
    return why(decision).removeprefix(f"{decision.batchnorm} ")


def _bare(name: str) -> str:
    return _NUMBER.sub("*", name)


def _patterns(names: Iterable[str], *, count: bool = False) -> str:
    """Return the patterns of names, the most frequent first."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_bare(name), []).append(name)
    most = sorted(found.values(), key=len, reverse=True)
    told = [
        pattern(of_pattern) + (f" ({len(of_pattern)})" if count and len(most) > 1 and len(of_pattern) > 1 else "")
        for of_pattern in most[:_PATTERNS]
    ]
    rest = sum(map(len, most[_PATTERNS:]))
    return ", ".join(told) + (f" and {rest} more" if rest else "")


def _sentence(texts: Sequence[str]) -> str:
    """Return sentences that differ in names and numbers alone as one."""
    if len(set(texts)) == 1:
        return texts[0]
    told = []
    for place, parts in enumerate(zip(*map(_LISTED.split, texts), strict=True)):
        if place % 2:
            told.append(_one(parts))
            continue
        counts = iter([_span(list(map(int, slot))) for slot in zip(*map(_NUMBER.findall, parts), strict=True)])
        words = next((part for part in parts if "scales are" in part), parts[0])
        told.append(_NUMBER.sub(lambda _, counts=counts: next(counts), words))  # type: ignore[misc]
    return "".join(told)


def _one(names: Sequence[str]) -> str:
    """Return one name, or its pattern; of several patterns the most frequent."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_bare(name), []).append(name)
    most = max(found.values(), key=len)
    return f"`{pattern(most)}`" + (" or the like" if len(found) > 1 else "")


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
