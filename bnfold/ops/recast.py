"""Where a reshape takes the channels: the dimensions of one shape along which those of another run.

A reshape keeps the elements in row-major order. Both shapes are cut into the same factors, as far as that is possible
for every batch, height and width::

    (N,  g, C/g,  H, W)        N | g | C/g | H | W
    (N,    C,     H, W)   ->   N | g   C/g | H | W

An affine over the channels of one shape is an array over some of the factors, and so an affine over the dimensions of
the other that hold them. What cannot be cut, such as ``H W`` and 100, is one block: the affine must be the same along
all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from bnfold.affine import ChannelAffine
from bnfold.ops.form import ChannelForm
from bnfold.ops.symbolic import ONE, Size, number

__all__ = ["recast"]


@dataclass(frozen=True)
class _Factor:
    """A factor of both shapes.

    Attributes:
        size: of it.
        here: the dimension that holds it on the one side.
        there: on the other.
    """

    size: Size
    here: int
    there: int


def _common(
    here: Sequence[Size], there: Sequence[Size]
) -> tuple[list[_Factor], int, list[tuple[Size, int]], list[tuple[Size, int]]]:
    """Return the factors in order, before which of them the block stands that cannot be cut, and its parts."""
    one = deque((size, dim) for dim, size in enumerate(here) if size != ONE)
    other = deque((size, dim) for dim, size in enumerate(there) if size != ONE)
    found: tuple[list[_Factor], list[_Factor]] = ([], [])
    for end in (0, -1):
        while one and other:
            (a, i), (b, j) = one[end], other[end]
            common = a if b.in_units_of(a) else b if a.in_units_of(b) else None
            if common is None:
                break
            found[end].append(_Factor(common, i, j))
            for side, size, dim in ((one, a, i), (other, b, j)):
                if size == common:
                    side.popleft() if end == 0 else side.pop()
                else:
                    side[end] = (size / common, dim)
    return found[0] + found[1][::-1], len(found[0]), list(one), list(other)


def recast(
    form: ChannelForm, here: Sequence[Size] | None, there: Sequence[Size] | None, seen: tuple[int, ...]
) -> ChannelForm | None:
    """Return the form on a value of shape ``there`` that is one on its reshaped form ``here``; None if none is.

    Args:
        form: along one dimension of ``here``, or several.
        here: the shape that the form is for.
        there: the other.
        seen: the sizes of ``there`` on the example inputs.
    """
    if here is None or there is None:
        return None
    spread = form.spread or ((form.dim, form.affine.channels),)
    here = list(here)
    for dim, size in spread:
        if not form.fixed and here[dim].number != size:
            return None
        if size == 0:
            return None
        here[dim] = number(size)  # what reads it has as many channels in every run
    factors, at, rest, others = _common(here, there)
    blocks = _blocks(factors, at, rest, dict(spread))
    if blocks is None:
        return None
    array = _Array.of(form, [size for _, size, _ in blocks])
    places = [place for _, _, place in blocks]
    for axis in reversed(range(len(places))):  # the block: no dimension of the other side holds it
        if places[axis] is None and not array.drop(axis):
            return None
    held = [place for place in places if place is not None]
    return _placed(form, array, held, factors, [dim for _, dim in others], there, seen)


def _blocks(
    factors: list[_Factor], at: int, rest: list[tuple[Size, int]], sizes: dict[int, int]
) -> list[tuple[int, int, int | None]] | None:
    """The channels' dimensions cut into factors: of each its dimension, its size, its place; None for the block."""
    blocks: list[tuple[int, int, int | None]] = []
    for dim, size in sizes.items():
        own: list[tuple[int, int | None]] = []
        known = prod(factor.size.number or 0 for factor in factors if factor.here == dim)
        left = size // known if known and size % known == 0 else 0
        if not left:
            return None
        for index, factor in enumerate(factors):
            if index == at and any(part == dim for _, part in rest):
                own.append((left, None))
            if factor.here == dim:
                own.append((factor.size.number or 0, index))
        if at == len(factors) and any(part == dim for _, part in rest):
            own.append((left, None))
        if prod(length for length, _ in own) != size:
            return None
        blocks.extend((dim, length, index) for length, index in own)
    return blocks


@dataclass
class _Array:
    """The numbers of a form, over several axes."""

    scale: Tensor
    shift: Tensor
    cares: Tensor | None

    @staticmethod
    def of(form: ChannelForm, sizes: list[int]) -> _Array:
        """Take the channels apart."""
        affine, cares = form.affine, form.cares
        return _Array(
            affine.scale.reshape(sizes), affine.shift.reshape(sizes), None if cares is None else cares.reshape(sizes)
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change all of the numbers alike."""
        self.scale, self.shift = change(self.scale), change(self.shift)
        self.cares = None if self.cares is None else change(self.cares)

    def drop(self, axis: int) -> bool:
        """Leave out an axis along which all is the same, if it is."""
        for part in (self.scale, self.shift, self.cares):
            if part is not None and not bool((part == part.narrow(axis, 0, 1)).all()):
                return False
        self.map(lambda part: part.select(axis, 0))
        return True


def _placed(
    form: ChannelForm,
    array: _Array,
    held: list[int],
    factors: list[_Factor],
    blocked: list[int],
    there: Sequence[Size],
    seen: tuple[int, ...],
) -> ChannelForm | None:
    """Put an array over the factors ``held`` along the dimensions of the other side."""
    dims = sorted({factors[number].there for number in held})
    for dim in reversed(dims):  # along which nothing changes, no channels run
        loose = dim in blocked or any(factor.there == dim and factor.size.number is None for factor in factors)
        if (loose or len(dims) > 1) and _without(array, held, factors, dim):
            dims.remove(dim)
    if not dims:  # the same everywhere: any dimension will do whose size is known
        dims = [dim for dim in (form.dim, *range(len(there))) if dim < len(there) and there[dim].number is not None]
        dims = dims[:1]
    if not dims or any(dim in blocked for dim in dims):
        return None
    fixed = all(there[dim].number is not None for dim in dims)
    if not fixed and len(dims) > 1:
        return None
    parts: list[tuple[int, int | None]] = []  # of each dimension in turn: sizes, and which axis if any
    spread: list[tuple[int, int]] = []
    for dim in dims:
        own = _parts_of(dim, factors, held, seen)
        if own is None:
            return None
        parts.extend(own or [(seen[dim], None)])
        spread.append((dim, seen[dim]))
    order = [axis for _, axis in parts if axis is not None]
    sizes = [size for size, _ in parts]
    known = [size if axis is not None else 1 for size, axis in parts]
    array.map(lambda part: part.permute(order).reshape(known).expand(sizes).reshape(-1))
    moved = replace(form, affine=ChannelAffine(array.scale, array.shift), cares=array.cares, dim=dims[0], fixed=fixed)
    return replace(moved, spread=tuple(spread) if len(spread) > 1 else ())


def _without(array: _Array, held: list[int], factors: list[_Factor], dim: int) -> bool:
    """Leave out the axes of a dimension, if all is the same along them."""
    axes = [axis for axis, number in enumerate(held) if factors[number].there == dim]
    trial = _Array(array.scale, array.shift, array.cares)
    if not all(trial.drop(axis) for axis in reversed(axes)):
        return False
    array.scale, array.shift, array.cares = trial.scale, trial.shift, trial.cares
    for axis in reversed(axes):
        del held[axis]
    return True


def _parts_of(
    dim: int, factors: list[_Factor], held: list[int], seen: tuple[int, ...]
) -> list[tuple[int, int | None]] | None:
    """The factors of a dimension, each with its axis; those of unknown size, if neighbours, are what is left of it."""
    own = [number for number, factor in enumerate(factors) if factor.there == dim]
    known = prod(size for number in own if (size := factors[number].size.number) is not None)
    parts: list[tuple[int, int | None]] = []
    loose = [place for place, number in enumerate(own) if factors[number].size.number is None]
    if loose and loose != list(range(loose[0], loose[-1] + 1)):
        return None  # such as H C W: what reads it tells their product, not each
    for place, index in enumerate(own):
        size = factors[index].size.number
        if size is not None:
            parts.append((size, held.index(index) if index in held else None))
        elif place == loose[0]:
            parts.append((seen[dim] // known, None))
    return parts if prod(size for size, _ in parts) == seen[dim] or not parts else None
