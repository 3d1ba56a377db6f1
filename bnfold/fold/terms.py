"""Sums as a whole: their terms, and the values these stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bnfold import ops
from bnfold.fold.settled import State
from bnfold.ops.interface import GraphFacts, Value

__all__ = ["Term", "passed_on", "read_once", "resolved", "terms"]


@dataclass(frozen=True)
class Term:
    """One term of a sum: the value, its sign in it, the sums between, and the outermost of them."""

    value: Value
    sign: int
    through: tuple[Value, ...]
    top: Value


def passed_on(facts: GraphFacts, value: Value) -> Value:
    """Follow what only passes a value on to its one reader: dropout, identity."""
    while len(readers := facts.readers(value)) == 1 and _passes(facts, readers[0]) is not None:
        value = readers[0]
    return value


def resolved(state: State, value: Value) -> Value:
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


def _passes(facts: GraphFacts, value: Value) -> Value | None:
    """Return what a value is, where its node only passes it on."""
    call = facts.call(value)
    return call.inputs[0] if call is not None and call.passes_on and not facts.hooked(value) else None


def terms(state: State, total: ops.Add, rest: Value) -> Iterator[Term]:
    """Give the other terms of the whole sum that ``total`` is part of, each with its sign relative to ``total``."""
    facts = state.facts
    stack = [Term(rest, 1 if total.left is rest else total.sign, (), total.node)]
    inner, sign = total, 1
    through: tuple[Value, ...] = ()
    while len(readers := facts.readers(seen := passed_on(facts, inner.node))) == 1:  # outwards: sums of this sum
        outer = facts.call(readers[0])
        if not isinstance(outer, ops.Add) or outer.left is outer.right or outer.node in state.dropped:
            break
        through = (*through, outer.node)
        is_left = outer.left is seen
        sign *= 1 if is_left else outer.sign
        # relative to `total`: the outer sum counts it `sign` times, and this term once or `outer.sign` times
        stack.append(
            Term(outer.right if is_left else outer.left, sign * (outer.sign if is_left else 1), through, outer.node)
        )
        inner = outer
    while stack:
        term = stack.pop(0)
        value = resolved(state, term.value)
        call = facts.call(value)
        if isinstance(call, ops.Add) and call.left is not call.right and read_once(state, term.value):
            passed = (*term.through, call.node)
            stack.append(Term(call.left, term.sign, passed, term.top))
            stack.append(Term(call.right, term.sign * call.sign, passed, term.top))
        else:
            yield term


def read_once(state: State, value: Value) -> bool:
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
