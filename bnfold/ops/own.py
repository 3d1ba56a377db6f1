"""Layers of a user's own, as they have told of them (:mod:`bnfold.extend`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bnfold.ops.conditions import scale_nonnegative, shift_zero
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import Operation, Rule, unchanged
from bnfold.ops.refusal import Refusal
from bnfold.ops.symbolic import Shape, Sight
from bnfold.ops.weighted import Absorber

__all__ = ["TaughtAbsorber", "TaughtPassing"]


def passes_as_taught(call: TaughtPassing, form: ChannelForm, facts: GraphFacts) -> Refusal | None:
    """``f(a x + b) = a f(x) + b`` along dimension 1, for the scales and shifts that the user said."""
    if form.dim != 1:
        return Refusal("channel-dimension", "{op} was taught for channels in dimension 1", op=call)
    refusal = scale_nonnegative(call, form, facts) if call.nonnegative else None
    if refusal is None and call.unshifted:
        refusal = shift_zero(call, form, facts)
    return refusal or facts.doubts(call, form.affine.channels)


@dataclass(frozen=True, eq=False)
class TaughtPassing(Operation):
    """A module of the user's that affines along dimension 1 may pass, unchanged.

    Attributes:
        nonnegative: whether every scale must be >= 0.
        unshifted: whether every shift must be 0.
    """

    words = "layer"
    taught = True
    keeps_rank = False
    keeps_channels = False
    memory = "unknown"
    rule = Rule("as the user said, checked in float64", (passes_as_taught,), backward=unchanged, forward=unchanged)

    input: Value
    nonnegative: bool
    unshifted: bool

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """Nothing was said of them."""
        return


@dataclass(frozen=True, eq=False)
class TaughtAbsorber(Absorber):
    """A module of the user's whose output is linear in its weight, channels in dimension 1.

    Attributes:
        weight_dim: the dimension of the weight that the output's channels run along.
        names: the attributes of the module that hold weight and bias.
    """

    words = "layer"
    taught = True
    keeps_rank = False
    takes = frozenset(("after",))

    weight_dim: int
    names: tuple[str, str]

    @property
    def held_as(self) -> tuple[str, str]:
        """As the user said."""
        return self.names

    def output_channels(self, weight: Tensor | None) -> int:
        """Those of the weight."""
        assert weight is not None
        return int(weight.shape[self.weight_dim])

    def by_output(self, weight: Tensor, values: Tensor) -> Tensor:
        """As the weight is laid out."""
        return values.reshape(-1, *[1] * (weight.ndim - 1 - self.weight_dim))

    def own_channels(self, facts: GraphFacts) -> int | None:  # noqa: ARG002
        """Nothing is taken for granted."""
        return None

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """Nothing was said of them."""
        return
