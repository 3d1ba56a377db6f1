"""What an operation is: one node of a graph read as mathematics, the same however it is spelled.

All that is known of an operation stands in its class, in the file of its family: what it is called, what it does to
dimensions, channels and memory, and the rule by which an affine passes it. What must be declared is listed in
:data:`DECLARED`; a test fails for a class that leaves something out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.refusal import Refusal
from bnfold.ops.symbolic import Shape, Sight

__all__ = [
    "DECLARED",
    "STOPS",
    "Condition",
    "Dims",
    "JoiningRule",
    "Memory",
    "Operation",
    "Rule",
    "kinds",
    "unchanged",
    "undeclared",
]

Dims: TypeAlias = "int | tuple[int, ...]"
Memory: TypeAlias = Literal["fresh", "view", "in place", "unknown"]
Condition: TypeAlias = Callable[[Any, ChannelForm, GraphFacts], "Refusal | None"]
Across: TypeAlias = Callable[[Any, ChannelForm, GraphFacts], "ChannelForm | Refusal"]
Held: TypeAlias = Mapping[Value, ChannelForm]
Moved: TypeAlias = "tuple[tuple[Value, ChannelForm], ...] | Refusal"


@dataclass(frozen=True)
class Rule:
    """How an affine passes an operation of one input.

    Attributes:
        mathematics: why it is right, in one line, for an affine ``a x + b`` per channel.
        conditions: all must hold.
        backward: from the form asked of the output to that asked of the input.
        forward: from the form that the input holds to that which the output then holds.
    """

    mathematics: str
    conditions: tuple[Condition, ...]
    backward: Callable[..., Any]
    forward: Callable[..., Any]

    def before(self, call: Any, form: ChannelForm, facts: GraphFacts) -> Moved:
        """Return what the inputs must be asked for, so that the output has this form."""
        moved = self.backward(call, form, facts)
        return moved if isinstance(moved, Refusal) else ((call.passes_from(facts), moved),)

    def after(self, call: Any, held: Held, facts: GraphFacts) -> ChannelForm | Refusal:
        """Return the form that the output holds, where inputs hold these."""
        form: ChannelForm | Refusal = self.forward(call, held[call.passes_from(facts)], facts)
        return form


class JoiningRule(Rule):
    """How an affine passes an operation of several inputs.

    ``backward`` gives a form for each input, ``forward`` takes those of all inputs that hold one.
    """

    def before(self, call: Any, form: ChannelForm, facts: GraphFacts) -> Moved:
        """Return what the inputs must be asked for, so that the output has this form."""
        moved: Moved = self.backward(call, form, facts)
        return moved

    def after(self, call: Any, held: Held, facts: GraphFacts) -> ChannelForm | Refusal:
        """Return the form that the output holds, where inputs hold these."""
        form: ChannelForm | Refusal = self.forward(call, held, facts)
        return form


STOPS: Rule | None = None
"""No affine passes the operation."""

DECLARED = ("words", "keeps_rank", "keeps_channels", "memory", "rule", "sizes")
"""What each class of operations says of itself."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One node, read as an operation.

    Attributes:
        node: the value that it computes.

    Class attributes:
        words: what it is called in a sentence, in the singular.
        keeps_rank: whether its output has as many dimensions as its input.
        keeps_channels: whether its output has as many entries in dimension 1 as its input.
        memory: of its output: ``"fresh"`` shares none with an input, ``"view"`` does; ``"in place"`` shares the input's
            where the node writes there, else it is fresh; ``"unknown"`` may or may not.
        rule: how an affine passes it, or :data:`STOPS`.
        takes_spread: whether the rule knows of channels that run along several dimensions.
        takes_part: whether it takes a part of its input, and leaves the rest to others.
        strides: whether its output may not be dense in memory where its input is.
        passes_on: whether it is the identity.
        taught: whether a user has told of it, and the front end must be asked whether it is to be believed.
    """

    words: ClassVar[str]
    keeps_rank: ClassVar[bool]
    keeps_channels: ClassVar[bool]
    memory: ClassVar[Memory]
    rule: ClassVar[Rule | None]
    takes_spread: ClassVar[bool] = False
    takes_part: ClassVar[bool] = False
    strides: ClassVar[bool] = False
    passes_on: ClassVar[bool] = False
    taught: ClassVar[bool] = False

    node: Value

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values that the operation reads, parameters excluded."""
        value = getattr(self, "input", None)
        return () if value is None else (value,)

    @property
    def refusal(self) -> Refusal | None:
        """Why no affine passes it or goes into it, where there is more to say than that no rule is known."""
        return None

    @property
    def result(self) -> int | None:
        """Which of its results the numbers are, where it has several; else None."""
        return None

    def passes_from(self, facts: GraphFacts) -> Value:  # noqa: ARG002
        """Return the value from which numbers come, where an affine passes."""
        return self.inputs[0]

    def own_channels(self, facts: GraphFacts) -> int | None:  # noqa: ARG002
        """Return the number of channels, in dimension 1, as far as the operation itself tells it."""
        return None

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """Return the sizes of the output, for every input of the model; None where nothing is known.

        Args:
            before: those of its first input.
            sight: what else is known.
        """
        raise NotImplementedError


def kinds(of: type[Operation] = Operation) -> tuple[type[Operation], ...]:
    """Return all classes of operations that stand for a node, in the order in which they are defined."""
    found: list[type[Operation]] = []
    for kind in of.__subclasses__():
        found += kinds(kind) or (kind,)
    return tuple(found)


def undeclared(kind: type[Operation]) -> tuple[str, ...]:
    """Return what a class of operations should say of itself and does not, by name."""
    said = {name for base in kind.__mro__[: kind.__mro__.index(Operation)] for name in vars(base)}
    needed = (*DECLARED, *(("takes",) if "absorb_after" in said else ()))
    rule = getattr(kind, "rule", None)
    told = rule is None or bool(rule.mathematics and rule.backward.__doc__ and rule.forward.__doc__)
    return (*(name for name in needed if name not in said), *(() if told else ("rule",)))


def unchanged(call: Any, form: ChannelForm, facts: GraphFacts) -> ChannelForm:  # noqa: ARG001
    """The same affine."""
    return form
