"""A module beside itself: in its own precision and in float64, without a second set of its weights.

The twin in float64 casts each weight when a call needs it. It refuses to write into one, and so finds out whether the
module's code does that; if it does not, the twin in the module's own precision may share the weights. Else both become
copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bnfold.capture.nests import Leaf, flatten
from bnfold.on_demand import writes_refused
from bnfold.verify.reference import (
    copied,
    copied_in_float64,
    everything_in_float64,
    fresh,
    fresh_in_float64,
    lent,
    lent_in_float64,
)

__all__ = ["Twins", "answer_in_float64"]


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
        self._writes_nothing = self._copied = False
        self.in_float64 = lent_in_float64(module)

    def exact(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in float64 throughout; the inputs are not changed."""
        refused = writes_refused()
        try:
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
        """The twin in the module's own precision."""
        if self._plain is None:
            self._plain = lent(self._module) if self._writes_nothing else copied(self._module)
        return self._plain

    def run(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in the module's own precision; the inputs are not changed."""
        return flatten(self.plain(*fresh(inputs)))


def answer_in_float64(module: nn.Module, inputs: Sequence[Any]) -> list[Leaf]:
    """Return the outputs of a module whose weights are in float64, computed in float64 throughout."""
    with everything_in_float64():
        return flatten(module(*fresh_in_float64(inputs)))
