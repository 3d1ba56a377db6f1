"""Absorb an affine sideways: into a convolution that reads the same value and is added to it.

    scale * x + shift + conv(x) = conv'(x)

where ``conv'`` has ``scale`` added at the tap that sees the output's own position, and ``shift`` in its bias. The tap
never reads padding, so any padding mode will do. This is how the identity BatchNorm of RepVGG, MobileOne, RepViT and
FastViT folds (Ding et al. 2021, arXiv:2101.03697, section 3.3), found in the graph of any model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch.fx import Node

from bnfold.affine import ChannelAffine
from bnfold.fold.conditions import described, name_of
from bnfold.fold.demand import Refusal
from bnfold.fold.pull import State, shares_weights, weight_of
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = ["SideState", "Sideways", "sideways"]


class SideState(State, Protocol):
    """What the planner has settled so far, sums included."""

    @property
    def dropped(self) -> Mapping[Node, Node]:
        """Sums that lost a term: what is left of each."""


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


@dataclass(frozen=True)
class _Term:
    """One term of a sum: the value, its sign in it, and the sums between."""

    value: Node
    sign: int
    through: tuple[Node, ...]


def sideways(state: SideState, start: Node, affine: ChannelAffine) -> Sideways | Refusal:
    """Find a convolution beside the BatchNorm call ``start`` that can take its affine."""
    facts = state.facts
    call = facts.call(start)
    assert isinstance(call, calls.BatchNorm)
    term = _passed_on(facts, start)
    readers = facts.readers(term)
    total = facts.call(readers[0]) if len(readers) == 1 else None
    if not isinstance(total, calls.Add) or (total.left is term) == (total.right is term):
        return Refusal("not-a-term", "its output is not a term of a sum")
    rest = total.right if total.left is term else total.left
    mine = total.sign if total.right is term else 1
    if total.left is term and total.sign < 0:
        return Refusal("not-a-term", f"{described(total)} subtracts something from it")
    if facts.mutated(total.node) and facts.readers(rest) != (total.node,):
        return Refusal("mutated", f"{described(total)} is written to in place")
    source = _resolved(state, call.input)
    refusal: Refusal | None = None
    for other in _terms(state, total, rest):
        convolution = facts.call(_resolved(state, other.value))
        if not isinstance(convolution, calls.Convolution) or _resolved(state, convolution.input) is not source:
            continue
        why = _refusal(state, start, other, convolution, affine)
        if why is None:
            sign = mine * other.sign
            signed = affine if sign > 0 else ChannelAffine(-affine.scale, -affine.shift)
            return Sideways(convolution.node, signed, term, total.node, rest, (total.node, *other.through))
        refusal = refusal or why
    return refusal or Refusal("no-convolution-beside", "no convolution of the same input is added to it")


def _passed_on(facts: Facts, value: Node) -> Node:
    """Follow what only passes a value on to its one reader: dropout, identity."""
    while len(readers := facts.readers(value)) == 1 and isinstance(facts.call(readers[0]), calls.Passing):
        if facts.hooked(readers[0]):
            break
        value = readers[0]
    return value


def _resolved(state: SideState, value: Node) -> Node:
    """Follow BatchNorms that are now the identity, sums that lost a term, and what passes values on."""
    while True:
        if value in state.settled:
            value = state.settled[value].input
        elif value in state.dropped:
            value = state.dropped[value]
        elif isinstance(call := state.facts.call(value), calls.Passing):
            value = call.input
        else:
            return value


def _terms(state: SideState, total: calls.Add, rest: Node) -> Iterator[_Term]:
    """Give the other terms of the whole sum that ``total`` is part of, each with its sign relative to ``total``."""
    facts = state.facts
    stack = [_Term(rest, 1 if total.left is rest else total.sign, ())]
    inner, sign = total, 1
    through: tuple[Node, ...] = ()
    while len(readers := facts.readers(inner.node)) == 1:  # outwards: sums of this sum
        outer = facts.call(readers[0])
        if not isinstance(outer, calls.Add) or outer.left is outer.right or outer.node in state.dropped:
            break
        through = (*through, outer.node)
        is_left = outer.left is inner.node
        sign *= 1 if is_left else outer.sign
        # relative to `total`: the outer sum counts it `sign` times, and this term once or `outer.sign` times
        stack.append(_Term(outer.right if is_left else outer.left, sign * (outer.sign if is_left else 1), through))
        inner = outer
    while stack:
        term = stack.pop(0)
        value = _resolved(state, term.value)
        call = facts.call(value)
        if isinstance(call, calls.Add) and call.left is not call.right and _read_once(state, term.value):
            passed = (*term.through, call.node)
            stack.append(_Term(call.left, term.sign, passed))
            stack.append(_Term(call.right, term.sign * call.sign, passed))
        else:
            yield term


def _read_once(state: SideState, value: Node) -> bool:
    """Whether a value, and all that it stands for once folded, has one reader each."""
    facts = state.facts
    while True:
        if len(facts.readers(value)) != 1:
            return False
        if value in state.settled:
            value = state.settled[value].input
        elif value in state.dropped:
            value = state.dropped[value]
        elif isinstance(call := facts.call(value), calls.Passing):
            value = call.input
        else:
            return True


def _refusal(
    state: SideState, start: Node, term: _Term, convolution: calls.Convolution, affine: ChannelAffine
) -> Refusal | None:
    """Why this convolution cannot take the affine, or None."""
    facts = state.facts
    words = described(convolution)
    if not _read_once(state, term.value):
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
    if facts.written_between(call.input, first, last):
        return Refusal("mutated", f"its input is written to between it and {words}")
    return None


def centre_tap(call: calls.Convolution, kernel: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the kernel position that sees the output's own position in an input of the same size, or None.

    Output position o reads input ``o * stride - padding + k * dilation`` at tap k. It is o for ``k = padding /
    dilation``, and the size stays if ``2 * padding = dilation * (kernel - 1)``.
    """
    taps = []
    for dim, size in enumerate(kernel):
        stride, dilation = _at(call.stride, dim), _at(call.dilation, dim)
        reach = dilation * (size - 1)
        if call.padding == "valid":
            padding = 0
        elif isinstance(call.padding, str):
            padding = reach // 2
        else:
            padding = _at(call.padding, dim)
        if stride != 1 or 2 * padding != reach or padding % dilation:
            return None
        taps.append(padding // dilation)
    return tuple(taps)


def _at(size: calls.Size, dim: int) -> int:
    if isinstance(size, int):
        return size
    return size[dim] if len(size) > 1 else size[0]
