"""What the movements see of the planner, and what they all ask about an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch

from bnfold import ops
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.refusal import Refusal

__all__ = [
    "RANK_UNKNOWN",
    "State",
    "may_not_absorb",
    "shares_weights",
    "spread_stops",
    "weight_of",
    "with_rank_of_pool",
]


RANK_UNKNOWN = "the number of dimensions at {op} is not known without example inputs"


class State(Protocol):
    """What the planner has settled so far."""

    @property
    def facts(self) -> GraphFacts:
        """The graph."""

    @property
    def share(self) -> Literal["clone", "keep"]:
        """What happens to layers called at several sites."""

    @property
    def settled(self) -> Mapping[Value, ops.BatchNorm]:
        """BatchNorm calls that are now the identity."""

    @property
    def explicit(self) -> Mapping[Value, Any]:
        """BatchNorm calls that are now explicit affines."""

    @property
    def dropped(self) -> Mapping[Value, Value]:
        """Sums that lost a term: what is left of each."""


def with_rank_of_pool(
    facts: GraphFacts, call: ops.Operation, form: ChannelForm, guards: list[tuple[Value, int]]
) -> ChannelForm:
    """Return the form with a rank, where a pool is passed and nothing tells the rank: then the pool must check it.

    A pool over k dimensions takes ``(N, C, k dimensions)``, and also ``(C, k dimensions)``, where it would run over
    what the affine takes for channels.
    """
    dims = getattr(call, "spatial_dims", None)
    if dims is None or form.rank is not None or facts.rank(call.node) is not None:
        return form
    guards.append((call.node, dims + 2))
    return replace(form, rank=dims + 2)


def spread_stops(call: ops.Operation, form: ChannelForm) -> Refusal | None:
    """Refuse channels that run along several dimensions, as inside of a channel shuffle, where an op knows of one."""
    if not form.spread or call.takes_spread:
        return None
    return Refusal("channel-dimension", "{op} has its channels in another dimension", op=call)


def weight_of(facts: GraphFacts, call: ops.Absorber) -> torch.Tensor | Refusal | None:
    """Return the weight of a call (None where it has none), computed if it must be; or why it is not a constant."""
    for source, what in ((call.bias, "bias"), (call.weight, "weight")):
        computed = source is not None and not isinstance(source, str)
        if computed and not facts.is_constant(source):
            text = "the {what} of {op} is computed from the model's input"
            return Refusal("computed-weight", text, what=what, op=call)
        if facts.is_written(source):
            return Refusal("mutated", "the {what} of {op} is written to when the model runs", what=what, op=call)
    return facts.constant(call.weight)


def shares_weights(facts: GraphFacts, call: ops.Absorber) -> bool:
    """Whether a weight or bias of the call is used by another call too."""
    return any(reader is not call.node for source in (call.weight, call.bias) for reader in facts.sharing(source))


def may_not_absorb(state: State, call: ops.Absorber) -> Refusal | None:
    """Why the weights of a call may not change, or None."""
    if state.share == "keep" and shares_weights(state.facts, call):
        return Refusal("shared", "the weights of {op} are used elsewhere too", op=call)
    return None
