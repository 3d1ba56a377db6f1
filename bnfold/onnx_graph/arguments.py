"""What an ONNX node gives to an operation: its inputs by their places, its attributes by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bnfold.onnx_graph.constants import is_standard
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.spelling import NotStaticError

if TYPE_CHECKING:
    from bnfold.onnx_graph.facts import OnnxFacts

__all__ = ["NodeArguments"]


class NodeArguments:
    """The arguments of one node.

    Attributes:
        node: the node.
        facts: the graph.
        version: of the operators, which decides what inputs and attributes mean.
    """

    def __init__(self, node: ir.Node, facts: OnnxFacts) -> None:
        self.node = node
        self.facts = facts
        self.version = facts.version

    # --- inputs ---------------------------------------------------------------------------------------------------

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return place < len(self.node.inputs) and self.node.inputs[place] is not None

    def at(self, place: int) -> ir.Value:
        """Return an input. Raises :class:`NotStaticError` where it is left out."""
        value = self.node.inputs[place] if place < len(self.node.inputs) else None
        if value is None:
            raise NotStaticError(f"input {place} is left out")
        return value

    def value(self, place: int = 0) -> OnnxValue:
        """Return an input as a value."""
        return self.facts.of(self.at(place))

    def is_constant(self, place: int) -> bool:
        """Whether an input is given and is the same in each run."""
        return self.has(place) and self.facts.constants.holds(self.at(place))

    def source(self, place: int, **derived: Any) -> Any:
        """Return where a parameter comes from: the name of a constant, a value that computes it, None if left out.

        Args:
            place: of the input.
            derived: what is made of the constant before it is a parameter; see ``OnnxFacts.parameter``.
        """
        if not self.has(place):
            return None
        value = self.at(place)
        if not self.facts.constants.holds(value):
            if derived:
                raise NotStaticError("a parameter that is computed")
            return self.facts.of(value)
        return self.facts.parameter(value, **derived)

    def shape(self, place: int) -> tuple[int, ...]:
        """Return the shape of a constant input. Raises :class:`NotStaticError` for one that is computed."""
        shape = self.facts.constants.shape(self.at(place)) if self.has(place) else None
        if shape is None:
            raise NotStaticError("a parameter that is computed")
        return shape

    def numbers(self, place: int) -> np.ndarray[Any, Any]:
        """Return a constant input. Raises :class:`NotStaticError` for one that is computed."""
        numbers = self.facts.constants.numbers(self.at(place)) if self.has(place) else None
        if numbers is None:
            raise NotStaticError("a parameter that is computed")
        return numbers

    def whole_numbers(self, place: int) -> tuple[int, ...]:
        """Return a constant input of whole numbers."""
        array = self.numbers(place)
        if array.dtype.kind not in "iu":
            raise NotStaticError("no whole numbers")
        return tuple(int(number) for number in array.reshape(-1))

    def rank(self, place: int = 0) -> int:
        """Return the number of dimensions of an input. Raises :class:`NotStaticError` where it is not known."""
        rank = self.facts.graph_rank(self.value(place))
        if rank is None:
            raise NotStaticError("an unknown number of dimensions")
        return rank

    # --- attributes -----------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute: a number, a text, a tuple of these. A reference to one of a function is refused."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        if attribute.is_ref():
            raise NotStaticError("an attribute of a function")
        value = attribute.value
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return tuple(value) if isinstance(value, (list, tuple)) else value

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a whole number."""
        return int(self.attribute(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute that is a list of whole numbers; None where it is left out."""
        value = self.attribute(name)
        return None if value is None else tuple(int(number) for number in value)

    def axes(self, place: int, since: int) -> tuple[int, ...] | None:
        """Return ``axes``, an attribute before opset ``since`` and an input from there on; None where left out."""
        if self.version < since:
            return self.integers("axes")
        return self.whole_numbers(place) if self.has(place) else None

    def only_first(self) -> None:
        """Raise :class:`NotStaticError` where somebody takes another result than the first."""
        if any(self.facts.is_used(output) for output in self.node.outputs[1:]):
            raise NotStaticError("its other results are used")

    @property
    def quantised(self) -> bool:
        """Whether its second input, or its third, is made of integers by DequantizeLinear."""
        makers = [None if value is None else value.producer() for value in self.node.inputs[1:3]]
        return any(maker and is_standard(maker) and maker.op_type == "DequantizeLinear" for maker in makers)
