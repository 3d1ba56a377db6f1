"""Absorb an affine sideways: into a convolution that reads the same value and is added to it.

    scale * x + shift + conv(x) = conv'(x)

where ``conv'`` has ``scale`` added at the tap that sees the output's own position, and ``shift`` in its bias. The tap
never reads padding, so any padding mode will do. This is how the identity BatchNorm of RepVGG, MobileOne, RepViT and
FastViT folds (Ding et al. 2021, arXiv:2101.03697, section 3.3), found in the graph of any model.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnfold import ops
from bnfold.affine import ChannelAffine
from bnfold.fold.settled import State, may_not_absorb, weight_of
from bnfold.fold.terms import Term, passed_on, read_once, resolved, terms
from bnfold.ops.interface import Value
from bnfold.ops.refusal import Refusal

__all__ = ["Sideways", "sideways"]


@dataclass(frozen=True, eq=False)
class Sideways:
    """How an affine is absorbed sideways.

    Attributes:
        convolution: the call that takes it.
        affine: with the sign that it has there.
        term: the value that is the term: the BatchNorm's, or what passes it on.
        sum: the sum that loses its term.
        rest: what is left of that sum.
        through: the sums passed.
        hops: pairs (reader, what it reads) along which it moved.
        rank: how many dimensions the convolution's input must have, which must be checked when run; None where the
            graph tells it. An image without a batch has its channels in dimension 0, and a BatchNorm in dimension 1.
    """

    convolution: Value
    affine: ChannelAffine
    term: Value
    sum: Value
    rest: Value
    through: tuple[Value, ...]
    hops: tuple[tuple[Value, Value], ...]
    rank: int | None


def sideways(state: State, start: Value, affine: ChannelAffine) -> Sideways | Refusal:
    """Find a convolution beside the BatchNorm call ``start`` that can take its affine."""
    facts = state.facts
    call = facts.call(start)
    assert isinstance(call, ops.BatchNorm)
    if call.dim != 1:
        return Refusal("no-convolution-beside", "its channels are not those of a convolution")
    term, seen = _term(state, start)
    readers = facts.readers(seen)
    total = facts.call(readers[0]) if len(readers) == 1 else None
    if not isinstance(total, ops.Add) or (total.left is seen) == (total.right is seen):
        return Refusal("not-a-term", "its output is not a term of a sum")
    rest = total.right if total.left is seen else total.left
    mine = total.sign if total.right is seen else 1
    if total.left is seen and total.sign < 0:
        return Refusal("not-a-term", "{op} subtracts something from it", op=total)
    if facts.mutated(total.node) and facts.readers(rest) != (total.node,):
        return Refusal("mutated", "{op} is written to in place", op=total)
    source = resolved(state, call.input)
    refusal: Refusal | None = None
    for other in terms(state, total, rest):
        convolution = facts.call(resolved(state, other.value))
        if not isinstance(convolution, ops.Convolution) or resolved(state, convolution.input) is not source:
            continue
        why = _refusal(state, start, other, convolution, affine)
        if why is None:
            sign = mine * other.sign
            signed = affine if sign > 0 else ChannelAffine(-affine.scale, -affine.shift)
            out = ((other.top, total.node),) if other.top is not total.node else ()
            hops = ((total.node, start), *out, (other.top, convolution.node))
            through = (total.node, *other.through)
            rank = None if facts.graph_rank(convolution.node) is not None else convolution.needed_rank
            return Sideways(convolution.node, signed, term, total.node, rest, through, hops, rank)
        refusal = refusal or why
    return refusal or Refusal("no-convolution-beside", "no convolution of the same input is added to it")


def _term(state: State, start: Value) -> tuple[Value, Value]:
    """Return the value that is a term of a sum: as it will be, and as the graph still has it.

    They differ where a sum of two lost its other term: the one that is left then stands for it.
    """
    term = seen = start
    while True:
        after = passed_on(state.facts, seen)
        term, seen = (after if after is not seen else term), after
        readers = state.facts.readers(seen)
        if len(readers) != 1 or readers[0] not in state.dropped:
            return term, seen
        seen = readers[0]


def _refusal(
    state: State, start: Value, term: Term, convolution: ops.Convolution, affine: ChannelAffine
) -> Refusal | None:
    """Why this convolution cannot take the affine, or None."""
    facts = state.facts
    if not read_once(state, term.value):
        return Refusal("several-readers", "the output of `{value}` is also read elsewhere", value=convolution.node)
    if facts.hooked(convolution.node):
        return Refusal("hooks", "{op} carries hooks", op=convolution)
    if facts.rank(convolution.node) not in (None, convolution.needed_rank):
        return Refusal("channel-dimension", "{op} has its channels in another dimension", op=convolution)
    weight = weight_of(facts, convolution)
    if isinstance(weight, Refusal):
        return weight
    assert weight is not None
    shared = may_not_absorb(state, convolution)
    if shared is not None:
        return shared
    if weight.shape[0] != affine.channels or weight.shape[1] * convolution.groups != affine.channels:
        return Refusal("channel-dimension", "{op} has other channels in and out", op=convolution)
    if convolution.centre_tap(tuple(weight.shape[2:])) is None:
        text = "{op} has a stride, or no tap that sees its output's own position"
        return Refusal("no-centre-tap", text, op=convolution)
    call = facts.call(start)
    assert isinstance(call, ops.BatchNorm)
    first, last = sorted((facts.index[start], facts.index[convolution.node]))
    if facts.written_between(call.input, first, last):
        return Refusal("mutated", "its input is written to between it and {op}", op=convolution)
    return None
