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
from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import absorb_after, output_channels
from bnfold.fold.claims import absorbs_as_taught
from bnfold.fold.conditions import counted, described, name_of
from bnfold.fold.demand import Demand, Refusal
from bnfold.fold.rules import pull_rule
from bnfold.fold.state import State, shares_weights, spread_stops, weight_of, with_rank_of_pool
from bnfold.fold.sums import centre_tap, resolved, terms
from bnfold.graph import calls
from bnfold.graph.facts import Facts

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
    """

    absorbed: list[tuple[Node, ChannelAffine]] = field(default_factory=list)
    beside: list[tuple[Node, ChannelAffine]] = field(default_factory=list)
    composed: list[tuple[Node, ChannelAffine]] = field(default_factory=list)
    through: list[Node] = field(default_factory=list)
    guards: list[tuple[Node, int]] = field(default_factory=list)

    @property
    def absorbers(self) -> list[Node]:
        """The calls with weights."""
        return [node for node, _ in self.absorbed]

    @property
    def compositions(self) -> list[Node]:
        """The explicit affines."""
        return [node for node, _ in self.composed]


def pull(state: State, start: Node, demand: Demand) -> Way | Refusal:
    """Pull the affine of the BatchNorm call ``start`` backward."""
    facts = state.facts
    call = facts.call(start)
    assert call is not None
    asked: dict[Node, dict[Node, Demand]] = {}
    queue: list[tuple[int, Node]] = []

    def ask(value: Node, reader: Node, wanted: Demand) -> Refusal | None:
        if value not in asked:
            asked[value] = {}
            heapq.heappush(queue, (-facts.index[value], value))
        if reader in asked[value]:
            text = f"`{name_of(reader)}` reads {_value_words(value)} twice"
            return Refusal("same-term-twice", text)
        asked[value][reader] = wanted
        return None

    way = Way()
    ask(call.inputs[0], start, demand)
    while queue:
        _, value = heapq.heappop(queue)
        wanted = _agreed(facts, value, asked[value])
        step = wanted if isinstance(wanted, Refusal) else _visit(state, value, wanted, way)
        if isinstance(step, Refusal):
            if not _compensated(state, value, asked[value], way):
                return step
            continue
        for source, below in step:
            conflict = ask(source, value, below)
            if conflict is not None:
                return conflict
    return way


def _compensated(state: State, value: Node, asked: Mapping[Node, Demand], way: Way) -> bool:
    """Leave a term of a sum as it is, and let a convolution of the same value beside it make up for that.

    a x + b + a conv(x) = x + conv'(x)    with (a - 1) x + b added to a conv(x) at its centre tap
    """
    facts = state.facts
    if len(asked) != 1:
        return False
    ((reader, demand),) = asked.items()
    total = facts.call(reader)
    if not isinstance(total, calls.Add) or demand.dim != 1 or demand.spread or demand.cares is not None:
        return False
    is_left = total.left is value
    rest = total.right if is_left else total.left
    mine = 1 if is_left else total.sign
    taken = [node for node, _ in way.absorbed]
    for term in terms(state, total, rest):
        convolution = facts.call(resolved(state, term.value))
        if not isinstance(convolution, calls.Convolution) or convolution.node not in taken:
            continue
        weight = facts.constant(convolution.weight)
        fits = weight is not None and weight.shape[0] == weight.shape[1] * convolution.groups == demand.affine.channels
        if not fits or resolved(state, convolution.input) is not resolved(state, value):
            continue
        assert weight is not None
        first, last = sorted((facts.index[reader], facts.index[convolution.node]))
        if centre_tap(convolution, tuple(weight.shape[2:])) is None or facts.memory.written_between(value, first, last):
            continue
        sign = mine * term.sign
        missing = ChannelAffine(sign * (demand.affine.scale - 1), sign * demand.affine.shift)
        way.beside.append((convolution.node, missing))
        return True
    return False


def _agreed(facts: Facts, value: Node, asked: Mapping[Node, Demand]) -> Demand | Refusal:
    """The one demand that all readers of a value share."""
    call = facts.call(value)
    returns_indices = isinstance(call, calls.MaxPool) and call.returns_indices
    readers = facts.readers(value)
    if returns_indices:  # who takes the indices is asked by a condition of the rule
        readers = tuple(r for r in readers if not (isinstance(item := facts.call(r), calls.Item) and item.index == 1))
    demands = list(asked.values())
    first = demands[0]
    for other in demands[1:]:
        joined = first.joined(other)
        if joined is None:
            return Refusal("readers-disagree", f"the readers of {_value_words(value)} need different affines")
        first = joined
    for reader in readers:
        if reader in asked or _reads_other_channels(facts, reader, first):
            continue
        others = [r for r in readers if r not in asked]
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        what = "the model's output" if others[0].op == "output" else f"`{name_of(others[0])}`"
        return Refusal("several-readers", f"{_value_words(value)} is also read by {what}{more}")
    return first


def _reads_other_channels(facts: Facts, reader: Node, demand: Demand) -> bool:
    """Whether a reader that asks for nothing takes only channels that the demand leaves as they are."""
    if demand.cares is None or demand.spread or facts.hooked(reader):
        return False
    if isinstance(facts.call(reader), calls.Passing):
        behind = facts.readers(reader)
        return bool(behind) and all(_reads_other_channels(facts, further, demand) for further in behind)
    from bnfold.fold.moves import item_of_pool, selected, slice_of

    call = facts.call(reader)
    channels = facts.channels(reader, demand.dim)
    if channels is None or not isinstance(call, (calls.Slice, calls.Item, calls.Select)):
        return False
    nothing = Demand(ChannelAffine.identity(channels), demand.dim, demand.rank)
    if isinstance(call, calls.Select):
        moved = selected(call, nothing, facts)
    else:
        moved = slice_of(call, nothing, facts) if isinstance(call, calls.Slice) else item_of_pool(call, nothing, facts)
    if isinstance(moved, Refusal):
        return False
    ((_, theirs),) = moved
    return theirs.cares is not None and theirs.dim == demand.dim and not bool((theirs.cares & demand.cares).any())


def _visit(state: State, value: Node, demand: Demand, way: Way) -> tuple[tuple[Node, Demand], ...] | Refusal:
    """Absorb the demand at ``value``, or pass it on to its inputs."""
    facts = state.facts
    if value in state.settled:
        return ((state.settled[value].input, demand),)
    blocked = spread_stops(facts.call(value), demand)
    if blocked is not None:
        return blocked
    if value in state.explicit:
        before = facts.call(value)
        statistics = facts.constant(before.running_mean) if isinstance(before, calls.BatchNorm) else None
        if demand.dim != 1 or (statistics is not None and statistics.numel() != demand.affine.channels):
            return Refusal("channel-dimension", f"`{name_of(value)}` has its channels in another dimension")
        if demand.unsure and demand.rank is not None and facts.graph_rank(value) is None:
            way.guards.append((value, demand.rank))
        way.composed.append((value, demand.affine))
        return ()
    call = facts.call(value)
    if call is None:
        return _nothing_known(facts, value)
    if facts.hooked(value):
        return Refusal("hooks", f"{described(call)} carries hooks")
    if isinstance(call, calls.Absorber):
        refusal = _absorb(state, call, demand, way)
        return () if refusal is None else refusal
    rule = pull_rule(call)
    if rule is None:
        return _no_rule(call)
    demand = with_rank_of_pool(facts, call, demand, way.guards)
    for condition in rule.conditions:
        refused = condition(call, demand, facts)
        if refused is not None:
            return refused
    way.through.append(value)
    return rule.move(call, demand, facts)


def _absorb(state: State, call: calls.Absorber, demand: Demand, way: Way) -> Refusal | None:
    """Let a call with weights take the affine, if it may."""
    facts = state.facts
    tensor = weight_of(facts, call)
    if isinstance(tensor, Refusal):
        return tensor
    refusal = _channels_agree(facts, call, demand, tensor, way)
    if refusal is None and isinstance(call, calls.TaughtAbsorber):
        refusal = absorbs_as_taught(call, demand, facts)
    if refusal is None:
        refusal = _stays_finite(facts, call, demand, tensor)
    if refusal is None and state.share == "keep" and shares_weights(facts, call):
        refusal = Refusal("shared", f"the weights of {described(call)} are used elsewhere too")
    if refusal is None:
        way.absorbed.append((call.node, demand.affine))
    return refusal


def _channels_agree(
    facts: Facts, call: calls.Absorber, demand: Demand, weight: torch.Tensor | None, way: Way
) -> Refusal | None:
    """Check that the op's output channels are those of the affine: the right dimension, the right number."""
    rank = demand.rank if demand.rank is not None else facts.rank(call.node)
    unsure = facts.graph_rank(call.node) is None and (demand.unsure or demand.rank is None)
    other = Refusal("channel-dimension", f"{described(call)} has its channels in another dimension")
    if isinstance(call, (calls.Convolution, calls.TransposedConvolution)):
        needed: int | None = call.spatial_dims + 2
    elif isinstance(call, calls.AffineNormalization) and call.channel_dim == 1:
        needed = call.rank
    elif isinstance(call, (calls.ExplicitAffine, calls.TaughtAbsorber)):
        needed = None
    else:  # channels in the last dimension
        if rank is None:
            text = f"the number of dimensions at {described(call)} is not known without example inputs"
            return Refusal("shapes-unknown", text)
        needed = rank
        if demand.dim != rank - 1:
            return other
        demand = Demand(demand.affine, 1, rank)
    if demand.dim != 1 or (needed is not None and rank is not None and rank != needed):
        return other
    if needed is not None and (rank is None or unsure):
        way.guards.append((call.node, needed - 1 if isinstance(call, calls.Embedding) else needed))
    if weight is not None and not weight.is_floating_point():
        return Refusal("weight-type", f"the weight of {described(call)} is {weight.dtype}")
    given, wanted = output_channels(call, weight), demand.affine.channels
    if given != wanted:
        text = f"{described(call)} gives {given} channels, and the affine is of {wanted}"
        return Refusal("channel-dimension", text)
    return None


_HALF = {torch.float16: 65504.0, torch.bfloat16: 3.3e38, torch.float32: 3.4e38, torch.float64: 1.7e308}


def _stays_finite(facts: Facts, call: calls.Absorber, demand: Demand, weight: torch.Tensor | None) -> Refusal | None:
    """Refuse where a weight would overflow its dtype; computed in full only where it could."""
    if weight is None:
        return None
    largest = float(demand.affine.scale.abs().max()) if demand.affine.channels else 0.0
    shift = float(demand.affine.shift.abs().max()) if demand.affine.channels else 0.0
    limit = _HALF.get(weight.dtype, 3.4e38)
    if max(largest, shift) < limit / 2**96 and weight.dtype not in (torch.float16,):
        return None
    old_bias = facts.constant(call.bias)
    bias = None if old_bias is None else old_bias.detach().double()
    new_weight, new_bias = absorb_after(call, (weight.detach().double(), bias), demand.affine)
    for tensor in (new_weight, new_bias):
        if tensor is not None and not bool(torch.isfinite(tensor.to(weight.dtype)).all()):
            count = int((~torch.isfinite(tensor.to(weight.dtype))).sum())
            what = counted(count, tensor.numel(), "weight")
            return Refusal("weight-not-finite", f"{what} not finite in {weight.dtype} once {described(call)} takes it")
    return None


def _no_rule(call: calls.Call) -> Refusal:
    if isinstance(call, calls.ActiveDropout):
        return Refusal("active-dropout", f"{described(call)} is active in eval mode too")
    if isinstance(call, calls.BatchNorm):
        return Refusal("kept-batchnorm", f"the BatchNorm `{name_of(call.node)}` before it stays")
    return Refusal("unknown-op", f"no affine moves through {described(call)}")


def _nothing_known(facts: Facts, value: Node) -> Refusal:
    if value.op == "placeholder":
        return Refusal("no-producer", f"it reads the model's input `{value.name}`, and no weights stand before it")
    if value.op == "call_module":
        kind = type(facts.capture.module(str(value.target))).__name__
        hooks = ", which carries hooks" if facts.hooked(value) else ""
        return Refusal("hooks" if hooks else "unknown-op", f"no affine moves through {kind} `{value.target}`{hooks}")
    return Refusal("unknown-op", f"no affine moves through `{value.name}`")


def _value_words(value: Node) -> str:
    if value.op == "placeholder":
        return f"the model's input `{value.name}`"
    return f"the output of `{name_of(value)}`"
