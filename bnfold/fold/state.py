"""What the movements see of the planner, and what they all ask about a call with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch.fx import Node

from bnfold.fold.conditions import described
from bnfold.fold.demand import Demand, Refusal
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = ["State", "shares_weights", "spread_stops", "weight_of", "with_rank_of_pool"]


class State(Protocol):
    """What the planner has settled so far."""

    @property
    def facts(self) -> Facts:
        """The graph."""

    @property
    def share(self) -> Literal["clone", "keep"]:
        """What happens to layers called at several sites."""

    @property
    def settled(self) -> Mapping[Node, calls.BatchNorm]:
        """BatchNorm calls that are now the identity."""

    @property
    def explicit(self) -> Mapping[Node, Any]:
        """BatchNorm calls that are now explicit affines."""

    @property
    def dropped(self) -> Mapping[Node, Node]:
        """Sums that lost a term: what is left of each."""


def with_rank_of_pool(facts: Facts, call: calls.Call, demand: Demand, guards: list[tuple[Node, int]]) -> Demand:
    """Return the demand with a rank, where a pool is passed and nothing tells the rank: then the pool must check it.

    A pool over k dimensions takes ``(N, C, k dimensions)``, and also ``(C, k dimensions)``, where it would run over
    what the affine takes for channels.
    """
    dims = getattr(call, "spatial_dims", None)
    if dims is None or demand.rank is not None or facts.rank(call.node) is not None:
        return demand
    guards.append((call.node, dims + 2))
    return replace(demand, rank=dims + 2)


_PASS_SPREAD = (calls.Reshape, calls.Permute, calls.Passing, calls.ByNumber, calls.PositivelyHomogeneous)


def spread_stops(call: calls.Call | None, demand: Demand) -> Refusal | None:
    """Refuse channels that run along several dimensions, as inside of a channel shuffle, where an op knows of one."""
    if not demand.spread or call is None or isinstance(call, _PASS_SPREAD):
        return None
    return Refusal("channel-dimension", f"{described(call)} has its channels in another dimension")


def weight_of(facts: Facts, call: calls.Absorber) -> torch.Tensor | Refusal | None:
    """Return the weight of a call (None where it has none), computed if it must be; or why it is not a constant."""
    for source, what in ((call.bias, "bias"), (call.weight, "weight")):
        if isinstance(source, Node) and not facts.is_constant(source):
            return Refusal("computed-weight", f"the {what} of {described(call)} is computed from the model's input")
        if source in facts.memory.written_names:
            return Refusal("mutated", f"the {what} of {described(call)} is written to when the model runs")
    return facts.constant(call.weight)


def shares_weights(facts: Facts, call: calls.Absorber) -> bool:
    """Whether a weight or bias of the call is used by another call too."""
    for source in (call.weight, call.bias):
        tensor = facts.tensor(source)
        if tensor is not None and any(reader is not call.node for reader in facts.parameter_readers[id(tensor)]):
            return True
    return False
