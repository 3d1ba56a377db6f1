"""Push an affine forward until the weights of all readers absorb it, or say what is in the way.

The BatchNorm is taken out, and its output *holds* the affine: what the network should see there is the affine of what
is there. Readers are visited in the order in which they run, so that all inputs of a reader are known when it is
reached. Nothing is settled here; the caller does that with the :class:`Push` found.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from bnfold import ops
from bnfold.affine import ChannelAffine
from bnfold.fold.settled import RANK_UNKNOWN, State, may_not_absorb, spread_stops, weight_of, with_rank_of_pool
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import Value
from bnfold.ops.refusal import Count, Refusal

__all__ = ["Push", "push"]


@dataclass(eq=False)
class Push:
    """How all readers absorb an affine.

    Attributes:
        absorbed: calls with weights, and the affine that each takes before it.
        through: the calls passed, in order.
        guards: calls whose input's number of dimensions must be checked when run.
        hops: pairs (reader, what it reads) along which it moved.
    """

    absorbed: list[tuple[Value, ChannelAffine]] = field(default_factory=list)
    through: list[Value] = field(default_factory=list)
    guards: list[tuple[Value, int]] = field(default_factory=list)
    hops: list[tuple[Value, Value]] = field(default_factory=list)


def push(state: State, start: Value, form: ChannelForm) -> Push | Refusal:
    """Push the affine of the BatchNorm call ``start`` forward."""
    facts = state.facts
    call = facts.call(start)
    assert isinstance(call, ops.BatchNorm)
    held: dict[Value, ChannelForm] = {}
    queue: list[tuple[int, Value]] = []
    queued: set[Value] = set()
    way = Push()

    def hold(value: Value, what: ChannelForm) -> None:
        held[value] = what
        for reader in facts.readers(value):
            way.hops.append((reader, value))
            if reader not in queued:
                queued.add(reader)
                heapq.heappush(queue, (facts.index[reader], reader))

    hold(start, form)
    if not queue:
        return Refusal("no-reader", "nothing reads the output of `{value}`", value=start)
    while queue:
        _, reader = heapq.heappop(queue)
        step = _visit(state, reader, held, way)
        if isinstance(step, Refusal):
            return step
        if step is not None:
            hold(reader, step)
    last = max(facts.index[reader] for reader in queued)
    if facts.mutated(start) or facts.written_between(call.input, facts.index[start], last):
        return Refusal("mutated", "its output or its input is written to in place")
    return way


def _visit(state: State, reader: Value, held: dict[Value, ChannelForm], way: Push) -> ChannelForm | Refusal | None:
    """Let a reader absorb what its input holds (None), or pass it on (what its output then holds)."""
    facts = state.facts
    if reader in state.settled:
        return held[state.settled[reader].input]
    call = facts.call(reader)
    if facts.is_output(reader):
        return Refusal("no-reader", "it is an output of the model, and nothing after it has weights")
    if call is None or facts.hooked(reader):
        text = "`{value}`{hooks} reads its output"
        hooks = ", which carries hooks," if facts.hooked(reader) else ""
        return Refusal("hooks" if hooks else "unknown-op", text, value=reader, hooks=hooks)
    if isinstance(call, ops.Absorber):
        return _absorb(state, call, held, way)
    if call.rule is None:
        return Refusal("unknown-op", "{op} reads its output", op=call)
    sources = [call.passes_from(facts)] if len(call.inputs) == 1 else call.inputs
    for value in sources:
        form = held.get(value)
        if form is None:
            continue
        blocked = spread_stops(call, form)
        if blocked is not None:
            return blocked
        form = held[value] = with_rank_of_pool(facts, call, form, way.guards)
        for condition in call.rule.conditions:
            refused = condition(call, form, facts)
            if refused is not None:
                return refused.having(side="after")
    if not any(value in held for value in sources):
        return Refusal("unknown-op", "{op} reads its output", op=call)
    way.through.append(reader)
    return call.rule.after(call, held, facts)


def _absorb(state: State, call: ops.Absorber, held: dict[Value, ChannelForm], way: Push) -> Refusal | None:
    """Let a call with weights take what its input holds, if it may."""
    facts = state.facts
    form = held.get(call.input)
    if form is None or len([value for value in facts.inputs(call.node) if value in held]) != 1:
        return Refusal("unknown-op", "{op} takes its output as a weight", op=call)
    if "before" not in call.takes:
        return Refusal("unknown-op", "{op} reads its output", op=call)
    blocked = spread_stops(call, form)
    if blocked is not None:
        return blocked
    weight = weight_of(facts, call)
    if isinstance(weight, Refusal):
        return weight
    assert weight is not None
    rank = form.rank if form.rank is not None else facts.rank(call.input)
    needed = call.needed_rank
    other = Refusal("channel-dimension", "{op} has its channels in another dimension", op=call)
    if call.channels_at == 1:
        if form.dim != 1 or (needed is not None and rank is not None and rank != needed):
            return other
    else:
        if rank is None:
            return Refusal("shapes-unknown", RANK_UNKNOWN, op=call)
        needed = rank
        if form.dim != rank - 1:
            return other
    if call.input_channels(weight) != form.affine.channels:
        return other
    shifted = int((form.affine.shift != 0).sum())
    refusal = call.shift_stops(tuple(weight.shape[2:])) if shifted else None
    if refusal is not None:
        return refusal.having(count=Count(shifted, form.affine.channels, "shift"))
    refusal = may_not_absorb(state, call)
    if refusal is not None:
        return refusal
    if needed is not None and facts.graph_rank(call.input) is None and (form.unsure or form.rank is None):
        way.guards.append((call.node, needed))
    way.absorbed.append((call.node, form.affine))
    return None
