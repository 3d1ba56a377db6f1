"""Sums as a whole: their terms, the values these stand for, and the kernel position that sees the output's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from bnfold.fold.state import State
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = ["Term", "centre_tap", "passed_on", "read_once", "resolved", "terms"]


@dataclass(frozen=True)
class Term:
    """One term of a sum: the value, its sign in it, and the sums between."""

    value: Node
    sign: int
    through: tuple[Node, ...]


def passed_on(facts: Facts, value: Node) -> Node:
    """Follow what only passes a value on to its one reader: dropout, identity."""
    while len(readers := facts.readers(value)) == 1 and isinstance(facts.call(readers[0]), calls.Passing):
        if facts.hooked(readers[0]):
            break
        value = readers[0]
    return value


def resolved(state: State, value: Node) -> Node:
    """Follow BatchNorms that are now the identity, sums that lost a term, and what passes values on."""
    while True:
        if value in state.settled:
            value = state.settled[value].input
        elif value in state.dropped:
            value = state.dropped[value]
        elif (before := _passes(state.facts, value)) is not None:
            value = before
        else:
            return value


def _passes(facts: Facts, value: Node) -> Node | None:
    """Return what a value is, where its node only passes it on."""
    call = facts.call(value)
    return call.input if isinstance(call, calls.Passing) and not facts.hooked(value) else None


def terms(state: State, total: calls.Add, rest: Node) -> Iterator[Term]:
    """Give the other terms of the whole sum that ``total`` is part of, each with its sign relative to ``total``."""
    facts = state.facts
    stack = [Term(rest, 1 if total.left is rest else total.sign, ())]
    inner, sign = total, 1
    through: tuple[Node, ...] = ()
    while len(readers := facts.readers(seen := passed_on(facts, inner.node))) == 1:  # outwards: sums of this sum
        outer = facts.call(readers[0])
        if not isinstance(outer, calls.Add) or outer.left is outer.right or outer.node in state.dropped:
            break
        through = (*through, outer.node)
        is_left = outer.left is seen
        sign *= 1 if is_left else outer.sign
        # relative to `total`: the outer sum counts it `sign` times, and this term once or `outer.sign` times
        stack.append(Term(outer.right if is_left else outer.left, sign * (outer.sign if is_left else 1), through))
        inner = outer
    while stack:
        term = stack.pop(0)
        value = resolved(state, term.value)
        call = facts.call(value)
        if isinstance(call, calls.Add) and call.left is not call.right and read_once(state, term.value):
            passed = (*term.through, call.node)
            stack.append(Term(call.left, term.sign, passed))
            stack.append(Term(call.right, term.sign * call.sign, passed))
        else:
            yield term


def read_once(state: State, value: Node) -> bool:
    """Whether a value, and all that it stands for once folded, has one reader each."""
    facts = state.facts
    while True:
        if len(facts.readers(value)) != 1:
            return False
        if value in state.settled:
            value = state.settled[value].input
        elif value in state.dropped:
            value = state.dropped[value]
        elif (before := _passes(facts, value)) is not None:
            value = before
        else:
            return True


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
