"""Sizes as they are in every run: a number times unknowns, ``2 N H / 25`` say.

An example's shapes tell one size of many; what a reshape does to the channels must hold for all of them. An operation
tells the sizes of its output from those of its inputs (``sizes`` of its class): a convolution's channels are those of
its weight, its batch is that of its input, and its height is unknown.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

from bnfold.ops.spelling import NotStaticError

if TYPE_CHECKING:
    from bnfold.ops.interface import GraphFacts, Value

__all__ = ["ONE", "Shape", "Sight", "Size", "broadcast", "number", "product", "with_size"]


@dataclass(frozen=True)
class Size:
    """``factor * product(unknown ** power)``: a size that is a whole number in each run.

    Attributes:
        factor: not 0.
        powers: of the unknowns, none of them 0.
    """

    factor: Fraction
    powers: frozenset[tuple[Hashable, int]] = frozenset()

    @staticmethod
    def unknown(name: Hashable) -> Size:
        """A size of which nothing is known; the same name is the same size."""
        return Size(Fraction(1), frozenset({(name, 1)}))

    def _joined(self, other: Size, sign: int) -> Size:
        powers = dict(self.powers)
        for name, power in other.powers:
            powers[name] = powers.get(name, 0) + sign * power
        factor = self.factor * other.factor if sign > 0 else self.factor / other.factor
        return Size(factor, frozenset((name, power) for name, power in powers.items() if power))

    def __mul__(self, other: Size) -> Size:
        return self._joined(other, 1)

    def __truediv__(self, other: Size) -> Size:
        return self._joined(other, -1)

    @property
    def number(self) -> int | None:
        """The size, where it is the same in every run."""
        return int(self.factor) if not self.powers and self.factor.denominator == 1 else None

    def in_units_of(self, other: Size) -> Size | None:
        """How often ``other`` goes into this size, where it does so in every run."""
        quotient = self / other
        whole = quotient.factor.denominator == 1 and all(power > 0 for _, power in quotient.powers)
        return quotient if whole else None


ONE = Size(Fraction(1))
Shape: TypeAlias = "tuple[Size, ...]"


def number(value: int) -> Size:
    """Return a size that is known. Raises :class:`NotStaticError` for 0, by which nothing may be divided."""
    if value == 0:
        raise NotStaticError("a size of zero")
    return Size(Fraction(value))


def product(sizes: Iterable[Size]) -> Size:
    """Return the size of all dimensions together."""
    total = ONE
    for size in sizes:
        total = total * size
    return total


@dataclass(frozen=True, eq=False)
class Sight:
    """What an operation sees where it tells the sizes of its output.

    Attributes:
        facts: the graph.
        known: the sizes of the values before it.
        fresh: what to take for a size of the output that it does not tell.
    """

    facts: GraphFacts
    known: Mapping[Value, Shape]
    fresh: Shape


def broadcast(shapes: Sequence[Shape | None], fresh: Shape) -> Shape | None:
    """The sizes of values that are stretched to one another."""
    if not shapes or any(shape is None or len(shape) > len(fresh) for shape in shapes):
        return None
    found = list(fresh)
    for dim in range(len(fresh)):
        seen = {shape[dim - len(fresh)] for shape in shapes if shape is not None and len(shape) >= len(fresh) - dim} - {
            ONE
        }
        if len(seen) <= 1:
            found[dim] = next(iter(seen), ONE)
    return tuple(found)


def with_size(sizes: Shape, dim: int, size: Size) -> Shape:
    """Return the sizes with another one in the place of a dimension."""
    return (*sizes[:dim], size, *sizes[dim + 1 :])
