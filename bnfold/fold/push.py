"""Push an affine forward until the weights of all readers absorb it, or say what is in the way.

The BatchNorm is taken out, and its output *holds* the affine: what the network should see there is the affine of what
is there. Readers are visited in the order in which they run, so that all inputs of a reader are known when it is
reached. Nothing is settled here; the caller does that with the :class:`Push` found.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import input_channels
from bnfold.fold.conditions import counted, described, name_of
from bnfold.fold.demand import Demand, Refusal
from bnfold.fold.rules import push_rule
from bnfold.fold.state import State, shares_weights, spread_stops, weight_of, with_rank_of_pool
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = ["Push", "push"]


@dataclass(eq=False)
class Push:
    """How all readers absorb an affine.

    Attributes:
        absorbed: calls with weights, and the affine that each takes before it.
        through: the calls passed, in order.
        guards: calls whose input's number of dimensions must be checked when run.
    """

    absorbed: list[tuple[Node, ChannelAffine]] = field(default_factory=list)
    through: list[Node] = field(default_factory=list)
    guards: list[tuple[Node, int]] = field(default_factory=list)


def push(state: State, start: Node, demand: Demand) -> Push | Refusal:
    """Push the affine of the BatchNorm call ``start`` forward."""
    facts = state.facts
    call = facts.call(start)
    assert isinstance(call, calls.BatchNorm)
    held: dict[Node, Demand] = {}
    queue: list[tuple[int, Node]] = []
    queued: set[Node] = set()
    way = Push()

    def hold(value: Node, what: Demand) -> None:
        held[value] = what
        for reader in facts.readers(value):
            if reader not in queued:
                queued.add(reader)
                heapq.heappush(queue, (facts.index[reader], reader))

    hold(start, demand)
    if not queue:
        return Refusal("no-reader", f"nothing reads the output of `{name_of(start)}`")
    while queue:
        _, reader = heapq.heappop(queue)
        step = _visit(state, reader, held, way)
        if isinstance(step, Refusal):
            return step
        if step is not None:
            hold(reader, step)
    last = max(facts.index[reader] for reader in queued)
    if facts.memory.mutated(start) or facts.memory.written_between(call.input, facts.index[start], last):
        return Refusal("mutated", "its output or its input is written to in place")
    return way


def _visit(state: State, reader: Node, held: dict[Node, Demand], way: Push) -> Demand | Refusal | None:
    """Let a reader absorb what its input holds (None), or pass it on (what its output then holds)."""
    facts = state.facts
    if reader in state.settled:
        return held[state.settled[reader].input]
    call = facts.call(reader)
    if reader.op == "output":
        return Refusal("no-reader", "it is an output of the model, and nothing after it has weights")
    if call is None or facts.hooked(reader):
        hooks = ", which carries hooks," if facts.hooked(reader) else ""
        return Refusal("hooks" if hooks else "unknown-op", f"`{name_of(reader)}`{hooks} reads its output")
    for value in call.inputs:
        blocked = spread_stops(call, held[value]) if value in held else None
        if blocked is not None:
            return blocked
    if isinstance(call, calls.Absorber):
        return _absorb(state, call, held, way)
    rule = push_rule(call)
    if rule is None:
        return Refusal("unknown-op", f"{described(call)} reads its output")
    for value in call.inputs:
        demand = held.get(value)
        if demand is None:
            continue
        demand = held[value] = with_rank_of_pool(facts, call, demand, way.guards)
        for condition in rule.conditions:
            refused = condition(call, demand, facts)
            if refused is not None:
                return Refusal(refused.reason, refused.detail.replace("stands before it", "stands after it"))
    way.through.append(reader)
    return rule.carry(call, held, facts)


def _absorb(state: State, call: calls.Absorber, held: dict[Node, Demand], way: Push) -> Refusal | None:
    """Let a call with weights take what its input holds, if it may."""
    facts = state.facts
    demand = held.get(call.input)
    if demand is None or len([value for value in call.node.all_input_nodes if value in held]) != 1:
        return Refusal("unknown-op", f"{described(call)} takes its output as a weight")
    if not isinstance(call, (calls.Convolution, calls.TransposedConvolution, calls.Linear, calls.ExplicitAffine)):
        return Refusal("unknown-op", f"{described(call)} reads its output")
    weight = weight_of(facts, call)
    if isinstance(weight, Refusal):
        return weight
    assert weight is not None
    rank = demand.rank if demand.rank is not None else facts.rank(call.input)
    other = Refusal("channel-dimension", f"{described(call)} has its channels in another dimension")
    needed = None
    if isinstance(call, (calls.Convolution, calls.TransposedConvolution)):
        needed = call.spatial_dims + 2
        if demand.dim != 1 or (rank is not None and rank != needed):
            return other
    elif isinstance(call, calls.Linear):
        if rank is None:
            text = f"the number of dimensions at {described(call)} is not known without example inputs"
            return Refusal("shapes-unknown", text)
        if demand.dim != rank - 1:
            return other
    elif demand.dim != 1:
        return other
    if input_channels(call, weight) != demand.affine.channels:
        return other
    refusal = _border(call, demand, weight.shape[2:], facts)
    if refusal is None and state.share == "keep" and shares_weights(facts, call):
        refusal = Refusal("shared", f"the weights of {described(call)} are used elsewhere too")
    if refusal is not None:
        return refusal
    if isinstance(call, calls.Linear):
        needed = rank
    if needed is not None and facts.graph_rank(call.input) is None and (demand.unsure or demand.rank is None):
        way.guards.append((call.node, needed))
    way.absorbed.append((call.node, demand.affine))
    return None


def _border(call: calls.Absorber, demand: Demand, kernel: tuple[int, ...], facts: Facts) -> Refusal | None:  # noqa: ARG001
    """The shift adds the same to each output only where each output sees a whole window of real values."""
    shifted = int((demand.affine.shift != 0).sum())
    if not shifted:
        return None
    text = counted(shifted, demand.affine.channels, "shift")
    if isinstance(call, calls.Convolution):
        if call.padding_mode != "zeros" or not _pads(call.padding, kernel):
            return None
        return Refusal("zero-padding", f"{text} not zero and {described(call)} pads with zeros")
    if isinstance(call, calls.TransposedConvolution):
        point = all(size == 1 for size in kernel) and _all(call.stride, 1) and _all(call.output_padding, 0)
        if point and _all(call.padding, 0):
            return None
        return Refusal("zero-padding", f"{text} not zero and windows of {described(call)} overlap unevenly")
    return None


def _pads(padding: calls.Size | str, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution reads padding."""
    if isinstance(padding, str):
        return padding == "same" and any(size != 1 for size in kernel)
    return not _all(padding, 0)


def _all(size: calls.Size, value: int) -> bool:
    return size == value if isinstance(size, int) else all(part == value for part in size)
