"""The dimensions of a model's inputs that other sizes may have: which, and in which steps.

The model itself is asked, by runs on tensors without data at other sizes. One size more in every dimension is tried
first: most networks take that. Where one is refused, its steps are searched: a network that halves the image five
times and joins the halves again takes multiples of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.export.refusals import Place, holds_graph, refusal_of
from bnfold.graph.batch_dimension import batch_positions

__all__ = ["Axis", "Free", "batch_axis", "free_sizes", "resized", "shape_in_words", "stepped", "with_sizes", "words_of"]

_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_DIMENSIONS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1,),),
    3: ((2,), (1,)),
    4: ((2, 3), (1, 2)),
    5: ((2, 3, 4), (1, 2, 3)),
}
_STEPS = (1, 2, 4, 8, 16, 32, 64)

Takes = Callable[[Mapping[Place, int]], bool]
"""Whether inputs of other sizes are taken."""


@dataclass(frozen=True)
class Axis:
    """A dimension that stays free.

    Attributes:
        name: ``batch``, ``height``, ...
        places: where it stands in the inputs; these sizes are equal in every run.
        own: the size in the example.
        step: sizes are ``own`` and any number of steps more or less.
        least: the smallest size that the export was made for.
        most: the largest; None where there is none.
        cut: whether a check refuses smaller ones, which the model itself may take in another way.
    """

    name: str
    places: tuple[Place, ...]
    own: int
    step: int = 1
    least: int = 1
    most: int | None = None
    cut: bool = False

    def at(self, size: int) -> dict[Place, int]:
        """Return the places with that size."""
        return dict.fromkeys(self.places, size)

    def other(self, *, larger: bool) -> int:
        """Return another size: a quarter smaller or larger, as near to that as the steps and the bounds allow.

        And uneven, where it may be: what was computed for the example's size may be right for its half and its double.
        """
        steps = max(1, self.own // 4 // self.step)
        steps += 1 if self.step == 1 and self.own > 8 and (self.own - steps) % 2 == 0 else 0
        below = max(self.own - steps * self.step, self.least)
        above = self.own + steps * self.step
        above = above if self.most is None else min(above, self.most)
        one, other = (above, below) if larger else (below, above)
        return one if one != self.own else other

    @property
    def bounded(self) -> bool:
        """Whether a size that the model takes may not be free: by steps, from above, or from below."""
        return self.step > 1 or self.most is not None or self.cut

    @property
    def square(self) -> bool:
        """Whether two sizes of one input must be equal."""
        return any(one[0] == other[0] for one, other in combinations(self.places, 2))

    @property
    def condition(self) -> str | None:
        """What a size must be, after "must be"; None where it may be anything."""
        parts = [f"{self.least} or more"] if self.least > 1 else []
        if self.step > 1:
            off = self.own % self.step
            parts.append(f"a multiple of {self.step}" if off == 0 else f"a multiple of {self.step} and {off} more")
        if self.most is not None:
            parts.append(f"at most {self.most}")
        return ", ".join(parts) or None


@dataclass(frozen=True)
class Free:
    """What was found.

    Attributes:
        axes: the dimensions that may be free.
        why_fixed: by the name of each one that may not, what decides, without a full stop; ``size`` where there are no
            dimensions of that kind at all.
    """

    axes: tuple[Axis, ...]
    why_fixed: Mapping[str, str]


def batch_axis(inputs: Sequence[Any], positions: Sequence[int]) -> Axis:
    """Return the batch of the inputs at ``positions``."""
    return Axis("batch", tuple((position, 0) for position in positions), int(inputs[positions[0]].shape[0]))


def free_sizes(module: nn.Module, inputs: Sequence[Any]) -> Free:
    """Return the dimensions behind the batch and the channels in which a folded model takes other sizes.

    Of several inputs, those shaped as the first is are resized together, and the others keep their size. A module that
    is not folded is not run: its own code might remember what it saw.
    """
    layouts = list(_layouts(inputs))
    if not layouts:
        return Free((), {"size": "no input has a size besides the batch and the channels"})
    if not holds_graph(module):
        return Free(layouts[0], {})
    found: list[Free] = []
    for axes in layouts:  # the next is asked only where this one is not taken whole
        found.append(_asked(module, inputs, axes))
        if not found[-1].why_fixed:
            return found[-1]
    return next((free for free in found if free.axes), found[0])


def stepped(axis: Axis, takes: Takes) -> Axis | None:
    """Return the axis with the smallest steps in which it is taken, or None where none are.

    Args:
        axis: in steps that are known to be needed.
        takes: asked at one step more and at three more.
    """
    steps = (axis.step, *(step for step in _steps(axis.own) if step > axis.step and step % axis.step == 0))
    for step in steps:
        if all(takes(axis.at(axis.own + times * step)) for times in (1, 3)):
            return replace(axis, step=step)
    return None


def resized(inputs: Sequence[Any], axes: Sequence[Axis], generator: torch.Generator) -> tuple[Any, ...] | None:
    """Return inputs in which each axis has another size, or None where none has.

    The first size becomes a quarter smaller and the others a quarter larger, so that an image is not square any more.
    The batch becomes 1, where it is free.

    Args:
        inputs: positional inputs.
        axes: the free dimensions.
        generator: of the standard normal values.
    """
    sizes = [axis for axis in axes if axis.name != "batch"]
    places = {place: size for n, axis in enumerate(sizes) for place, size in axis.at(axis.other(larger=n > 0)).items()}
    if all(int(inputs[position].shape[dim]) == size for (position, dim), size in places.items()):
        return None
    return with_sizes(
        inputs, places | {place: 1 for axis in axes if axis.name == "batch" for place in axis.places}, generator
    )


def with_sizes(inputs: Sequence[Any], places: Mapping[Place, int], generator: torch.Generator) -> tuple[Any, ...]:
    """Return inputs with other sizes at some places: standard normal values, and zeros for integers.

    Args:
        inputs: positional inputs; those whose shape stays are returned as they are.
        places: the sizes.
        generator: of the values.
    """
    made = []
    for position, value in enumerate(inputs):
        shape = [places.get((position, dim), size) for dim, size in enumerate(getattr(value, "shape", ()))]
        if not isinstance(value, Tensor) or shape == list(value.shape):
            made.append(value)
        elif value.is_floating_point():
            made.append(torch.randn(shape, generator=generator).to(device=value.device, dtype=value.dtype))
        else:
            made.append(value.new_zeros(shape))
    return tuple(made)


def shape_in_words(shape: Sequence[int], axes: Sequence[Axis], position: int) -> str:
    """Return a shape as ``batch, 3, height, width``, for the input at ``position``."""
    names = {place: axis.name for axis in axes for place in axis.places}
    return ", ".join(names.get((position, dim), str(size)) for dim, size in enumerate(shape))


def words_of(axes: Sequence[Axis]) -> tuple[str, ...]:
    """Return what to ask for to have these axes free in another export: ``("batch", "size")``."""
    names = {axis.name for axis in axes}
    return (*(("batch",) if "batch" in names or not axes else ()), *(("size",) if names - {"batch"} else ()))


def _layouts(inputs: Sequence[Any]) -> Iterator[tuple[Axis, ...]]:
    """Yield the ways in which the sizes may lie in the inputs, the likeliest first: behind the channels, or before."""
    positions = batch_positions(inputs)
    if not positions:
        return
    first: Tensor = inputs[positions[0]]
    together = [place for place in positions if inputs[place].shape[1:] == first.shape[1:]]
    images = first.is_floating_point() or first.ndim >= 4
    for dims in _DIMENSIONS.get(first.ndim, ()) if images else ():
        yield tuple(
            Axis(name, tuple((place, dim) for place in together), int(first.shape[dim]))
            for name, dim in zip(_NAMES[len(dims)], dims, strict=True)
        )


def _asked(module: nn.Module, inputs: Sequence[Any], axes: tuple[Axis, ...]) -> Free:
    def takes(sizes: Mapping[Place, int]) -> bool:
        return refusal_of(module, inputs, sizes) is None

    uneven = {place: size for n, axis in enumerate(axes) for place, size in axis.at(axis.own + 2 * n + 1).items()}
    if takes(uneven):
        return Free(axes, {})
    found = {axis.name: stepped(axis, takes) for axis in axes}
    free = tuple(axis for axis in found.values() if axis is not None)
    if not free and len(axes) > 1 and len({axis.own for axis in axes}) == 1:  # or square ones only
        places = tuple(place for axis in axes for place in axis.places)
        square = stepped(replace(axes[0], places=places), takes)
        if square is not None:
            return Free((square,), {})
    why = {axis.name: _why(module, inputs, axis) for axis in axes if found[axis.name] is None}
    together = {place: size for axis in free for place, size in axis.at(axis.own + axis.step).items()}
    if len(free) > 1 and not takes(together):
        reason = "its sizes cannot be changed together"
        return Free(free[:1], {**why, **{axis.name: reason for axis in free[1:]}})
    return Free(free, why)


def _why(module: nn.Module, inputs: Sequence[Any], axis: Axis) -> str:
    refusal = refusal_of(module, inputs, axis.at(2 * axis.own))
    return (refusal.why if refusal is not None else "") or "the model runs at no other"


def _steps(own: int) -> list[int]:
    """Return the steps that are worth trying: powers of two, and what goes into the example's own size."""
    return sorted({*_STEPS, *(step for step in range(1, own + 1) if own % step == 0)})
