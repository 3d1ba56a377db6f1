"""A graph as the folds of a plan will leave it, seen before anything is changed: where merging is planned.

For front ends of graphs that are plain data, in which nothing is written to in place. Shapes, names and constants are
those of the graph as it is: a fold changes none, and the weights are still those of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from bnfold import ops
from bnfold.fold.plan import Steps
from bnfold.ops.interface import FrontEnd, GraphFacts, Value, WeightType
from bnfold.ops.symbolic import Size

__all__ = ["AfterFolds"]


class AfterFolds(FrontEnd[Any]):
    """The facts of a graph after some folds.

    Args:
        facts: of the graph before.
        steps: what the folds do. BatchNorms that are gone, and sums that lost a term, are no values here; who read
            them reads what stands for them.
    """

    def __init__(self, facts: GraphFacts, steps: Steps) -> None:
        super().__init__()
        self.facts = facts
        self.way, self.notes = facts.way, facts.notes
        self._steps = steps
        self._instead: dict[Value, Value] = {}
        by_name = {value.name: value for value in facts.index}
        for name in steps.removed:
            self._instead[by_name[name]] = facts.call(by_name[name]).inputs[0]  # type: ignore[union-attr]
        for term, total in steps.dropped.values():
            call = facts.call(by_name[total])
            assert isinstance(call, ops.Add)
            lost = self._resolved(by_name[term])
            self._instead[call.node] = call.right if self._resolved(call.left) is lost else call.left
        self._origins: dict[Value, list[Value]] = {}
        for value in facts.index:
            self._origins.setdefault(self._resolved(value), []).append(value)
        self._inputs = {
            value: tuple(dict.fromkeys(map(self._resolved, facts.inputs(value))))
            for value in facts.index
            if value not in self._instead
        }
        self._remove_unneeded()
        self.index = {value: place for place, value in enumerate(self._inputs)}
        self._calls: dict[Value, ops.Operation | None] = {}

    def _resolved(self, value: Value) -> Value:
        while value in self._instead:
            value = self._instead[value]
        return value

    def _remove_unneeded(self) -> None:
        """Remove what somebody read, and nobody will: a BatchNorm that a sum lost, and what passed it on."""
        count = Counter(read for inputs in self._inputs.values() for read in inputs)
        for value in reversed(list(self._inputs)):
            if self.facts.users(value) and not count[value]:
                count.subtract(self._inputs.pop(value))

    # --- the graph ------------------------------------------------------------------------------------------------

    def call(self, value: Value) -> ops.Operation | None:
        """Return what computes a value."""
        if value not in self._calls:
            self._calls[value] = self._read(value)
        return self._calls[value]

    def _read(self, value: Value) -> ops.Operation | None:
        call = self.facts.call(value)
        if call is None or value.name in self._steps.constant:
            return None
        explicit = self._steps.explicit.get(value.name)
        if explicit is not None and isinstance(call, ops.BatchNorm) and (explicit.composed or not call.by_constants):
            return ops.ExplicitAffine(value, self._resolved(call.input), call.running_mean, None)
        changed: dict[str, Any] = {}
        for name in (field.name for field in fields(call) if field.name != "node"):
            old = getattr(call, name)
            new = tuple(map(self._seen, old)) if isinstance(old, tuple) else self._seen(old)
            if new != old:
                changed[name] = new
        return replace(call, **changed) if changed else call

    def _seen(self, part: Any) -> Any:
        return self._resolved(part) if part in self._instead else part

    def readers(self, value: Value) -> tuple[Value, ...]:
        """Return those who read the numbers of a value."""
        return self._of_origins(value, self.facts.readers)

    def users(self, value: Value) -> tuple[Value, ...]:
        """Return all that read a value in any way."""
        return self._of_origins(value, self.facts.users)

    def _of_origins(self, value: Value, ask: Callable[[Value], tuple[Value, ...]]) -> tuple[Value, ...]:
        """Ask of all the values that one stands for now."""
        found = {each for origin in self._origins[value] for each in ask(origin) if each in self.index}
        return tuple(sorted(found, key=self.index.__getitem__))

    def inputs(self, value: Value) -> tuple[Value, ...]:
        """Return what a value is computed from."""
        return self._inputs[value]

    # --- what a fold does not change ------------------------------------------------------------------------------

    def is_input(self, value: Value) -> bool:
        """Whether a value is an input of the model."""
        return self.facts.is_input(value)

    def is_output(self, value: Value) -> bool:
        """Whether a value stands for what the model returns."""
        return self.facts.is_output(value)

    def name(self, value: Value) -> str:
        """Return what a value's computation is called."""
        return self.facts.name(value)

    def label(self, value: Value) -> str:
        """Return what a value's computation is called where its numbers change."""
        return self.facts.label(value)

    def owner(self, source: Any) -> str | None:
        """Return what a call is named after that is no layer's."""
        return self.facts.owner(source)

    def described(self, value: Value) -> str:
        """Return a computation that no operation is known for in words."""
        return self.facts.described(value)

    def shapes(self, value: Value) -> tuple[tuple[int, ...], ...]:
        """Return a value's shape for each of the inputs that were tried."""
        return self.facts.shapes(value)

    def sizes(self, value: Value) -> tuple[Size, ...] | None:
        """Return the sizes of a value for every input."""
        return self.facts.sizes(value)

    def rank(self, value: Value) -> int | None:
        """Return the number of dimensions of a value."""
        return self.facts.rank(value)

    def graph_rank(self, value: Value) -> int | None:
        """Return the number of dimensions of a value, for every input."""
        return self.facts.graph_rank(value)

    def channels(self, value: Value, dim: int) -> int | None:
        """Return a size of a value."""
        return self.facts.channels(value, dim)

    def tensor(self, source: Any) -> Tensor | None:
        """Return the tensor that the model holds under a name."""
        return self.facts.tensor(source)

    def constant(self, source: Any) -> Tensor | None:
        """Return the tensor of a source."""
        return self.facts.constant(source)

    def weight_type(self, source: Any) -> WeightType | None:
        """Return the type of a source's numbers."""
        return self.facts.weight_type(source)

    def shape_of(self, source: Any) -> tuple[int, ...] | None:
        """Return the shape of a source."""
        return self.facts.shape_of(source)

    def is_constant(self, value: Value) -> bool:
        """Whether a value is the same each time."""
        return self.facts.is_constant(value)

    def sharing(self, source: Any) -> Sequence[Value]:
        """Return all that read the tensor that a source names."""
        return self.facts.sharing(source)
