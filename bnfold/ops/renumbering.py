"""Operations that give channels other numbers: one correspondence, from which both directions follow.

An operation tells which channel of one side each channel of the other side is a copy of. From there, an affine moves
either way: along the copies it is *taken* (each copy has what the original has), and against them it is *gathered*: all
copies of a channel must be asked for the same, and what nobody asks keeps the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from bnfold.affine import ChannelAffine
from bnfold.ops.conditions import has_fixed_size
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts
from bnfold.ops.operation import Condition, Rule
from bnfold.ops.refusal import Refusal

__all__ = ["Correspondence", "Side", "renumbers"]

Side: TypeAlias = Literal["input", "output"]


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Which channels are copies of which.

    Attributes:
        original: int64: for each channel of the one side, the number of the channel that it is a copy of.
        channels: how many channels the originals' side has.
        copies: the side of the copies: ``"output"`` for a selection, ``"input"`` for a pixel shuffle, whose input
            channels all go into one output channel.
        partial: whether the originals' side may have channels without a copy, which then keep what they have.
    """

    original: Tensor
    channels: int
    copies: Side = "output"
    partial: bool = False

    def moved(self, call: Any, form: ChannelForm, facts: GraphFacts, here: Side) -> ChannelForm | Refusal:
        """Return the form of the other side, for one of the side ``here``."""
        if here != self.copies:
            if self.partial and not form.fixed:
                text = "{op} takes some of the channels, whose number depends on the input's size"
                return Refusal("channel-dimension", text, op=call)
            return form.picked(self.original)
        gathered = self._gathered(form)
        if gathered is None:
            text = "{op} joins channels that hold different affines"
            if self.copies == "output":
                text = "{op} takes a channel several times, and its copies want different things"
            return Refusal("channels-disagree", text, op=call)
        fixed = has_fixed_size(call.passes_from(facts), form.dim, facts) if self.partial else form.fixed
        return replace(gathered, fixed=fixed)

    def _gathered(self, form: ChannelForm) -> ChannelForm | None:
        """The form of the originals; None where copies of one want different things."""
        asked = torch.ones(len(self.original), dtype=torch.bool, device="cpu") if form.cares is None else form.cares
        affine = ChannelAffine.identity(self.channels)
        cares = torch.zeros(self.channels, dtype=torch.bool, device="cpu")
        at = self.original[asked]
        affine.scale[at], affine.shift[at] = form.affine.scale[asked], form.affine.shift[asked]
        cares[at] = True
        same = torch.equal(affine.scale[at], form.affine.scale[asked])
        same = same and torch.equal(affine.shift[at], form.affine.shift[asked])
        if not same or bool(cares[self.original[~asked]].any()):  # a copy that nobody asks for would change, too
            return None
        return replace(form, affine=affine, cares=None if bool(cares.all()) else cares)


Between: TypeAlias = "Callable[[Any, ChannelForm, GraphFacts, Side], Correspondence | Refusal | None]"


def renumbers(mathematics: str, between: Between, *conditions: Condition) -> Rule:
    """Return the rule of an operation that renumbers channels.

    Args:
        mathematics: one line.
        between: gives the correspondence for a form of one side; None where the channels stay as they are.
        conditions: what must hold besides.
    """

    def across(here: Side) -> Callable[[Any, ChannelForm, GraphFacts], ChannelForm | Refusal]:
        def move(call: Any, form: ChannelForm, facts: GraphFacts) -> ChannelForm | Refusal:
            found = between(call, form, facts, here)
            if found is None or isinstance(found, Refusal):
                return form if found is None else found
            return found.moved(call, form, facts, here)

        move.__doc__ = between.__doc__
        return move

    return Rule(mathematics, conditions, backward=across("output"), forward=across("input"))
