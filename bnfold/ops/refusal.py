"""Why an affine cannot move, as data; and the one place where that becomes a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.ops.interface import GraphFacts, Value

__all__ = ["Count", "Described", "OutputOf", "Readers", "Refusal", "described", "rendered"]


@dataclass(frozen=True)
class Count:
    """So many of so many: channels, scales, weights.

    Attributes:
        part: of them.
        whole: all of them.
        noun: what they are, in the singular.
    """

    part: int
    whole: int
    noun: str

    def __str__(self) -> str:
        """Return "7 of 64 scales are", "1 of 64 scales is", "all 64 scales are"."""
        if self.part == self.whole:
            return f"all {self.whole} {self.noun}s are" if self.whole > 1 else f"the only {self.noun} is"
        return f"{self.part} of {self.whole} {self.noun}s {'is' if self.part == 1 else 'are'}"


class Refusal:
    """Why an affine cannot move.

    Attributes:
        reason: a stable kebab-case code.
        pattern: the end of a sentence, without a full stop, with ``{slots}``.
        parts: what stands in the slots: an operation ``op``, a value ``value``, a :class:`Count`, a number, a word.

    >>> Refusal("negative-scale", "{count} negative and {op} stands {side} it", count=Count(7, 64, "scale")).reason
    'negative-scale'
    """

    __slots__ = ("parts", "pattern", "reason")

    def __init__(self, reason: str, pattern: str, **parts: Any) -> None:
        self.reason = reason
        self.pattern = pattern
        self.parts = parts

    def having(self, **parts: Any) -> Refusal:
        """Return the same with other things in its slots."""
        return Refusal(self.reason, self.pattern, **{**self.parts, **parts})

    def __repr__(self) -> str:
        return f"Refusal({self.reason!r}, {self.pattern!r})"


def described(facts: GraphFacts, value: Value) -> str:
    """Return the computation of a value in words, with its name: "max pooling `pool2`"."""
    call = facts.call(value)
    return facts.described(value) if call is None else f"{call.words} `{facts.name(value)}`"


@dataclass(frozen=True, eq=False)
class Described:
    """A computation that may have no operation."""

    value: Any

    def rendered(self, facts: GraphFacts) -> str:
        """Return it in words, with its name."""
        return described(facts, self.value)


@dataclass(frozen=True, eq=False)
class OutputOf:
    """What a computation gives."""

    value: Any

    def rendered(self, facts: GraphFacts) -> str:
        """Return "the output of `conv1`"."""
        name = facts.name(self.value)
        return facts.described(self.value) if facts.is_input(self.value) else f"the output of `{name}`"


@dataclass(frozen=True, eq=False)
class Readers:
    """Some who read a value."""

    values: tuple[Any, ...]

    def rendered(self, facts: GraphFacts) -> str:
        """Return "`conv1` and 2 more"."""
        first, *others = self.values
        more = f" and {len(others)} more" if others else ""
        return f"the model's output{more}" if facts.is_output(first) else f"`{facts.name(first)}`{more}"


def rendered(refusal: Refusal, facts: GraphFacts) -> str:
    """Return the end of the sentence that says why, without a full stop.

    A slot's value is told by its name, an operation by what it is and its name.
    """
    said: dict[str, str] = {"side": "before"}
    for slot, part in refusal.parts.items():
        if hasattr(part, "rendered"):
            said[slot] = part.rendered(facts)
        elif hasattr(part, "node"):
            said[slot] = described(facts, part.node)
        else:
            said[slot] = facts.name(part) if hasattr(part, "name") else str(part)
    return refusal.pattern.format(**said)
