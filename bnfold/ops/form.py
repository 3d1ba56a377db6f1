"""What a value holds, channel by channel, or is asked to hold.

A :class:`ChannelForm` is a per-channel affine of a value. Backward it is asked: "let this value be ``affine`` of what
it was". Forward it is held: "what the network should see is ``affine`` of what this value is". A rule turns the form of
an operation's output into forms of its inputs, or those of the inputs into that of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnfold.affine import ChannelAffine

__all__ = ["ChannelForm"]


@dataclass(frozen=True, eq=False)
class ChannelForm:
    """An affine of a value, along its channels.

    Attributes:
        affine: scale and shift, shape ``(C,)``.
        dim: the dimension of the value that the channels run along, not negative; the first of several.
        rank: the number of dimensions of the value, None where unknown.
        cares: bool, shape ``(C,)``: the channels that the asker reads; None for all.
        unsure: whether ``rank`` is only that of the example inputs, or of another term of a sum, so that a layer which
            takes it for granted must check it when run.
        spread: where the channels run along several dimensions, each with its size, in order: channel ``(i, j)`` of
            sizes ``(m, n)`` is number ``i n + j``. Else empty.
        fixed: whether the value has this many channels whatever the height and width of the model's input; else they
            are those of the example inputs.
    """

    affine: ChannelAffine
    dim: int
    rank: int | None
    cares: Tensor | None = None
    unsure: bool = False
    spread: tuple[tuple[int, int], ...] = ()
    fixed: bool = True

    def with_affine(self, affine: ChannelAffine) -> ChannelForm:
        """Return the form with another affine along the same dimension."""
        return replace(self, affine=affine)

    def picked(self, index: Tensor) -> ChannelForm:
        """Return the form of a value whose channel ``i`` is this one's channel ``index[i]``."""
        affine = ChannelAffine(self.affine.scale[index], self.affine.shift[index])
        return replace(self, affine=affine, cares=None if self.cares is None else self.cares[index])

    def agrees(self, other: ChannelForm) -> bool:
        """Whether both have the same affine."""
        mine, theirs = self.affine, other.affine
        return torch.equal(mine.scale, theirs.scale) and torch.equal(mine.shift, theirs.shift)

    def split(self, sizes: list[int]) -> tuple[ChannelForm, ...]:
        """Return the forms of values that hold this one's channels one after the other.

        Args:
            sizes: how many channels each holds; their sum is the number of channels.
        """
        count = len(sizes)
        scales, shifts = self.affine.scale.split_with_sizes(sizes), self.affine.shift.split_with_sizes(sizes)
        cares = (None,) * count if self.cares is None else self.cares.split_with_sizes(sizes)
        return tuple(
            replace(self, affine=ChannelAffine(scale, shift), cares=care)
            for scale, shift, care in zip(scales, shifts, cares, strict=True)
        )

    def joined(self, other: ChannelForm) -> ChannelForm | None:
        """Return the one form that meets both, or None where they contradict each other."""
        places = (self.dim, self.spread, self.affine.channels)
        if places != (other.dim, other.spread, other.affine.channels):
            return None
        mine = torch.ones(self.affine.channels, dtype=torch.bool, device="cpu") if self.cares is None else self.cares
        theirs = (
            torch.ones(self.affine.channels, dtype=torch.bool, device="cpu") if other.cares is None else other.cares
        )
        both = mine & theirs
        same = torch.equal(self.affine.scale[both], other.affine.scale[both]) and torch.equal(
            self.affine.shift[both], other.affine.shift[both]
        )
        if not same:
            return None
        affine = ChannelAffine(
            torch.where(mine, self.affine.scale, other.affine.scale),
            torch.where(mine, self.affine.shift, other.affine.shift),
        )
        cares = mine | theirs
        rank, unsure = self.rank or other.rank, self.unsure or other.unsure
        cared = None if bool(cares.all()) else cares
        return ChannelForm(affine, self.dim, rank, cared, unsure, self.spread, self.fixed or other.fixed)
