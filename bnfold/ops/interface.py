"""What the planner asks of a graph, whatever it is a graph of: the interface of a front end.

The planner (:mod:`bnfold.fold`) and the rules (:mod:`bnfold.ops`) know values and operations. A front end reads a model
into these: it derives from :class:`FrontEnd`, as :class:`bnfold.graph.facts.Facts` does for torch.fx. A second one
provides three things:

* a *reader*: :meth:`FrontEnd.call` gives the operation at each value;
* the *facts*: the methods below. Those with a body have an answer that is right where nothing is ever written to,
  hooked or taught, as in a graph that is plain data;
* a *rewriter* of its own, which carries out a plan's steps: they name values by their names.

A *value* is what one node of the graph computes; it stands for the node too. Where a node has several results, they are
taken from its value by items, which are values of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bnfold.ops.operation import Operation
    from bnfold.ops.refusal import Refusal
    from bnfold.ops.symbolic import Size

__all__ = ["FrontEnd", "GraphFacts", "HiddenBatchNorm", "Source", "Value", "WeightType"]


Value: TypeAlias = Any
"""A value of a graph, of whatever type the front end has: hashable, told apart by identity.

Its attribute ``name`` is a name that no other value of the graph has. A :class:`torch.fx.Node` is one.
"""

Source: TypeAlias = "str | Value | None"
"""Where a parameter comes from: the name of a tensor that the model holds; the value that computes it; or nowhere."""


WeightType: TypeAlias = tuple[torch.dtype, torch.device]
"""The type of a parameter's numbers in the model, and their device."""


@dataclass(frozen=True)
class HiddenBatchNorm:
    """A BatchNorm that no value of the graph is a call of: it runs inside of something that is called as a whole.

    Attributes:
        name: for people.
        site: the name of the value whose computation it is part of.
        reason: a stable kebab-case code: why it stays.
        because: the end of the sentence "it stays a BatchNorm: ...".
        source: ``file:line`` of the call, if known.
        kind: ``"affine"`` for what may be an affine by constants.
    """

    name: str
    site: str
    reason: str
    because: str
    source: str | None = None
    kind: Literal["batchnorm", "affine"] = "batchnorm"


V = TypeVar("V")


class FrontEnd(ABC, Generic[V]):
    """Questions about a whole graph of values ``V``. Nothing that is asked changes it.

    Attributes:
        index: all values in the order in which they are computed, each with its place.
        way: how the graph was obtained, in one word.
        notes: sentences for the user about that, of what is true and not wrong.
    """

    index: Mapping[V, int]
    way: str = "read"
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._channels: dict[V, int] = {}
        self._made: dict[str, Tensor] = {}

    # --- the graph ------------------------------------------------------------------------------------------------

    @abstractmethod
    def call(self, value: V) -> Operation | None:
        """Return the operation that computes a value; None where there is no word for it, or it is an input."""

    @abstractmethod
    def readers(self, value: V) -> tuple[V, ...]:
        """Return those who read the numbers of a value, once each, in order.

        Reads of a shape or a type do not count. A split is no reader where all that is taken of it are items: these
        are. An output of the graph is a reader, for which :meth:`is_output` holds.
        """

    @abstractmethod
    def users(self, value: V) -> tuple[V, ...]:
        """Return all that read a value in any way, its shape included."""

    @abstractmethod
    def inputs(self, value: V) -> tuple[V, ...]:
        """Return the values that a value is computed from, parameters that are values included, once each."""

    @abstractmethod
    def is_input(self, value: V) -> bool:
        """Whether a value is an input of the model."""

    @abstractmethod
    def is_output(self, value: V) -> bool:
        """Whether a value stands for what the model returns: it reads, and nobody reads it."""

    # --- names, for people ----------------------------------------------------------------------------------------

    @abstractmethod
    def name(self, value: V) -> str:
        """Return what a value's computation is called: the qualified name of a layer, or the value's own."""

    def label(self, value: V) -> str:
        """Return what a value's computation is called where its numbers change: as ``name``, or a parameter's."""
        return self.name(value)

    def owner(self, source: Any) -> str | None:  # noqa: ARG002
        """Return what a call is named after that is no layer's: the holder of its parameter; None for no such name."""
        return None

    def described(self, value: V) -> str:
        """Return a computation that no operation is known for in words, with its name."""
        return f"`{self.name(value)}`"

    def source(self, value: V) -> str | None:  # noqa: ARG002
        """Return ``file:line`` of the code that computes a value, where that is known."""
        return None

    def lines(self, value: V) -> Sequence[str]:  # noqa: ARG002
        """Return the lines of code that lead to the one that computes a value, that one first; none if not known."""
        return ()

    def hidden_batchnorms(self, value: V) -> Iterable[HiddenBatchNorm]:  # noqa: ARG002
        """Return the BatchNorms inside of a computation that no operation is known for."""
        return ()

    # --- sizes ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def shapes(self, value: V) -> tuple[tuple[int, ...], ...]:
        """Return a value's shape for each of the inputs that were tried, the example first; empty where none were."""

    @abstractmethod
    def sizes(self, value: V) -> tuple[Size, ...] | None:
        """Return the sizes that a value's dimensions have for every input, unknowns included; None for no knowledge."""

    @abstractmethod
    def rank(self, value: V) -> int | None:
        """Return the number of dimensions of a value, if the graph or an example tells it."""

    @abstractmethod
    def graph_rank(self, value: V) -> int | None:
        """Return the number of dimensions that a value has for every input, if the graph tells it."""

    def channels_by_layers(self, value: V) -> int | None:
        """Return the size of dimension 1 of a value as far as the operations before it tell it."""
        chain: list[V] = []
        node, count = value, self._channels.get(value)
        while count is None:
            chain.append(node)
            call = self.call(node)
            count = None if call is None else call.own_channels(self)
            if count is not None or call is None or not call.keeps_channels:
                break
            node = call.inputs[0]
            count = self._channels.get(node)
        if count is not None:
            self._channels.update(dict.fromkeys(chain, count))
        return count

    @abstractmethod
    def channels(self, value: V, dim: int) -> int | None:
        """Return the size of dimension ``dim`` (not negative) of a value, if the graph or an example tells it."""

    def reads_sizes(self, value: V, but: V) -> bool:
        """Whether anybody besides ``but`` reads more of a value's shape than its number of dimensions."""
        return any(user not in (*self.readers(value), but) for user in self.users(value))

    # --- parameters and constants -----------------------------------------------------------------------------------

    def made(self, value: V, part: str, numbers: Tensor) -> str:
        """Return the name of a tensor that stands in the model nowhere by itself.

        Args:
            value: whose computation it is a parameter of.
            part: which parameter.
            numbers: the tensor.
        """
        name = f"{part} of {value.name}"  # type: ignore[attr-defined]  # with spaces: no parameter is called so
        self._made[name] = numbers
        return name

    @abstractmethod
    def tensor(self, source: Any) -> Tensor | None:
        """Return the tensor that the model holds under a name; the same object each time, and for tied names."""

    @abstractmethod
    def constant(self, source: Any) -> Tensor | None:
        """Return the tensor of a source: held by the model, or computed from what it holds; None for None."""

    def weight_type(self, source: Any) -> WeightType | None:
        """Return the type in which a parameter is held, and where; None where it stands in the model nowhere."""
        tensor = self.constant(source)
        return None if tensor is None else (tensor.dtype, tensor.device)

    @abstractmethod
    def shape_of(self, source: Any) -> tuple[int, ...] | None:
        """Return the shape of a tensor that the model holds, or that is computed from such ones; None where unknown."""

    @abstractmethod
    def is_constant(self, value: V) -> bool:
        """Whether a value depends on what the model holds only, and is the same each time."""

    @abstractmethod
    def sharing(self, source: Any) -> Sequence[V]:
        """Return all that read the tensor that a source names, whatever the name; empty where it names none."""

    # --- what else may happen ---------------------------------------------------------------------------------------

    def hooked(self, value: V) -> bool:  # noqa: ARG002
        """Whether more runs where a value is computed than its operation."""
        return False

    def mutated(self, value: V) -> bool:  # noqa: ARG002
        """Whether anything writes into the memory of a value after it was computed, or may do so."""
        return False

    def written_between(self, value: V, first: int, last: int) -> bool:  # noqa: ARG002
        """Whether anything between two places, both exclusive, writes into the memory of a value, or may do so."""
        return False

    def may_be_written(self, constant: V) -> bool:  # noqa: ARG002
        """Whether a constant value may be another when the model runs."""
        return False

    def written_by(self, value: V) -> tuple[V, ...]:  # noqa: ARG002
        """Return the values into which the computation of a value writes."""
        return ()

    def sharing_memory(self, value: V) -> tuple[V, ...]:
        """Return the values that may share memory with a value, itself included."""
        return (value,)

    def is_written(self, source: Any) -> bool:  # noqa: ARG002
        """Whether a parameter that the model holds is written to when it runs."""
        return False

    def doubts(self, call: Operation, channels: int) -> Refusal | None:  # noqa: ARG002
        """Return why what a user said of a layer of theirs is not believed; None where it is."""
        return None


GraphFacts: TypeAlias = "FrontEnd[Any]"
"""A front end of any kind, as the planner and the rules see it."""
