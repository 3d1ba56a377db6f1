"""Absorb an affine sideways: into a convolution that reads the same value and is added to it.

    scale * x + shift + conv(x) = conv'(x)

where ``conv'`` has ``scale`` added at the tap that sees the output's own position, and ``shift`` in its bias. The tap
never reads padding, so any padding mode will do. This is how the identity BatchNorm of RepVGG, MobileOne, RepViT and
FastViT folds (Ding et al. 2021, arXiv:2101.03697, section 3.3), found in the graph of any model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.conditions import described, name_of
from bnfold.fold.demand import Refusal
from bnfold.fold.state import State, shares_weights, weight_of
from bnfold.fold.sums import Term, centre_tap, passed_on, read_once, resolved, terms
from bnfold.graph import calls

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
    """

    convolution: Node
    affine: ChannelAffine
    term: Node
    sum: Node
    rest: Node
    through: tuple[Node, ...]


def sideways(state: State, start: Node, affine: ChannelAffine) -> Sideways | Refusal:
    """Find a convolution beside the BatchNorm call ``start`` that can take its affine."""
    facts = state.facts
    call = facts.call(start)
    assert isinstance(call, calls.BatchNorm)
    term, seen = _term(state, start)
    readers = facts.readers(seen)
    total = facts.call(readers[0]) if len(readers) == 1 else None
    if not isinstance(total, calls.Add) or (total.left is seen) == (total.right is seen):
        return Refusal("not-a-term", "its output is not a term of a sum")
    rest = total.right if total.left is seen else total.left
    mine = total.sign if total.right is seen else 1
    if total.left is seen and total.sign < 0:
        return Refusal("not-a-term", f"{described(total)} subtracts something from it")
    if facts.memory.mutated(total.node) and facts.readers(rest) != (total.node,):
        return Refusal("mutated", f"{described(total)} is written to in place")
    source = resolved(state, call.input)
    refusal: Refusal | None = None
    for other in terms(state, total, rest):
        convolution = facts.call(resolved(state, other.value))
        if not isinstance(convolution, calls.Convolution) or resolved(state, convolution.input) is not source:
            continue
        why = _refusal(state, start, other, convolution, affine)
        if why is None:
            sign = mine * other.sign
            signed = affine if sign > 0 else ChannelAffine(-affine.scale, -affine.shift)
            return Sideways(convolution.node, signed, term, total.node, rest, (total.node, *other.through))
        refusal = refusal or why
    return refusal or Refusal("no-convolution-beside", "no convolution of the same input is added to it")


def _term(state: State, start: Node) -> tuple[Node, Node]:
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
    state: State, start: Node, term: Term, convolution: calls.Convolution, affine: ChannelAffine
) -> Refusal | None:
    """Why this convolution cannot take the affine, or None."""
    facts = state.facts
    words = described(convolution)
    if not read_once(state, term.value):
        return Refusal("several-readers", f"the output of `{name_of(convolution.node)}` is also read elsewhere")
    if facts.hooked(convolution.node):
        return Refusal("hooks", f"{words} carries hooks")
    weight = weight_of(facts, convolution)
    if isinstance(weight, Refusal):
        return weight
    assert weight is not None
    if state.share == "keep" and shares_weights(facts, convolution):
        return Refusal("shared", f"the weights of {words} are used elsewhere too")
    if weight.shape[0] != affine.channels or weight.shape[1] * convolution.groups != affine.channels:
        return Refusal("channel-dimension", f"{words} has other channels in and out")
    if centre_tap(convolution, tuple(weight.shape[2:])) is None:
        return Refusal("no-centre-tap", f"{words} has a stride, or no tap that sees its output's own position")
    call = facts.call(start)
    assert isinstance(call, calls.BatchNorm)
    first, last = sorted((facts.index[start], facts.index[convolution.node]))
    if facts.memory.written_between(call.input, first, last):
        return Refusal("mutated", f"its input is written to between it and {words}")
    return None
