"""Pull an affine backward through the graph until weights absorb all of it, or say what is in the way.

Values are visited in reverse order, so that when one is reached, every reader that lies behind it has said what it
asks: a value is free to change only if all its readers ask for the same. Nothing is settled here; the caller does that
with the :class:`Way` found.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from bnfold import ops
from bnfold.affine import ChannelAffine
from bnfold.fold.settled import RANK_UNKNOWN, State, may_not_absorb, spread_stops, weight_of, with_rank_of_pool
from bnfold.fold.terms import read_once, resolved, terms
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.refusal import Count, Described, OutputOf, Readers, Refusal

__all__ = ["Way", "pull"]


@dataclass(eq=False)
class Way:
    """How all of an affine is absorbed.

    Attributes:
        absorbed: calls with weights, and the affine that each takes after it.
        beside: calls with weights, and the affine of their input that each adds to its output after that.
        composed: BatchNorm calls that became explicit affines, and the affine that each takes after it.
        through: the calls passed, nearest first.
        guards: calls whose input's number of dimensions must be checked when run.
        hops: pairs (reader, what it reads) along which it moved.
    """

    absorbed: list[tuple[Value, ChannelAffine]] = field(default_factory=list)
    beside: list[tuple[Value, ChannelAffine]] = field(default_factory=list)
    composed: list[tuple[Value, ChannelAffine]] = field(default_factory=list)
    through: list[Value] = field(default_factory=list)
    guards: list[tuple[Value, int]] = field(default_factory=list)
    hops: list[tuple[Value, Value]] = field(default_factory=list)

    @property
    def absorbers(self) -> list[Value]:
        """The calls with weights."""
        return [node for node, _ in self.absorbed]

    @property
    def compositions(self) -> list[Value]:
        """The explicit affines."""
        return [node for node, _ in self.composed]


def pull(state: State, start: Value, form: ChannelForm) -> Way | Refusal:
    """Pull the affine of the BatchNorm call ``start`` backward."""
    facts = state.facts
    call = facts.call(start)
    assert call is not None
    asked: dict[Value, dict[Value, ChannelForm]] = {}
    queue: list[tuple[int, Value]] = []

    def ask(value: Value, reader: Value, wanted: ChannelForm) -> Refusal | None:
        if value not in asked:
            asked[value] = {}
            heapq.heappush(queue, (-facts.index[value], value))
        if reader in asked[value]:
            return Refusal("same-term-twice", "`{value}` reads {what} twice", value=reader, what=OutputOf(value))
        asked[value][reader] = wanted
        way.hops.append((reader, value))
        return None

    way = Way()
    ask(call.inputs[0], start, form)
    while queue:
        _, value = heapq.heappop(queue)
        wanted = _agreed(facts, value, asked[value])
        step = wanted if isinstance(wanted, Refusal) else _visit(state, value, wanted, way)
        if isinstance(step, Refusal):
            if not _compensated(state, value, asked[value], way):
                return step
            way.hops = [hop for hop in way.hops if hop[1] is not value]
            continue
        for source, below in step:
            conflict = ask(source, value, below)
            if conflict is not None:
                return conflict
    return way


def _compensated(state: State, value: Value, asked: Mapping[Value, ChannelForm], way: Way) -> bool:
    """Leave a term of a sum as it is, and let a convolution of the same value beside it make up for that.

    a x + b + a conv(x) = x + conv'(x)    with (a - 1) x + b added to a conv(x) at its centre tap

    The sum must be all that reads the convolution: what is added to it would be counted once for each other reader.
    """
    facts = state.facts
    if len(asked) != 1:
        return False
    ((reader, form),) = asked.items()
    total = facts.call(reader)
    if not isinstance(total, ops.Add) or form.dim != 1 or form.spread or form.cares is not None:
        return False
    is_left = total.left is value
    rest = total.right if is_left else total.left
    mine = 1 if is_left else total.sign
    taken = [node for node, _ in way.absorbed]
    for term in terms(state, total, rest):
        convolution = facts.call(resolved(state, term.value))
        if not isinstance(convolution, ops.Convolution) or convolution.node not in taken:
            continue
        weight = facts.constant(convolution.weight)
        fits = weight is not None and weight.shape[0] == weight.shape[1] * convolution.groups == form.affine.channels
        if (
            not fits
            or not read_once(state, term.value)
            or resolved(state, convolution.input) is not resolved(state, value)
        ):
            continue
        assert weight is not None
        first, last = sorted((facts.index[reader], facts.index[convolution.node]))
        if convolution.centre_tap(tuple(weight.shape[2:])) is None or facts.written_between(value, first, last):
            continue
        sign = mine * term.sign
        missing = ChannelAffine(sign * (form.affine.scale - 1), sign * form.affine.shift)
        way.beside.append((convolution.node, missing))
        return True
    return False


def _agreed(facts: GraphFacts, value: Value, asked: Mapping[Value, ChannelForm]) -> ChannelForm | Refusal:
    """The one form that all readers of a value share."""
    call = facts.call(value)
    readers = facts.readers(value)
    if call is not None and call.result is not None:  # who takes other results is asked by a condition
        readers = tuple(r for r in readers if getattr(facts.call(r), "index", call.result) == call.result)
    forms = list(asked.values())
    first = forms[0]
    for other in forms[1:]:
        joined = first.joined(other)
        if joined is None:
            text = "the readers of {what} need different affines"
            return Refusal("readers-disagree", text, what=OutputOf(value))
        first = joined
    for reader in readers:
        if reader in asked or _reads_other_channels(facts, reader, first):
            continue
        others = [r for r in readers if r not in asked]
        text = "{what} is also read by {also}"
        return Refusal("several-readers", text, what=OutputOf(value), also=Readers(tuple(others)))
    return first


def _reads_other_channels(facts: GraphFacts, reader: Value, form: ChannelForm) -> bool:
    """Whether a reader that asks for nothing takes only channels that the form leaves as they are."""
    if form.cares is None or form.spread or facts.hooked(reader):
        return False
    call = facts.call(reader)
    if call is not None and call.passes_on:
        behind = facts.readers(reader)
        return bool(behind) and all(_reads_other_channels(facts, further, form) for further in behind)
    channels = facts.channels(reader, form.dim)
    if channels is None or call is None or call.rule is None or not call.takes_part:
        return False
    moved = call.rule.before(call, ChannelForm(ChannelAffine.identity(channels), form.dim, form.rank), facts)
    if isinstance(moved, Refusal):
        return False
    ((_, theirs),) = moved
    return theirs.cares is not None and theirs.dim == form.dim and not bool((theirs.cares & form.cares).any())


def _visit(state: State, value: Value, form: ChannelForm, way: Way) -> tuple[tuple[Value, ChannelForm], ...] | Refusal:
    """Absorb the form at ``value``, or pass it on to its inputs."""
    facts = state.facts
    if value in state.settled:
        return ((state.settled[value].input, form),)
    call = facts.call(value)
    blocked = None if call is None else spread_stops(call, form)
    if value in state.explicit:
        statistics = facts.constant(call.running_mean) if isinstance(call, ops.BatchNorm) else None
        if (
            blocked is not None
            or form.dim != getattr(call, "dim", 1)
            or (statistics is not None and statistics.numel() != form.affine.channels)
        ):
            return Refusal("channel-dimension", "`{value}` has its channels in another dimension", value=value)
        if form.unsure and form.rank is not None and facts.graph_rank(value) is None:
            way.guards.append((value, form.rank))
        way.composed.append((value, form.affine))
        return ()
    if call is None:
        return _nothing_known(facts, value)
    if facts.hooked(value):
        return Refusal("hooks", "{op} carries hooks", op=call)
    if call.rule is None and not isinstance(call, ops.Absorber):
        return _no_rule(call)
    if blocked is not None:
        return blocked
    if isinstance(call, ops.Absorber):
        refusal = _absorb(state, call, form, way)
        return () if refusal is None else refusal
    assert call.rule is not None
    form = with_rank_of_pool(facts, call, form, way.guards)
    for condition in call.rule.conditions:
        refused = condition(call, form, facts)
        if refused is not None:
            return refused
    way.through.append(value)
    return call.rule.before(call, form, facts)


def _absorb(state: State, call: ops.Absorber, form: ChannelForm, way: Way) -> Refusal | None:
    """Let a call with weights take the affine, if it may."""
    facts = state.facts
    tensor = weight_of(facts, call)
    if isinstance(tensor, Refusal):
        return tensor
    refusal = _channels_agree(facts, call, form, tensor, way)
    if refusal is None:
        refusal = facts.doubts(call, form.affine.channels) if call.taught else None
    refusal = refusal or _stays_finite(facts, call, form, tensor) or may_not_absorb(state, call)
    if refusal is None:
        way.absorbed.append((call.node, form.affine))
    return refusal


def _channels_agree(
    facts: GraphFacts, call: ops.Absorber, form: ChannelForm, weight: torch.Tensor | None, way: Way
) -> Refusal | None:
    """Check that the op's output channels are those of the affine: the right dimension, the right number."""
    rank = form.rank if form.rank is not None else facts.rank(call.node)
    unsure = facts.graph_rank(call.node) is None and (form.unsure or form.rank is None)
    needed, at = call.needed_rank, 1
    if call.channels_at != 1:  # in the last dimension
        if rank is None:
            return Refusal("shapes-unknown", RANK_UNKNOWN, op=call)
        needed, at = rank, rank - 1
    if form.dim != at or (needed is not None and rank is not None and rank != needed):
        return Refusal("channel-dimension", "{op} has its channels in another dimension", op=call)
    if needed is not None and (rank is None or unsure):
        way.guards.append((call.node, needed - call.input_rank_less))
    if weight is not None and not weight.is_floating_point():
        return Refusal("weight-type", "the weight of {op} is {type}", op=call, type=weight.dtype)
    given, wanted = call.output_channels(weight), form.affine.channels
    if given != wanted:
        text = "{op} gives {given} channels, and the affine is of {wanted}"
        return Refusal("channel-dimension", text, op=call, given=given, wanted=wanted)
    return None


_HALF = {torch.float16: 65504.0, torch.bfloat16: 3.3e38, torch.float32: 3.4e38, torch.float64: 1.7e308}


def _stays_finite(
    facts: GraphFacts, call: ops.Absorber, form: ChannelForm, weight: torch.Tensor | None
) -> Refusal | None:
    """Refuse where a weight would overflow its dtype; computed in full only where it could."""
    if weight is None:
        return None
    largest = float(form.affine.scale.abs().max()) if form.affine.channels else 0.0
    shift = float(form.affine.shift.abs().max()) if form.affine.channels else 0.0
    limit = _HALF.get(weight.dtype, 3.4e38)
    if max(largest, shift) < limit / 2**96 and weight.dtype not in (torch.float16,):
        return None
    old_bias = facts.constant(call.bias)
    bias = None if old_bias is None else old_bias.detach().double()
    new_weight, new_bias = call.absorb_after((weight.detach().double(), bias), form.affine)
    for tensor in (new_weight, new_bias):
        if tensor is not None and not bool(torch.isfinite(tensor.to(weight.dtype)).all()):
            count = int((~torch.isfinite(tensor.to(weight.dtype))).sum())
            text = "{count} not finite in {type} once {op} takes it"
            many = Count(count, tensor.numel(), "weight")
            return Refusal("weight-not-finite", text, count=many, type=weight.dtype, op=call)
    return None


def _no_rule(call: ops.Operation) -> Refusal:
    if call.refusal is not None:
        return call.refusal
    if isinstance(call, ops.ActiveDropout):
        return Refusal("active-dropout", "{op} is active in eval mode too", op=call)
    if isinstance(call, ops.BatchNorm):
        return Refusal("kept-batchnorm", "the {op} before it stays", op=call)
    return Refusal("unknown-op", "no affine moves through {op}", op=call)


def _nothing_known(facts: GraphFacts, value: Value) -> Refusal:
    if facts.is_input(value):
        text = "it reads {what}, and no weights stand before it"
        return Refusal("no-producer", text, what=Described(value))
    hooks = ", which carries hooks" if facts.hooked(value) else ""
    text = "no affine moves through {what}{hooks}"
    return Refusal("hooks" if hooks else "unknown-op", text, what=Described(value), hooks=hooks)
