"""A module beside itself: in its own precision and in float64; a large one without a second set of its weights.

Both are copies, unless the model is large. Then the twin in float64 casts each weight when a call needs it. It
refuses to write into one, and so finds out whether the module's code does that; if it does not, the twin in the
module's own precision may share the weights. It refuses that too, since code may write in one precision alone, or in
some runs. What was refused is run on copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from bnfold.capture.nests import Leaf, flatten
from bnfold.on_demand import OnDemand, RefusingAddresses, RefusingWrites, worthwhile, writes_refused
from bnfold.verify.reference import (
    copied,
    copied_in_float64,
    everything_in_float64,
    fresh,
    fresh_in_float64,
    lent,
    lent_in_float64,
)

__all__ = ["Twins", "answer_in_float64", "running_as_it_is", "running_in_float64"]


class Twins:
    """A module in its own precision and in float64.

    Args:
        module: the caller's; not changed.

    Attributes:
        in_float64: the twin in float64; to be run under :func:`everything_in_float64`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._plain: nn.Module | None = None
        self._writes_nothing = self._shares = False
        self._copied = not worthwhile(module)
        self.in_float64 = copied_in_float64(module) if self._copied else lent_in_float64(module)
        held = (*self.in_float64.parameters(), *self.in_float64.buffers())
        self._lends = any(isinstance(tensor, OnDemand) for tensor in held)

    def exact(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in float64 throughout; the inputs are not changed."""
        refused = writes_refused()
        try:
            with RefusingAddresses() if self._lends and not self._copied else nullcontext():
                answer = answer_in_float64(self.in_float64, inputs)
            problem = None
        except Exception as error:
            answer, problem = [], error
        if writes_refused() == refused and problem is None:
            self._writes_nothing = not self._copied
            return answer
        if self._copied or (self._writes_nothing and writes_refused() == refused):
            assert problem is not None
            raise problem  # the code's own: it ran before with weights made on demand
        self.in_float64, self._plain = copied_in_float64(self._module), None
        self._copied, self._writes_nothing = True, False
        return answer_in_float64(self.in_float64, inputs)

    @property
    def plain(self) -> nn.Module:
        """The twin in the module's own precision; to be run under :class:`RefusingWrites`."""
        if self._plain is None:
            self._shares = self._lends and self._writes_nothing
            self._plain = lent(self._module) if self._shares else copied(self._module)
        return self._plain

    def run(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in the module's own precision; the inputs are not changed."""
        plain = self.plain
        if not self._shares:
            return flatten(plain(*fresh(inputs)))
        answer = _unless_refused(lambda: _without_writing(plain, inputs))
        if answer is not None:
            return answer
        self._plain, self._shares = copied(self._module), False
        return flatten(self._plain(*fresh(inputs)))


def running_as_it_is(module: nn.Module) -> Callable[[Sequence[Any]], list[Leaf]]:
    """Return what runs a module in its own precision; a large one shares its weights, until it writes into one.

    Args:
        module: not changed. It runs a graph alone, so that no code of its own writes where nobody can see it.
    """
    shared = lent(module) if worthwhile(module) else None
    own = None if shared is not None else copied(module)

    def run(inputs: Sequence[Any]) -> list[Leaf]:
        nonlocal own
        if own is None:
            assert shared is not None
            answer = _unless_refused(lambda: _without_writing(shared, inputs))
            if answer is not None:
                return answer
            own = copied(module)
        return flatten(own(*fresh(inputs)))

    return run


def _without_writing(shared: nn.Module, inputs: Sequence[Any]) -> list[Leaf]:
    """Run a module that shares its weights; a write into one is refused."""
    with RefusingWrites():  # type: ignore[no-untyped-call]
        return flatten(shared(*fresh(inputs)))


def _unless_refused(run: Callable[[], list[Leaf]]) -> list[Leaf] | None:
    """Return an answer; None where a write was refused on the way, whose error the code may have swallowed."""
    refused = writes_refused()
    try:
        answer = run()
    except Exception:
        if writes_refused() == refused:
            raise
        return None
    return answer if writes_refused() == refused else None


def running_in_float64(module: nn.Module) -> Callable[[Sequence[Any]], list[Leaf]]:
    """Return what runs a module in float64 whose weights are made on demand; on a copy, once its code writes into one.

    Args:
        module: as :meth:`bnfold.Folding.in_float64` gives it.
    """
    runs = [module]

    def run(inputs: Sequence[Any]) -> list[Leaf]:
        answer = _unless_refused(lambda: answer_in_float64(runs[0], inputs))
        if answer is not None:
            return answer
        runs[0] = copied_in_float64(module)
        return answer_in_float64(runs[0], inputs)

    return run


def answer_in_float64(module: nn.Module, inputs: Sequence[Any]) -> list[Leaf]:
    """Return the outputs of a module whose weights are in float64, computed in float64 throughout."""
    with everything_in_float64():
        return flatten(module(*fresh_in_float64(inputs)))
