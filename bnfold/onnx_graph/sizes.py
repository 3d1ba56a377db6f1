"""The sizes that values of an ONNX graph have for every input, and the numbers that are computed from sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir

from bnfold import ops
from bnfold.onnx_graph.constants import is_standard
from bnfold.onnx_graph.inference import OPEN
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.spelling import NotStaticError
from bnfold.ops.symbolic import ONE, Shape, Sight, Size, broadcast, number, product

if TYPE_CHECKING:
    from bnfold.onnx_graph.facts import OnnxFacts

__all__ = ["OnnxSizes"]

Entry: TypeAlias = "int | Size | None"
"""A whole number: one that stands there, one computed from sizes, or one that nothing is known of."""

_POINTWISE = frozenset(
    "Abs Acos Asin Atan Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Log Mish Reciprocal Round Selu "
    "Sigmoid Sin Softplus Softsign Softmax LogSoftmax Sqrt Swish Tan Tanh ThresholdedRelu Cast Not Sign "
    "Add Sub Mul Div Pow Max Min Where Mean".split()
)


class OnnxSizes:
    """The sizes of a graph's values; ``OnnxFacts.sizes`` asks it."""

    def __init__(self, facts: OnnxFacts) -> None:
        self.facts = facts
        self._shapes: dict[OnnxValue, Shape] = {}
        self._entries: dict[ir.Value, tuple[Entry, ...]] = {}
        self._done = 0
        self._order = list(facts.index) if hasattr(facts, "index") else []

    def of(self, value: OnnxValue) -> Shape | None:
        """Return the sizes of a value's dimensions."""
        self._advance(value)
        return self._shapes.get(value)

    def numbers(self, value: ir.Value) -> tuple[Entry, ...] | None:
        """Return the whole numbers that a value holds."""
        constant = self.facts.constants.numbers(value)
        if constant is not None:
            if constant.dtype.kind not in "iu" or constant.size > 64 or constant.ndim > 1:
                return None
            return tuple(int(entry) for entry in constant.reshape(-1))
        return self._entries.get(value)

    def _advance(self, value: OnnxValue) -> None:
        """Follow the sizes up to a value, in order: a reader that asks for those of its inputs finds them."""
        end = self.facts.index[value]
        while self._done <= end:
            place = self._done
            self._done += 1  # what is asked for meanwhile lies before
            self._follow(self._order[place])

    def _follow(self, value: OnnxValue) -> None:
        if value.value is None:
            return
        shapes = self._inferred(value)
        if shapes is not None:
            told = self._told(value, shapes)
            if told is not None and len(told) == len(shapes) and self._fits(value, told):
                shapes = tuple(
                    one if one.number is not None else other for one, other in zip(shapes, told, strict=True)
                )
            self._shapes[value] = shapes
        found = self._computed(value) if shapes is not None and len(shapes) <= 1 else None
        if found is not None:
            self._entries[value.value] = found

    def _inferred(self, value: OnnxValue) -> Shape | None:
        assert value.value is not None
        shape: Any = self.facts.inferred.symbolic.get(value.value)
        if shape is None and value.kind == "constant":
            shape = self.facts.constants.shape(value.value)
        if shape is None:
            return None
        sizes = []
        for dim, size in enumerate(shape):
            if isinstance(size, int) and size > 0:
                sizes.append(number(size))
            elif isinstance(size, str) and size.startswith(OPEN):
                sizes.append(Size.unknown(size))
            else:
                sizes.append(Size.unknown((value, dim)))
        return tuple(sizes)

    def _fits(self, value: OnnxValue, told: Shape) -> bool:
        return all(
            size.number in (None, seen)
            for shape in self.facts.shapes(value)
            for size, seen in zip(told, shape, strict=True)
        )

    def _told(self, value: OnnxValue, fresh: Shape) -> Shape | None:
        """The sizes as far as the operation tells them."""
        node = value.maker
        if value.kind not in ("node", "item") or node is None:
            return None
        try:
            call = self.facts.call(value)
            if call is None:
                read = [self._shapes.get(before) for before in value.inputs]
                return broadcast(read, fresh) if is_standard(node) and node.op_type in _POINTWISE else None
            if isinstance(call, ops.Reshape):
                return self._reshaped(node, self._shapes[call.input])
            before = self._shapes.get(call.inputs[0], ())
            return call.sizes(before, Sight(self.facts, self._shapes, fresh))
        except (NotStaticError, LookupError, TypeError, ValueError, ZeroDivisionError):
            return None

    def _reshaped(self, node: ir.Node, before: Shape) -> Shape | None:
        attributes = node.attributes
        if node.op_type == "Flatten":
            axis = attributes["axis"].as_int() if "axis" in attributes else 1
            axis = axis + len(before) if axis < 0 else axis
            return product(before[:axis]), product(before[axis:])
        if node.op_type == "Reshape":
            zero = bool(attributes["allowzero"].as_int()) if "allowzero" in attributes else False
            asked = self.numbers(node.inputs[1]) if node.inputs[1] is not None else None
            return None if asked is None else _filled(asked, before, zero=zero)
        axes = self._axes(node)
        if node.op_type == "Unsqueeze":
            if axes is None:
                return None
            rank = len(before) + len(axes)
            places = {axis % rank for axis in axes}
            rest = iter(before)
            return tuple(ONE if dim in places else next(rest) for dim in range(rank))
        if axes is None:  # it drops what is of size 1
            if any(size.number is None for size in before):
                return None
            return tuple(size for size in before if size != ONE)
        gone = {axis % len(before) for axis in axes}
        return tuple(size for dim, size in enumerate(before) if dim not in gone)

    def _axes(self, node: ir.Node) -> tuple[int, ...] | None:
        if "axes" in node.attributes:
            return tuple(node.attributes["axes"].as_ints())
        if len(node.inputs) < 2 or node.inputs[1] is None:
            return None
        found = self.numbers(node.inputs[1])
        if found is None or not all(isinstance(entry, int) for entry in found):
            raise NotStaticError("axes that are computed")
        return tuple(entry for entry in found if isinstance(entry, int))

    # --- numbers --------------------------------------------------------------------------------------------------

    def _computed(self, value: OnnxValue) -> tuple[Entry, ...] | None:
        """The whole numbers that a node computes from sizes."""
        node = value.maker
        if value.kind != "node" or node is None or not is_standard(node) or not node.inputs:
            return None
        compute = _COMPUTED.get(node.op_type)
        if compute is None:
            return None
        try:
            return compute(self, node)
        except (NotStaticError, LookupError, TypeError, ValueError, ZeroDivisionError):
            return None

    def _given(self, node: ir.Node, place: int) -> tuple[Entry, ...]:
        value = node.inputs[place] if place < len(node.inputs) else None
        found = None if value is None else self.numbers(value)
        if found is None:
            raise NotStaticError("no numbers")
        return found

    def _shape(self, node: ir.Node) -> tuple[Entry, ...]:
        assert node.inputs[0] is not None
        sizes = self._shapes[self.facts.of(node.inputs[0])]
        rank = len(sizes)
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else rank
        return tuple(_plain(size) for size in sizes[slice(start, end)])

    def _same(self, node: ir.Node) -> tuple[Entry, ...]:
        return self._given(node, 0)

    def _cast(self, node: ir.Node) -> tuple[Entry, ...]:
        if node.attributes["to"].as_int() not in (ir.DataType.INT32, ir.DataType.INT64):
            raise NotStaticError("no whole numbers")
        return self._given(node, 0)

    def _concat(self, node: ir.Node) -> tuple[Entry, ...]:
        return tuple(entry for place in range(len(node.inputs)) for entry in self._part(node, place))

    def _part(self, node: ir.Node, place: int) -> tuple[Entry, ...]:
        """A part of a list; where nothing is known of it but how long it is, that many unknowns."""
        try:
            return self._given(node, place)
        except NotStaticError:
            value = node.inputs[place]
            shape = None if value is None else self.facts.inferred.symbolic.get(value)
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
                raise
            return (None,) * shape[0]

    def _gather(self, node: ir.Node) -> tuple[Entry, ...]:
        given, index = self._given(node, 0), self._given(node, 1)
        if not all(isinstance(entry, int) for entry in index):
            raise NotStaticError("places that are computed")
        return tuple(given[entry] for entry in index if isinstance(entry, int))

    def _slice(self, node: ir.Node) -> tuple[Entry, ...]:
        given = self._given(node, 0)
        if "starts" in node.attributes:
            starts, ends = node.attributes["starts"].as_ints(), node.attributes["ends"].as_ints()
            return given[slice(starts[0], ends[0])]
        (start,), (end,) = self._given(node, 1), self._given(node, 2)
        (step,) = self._given(node, 4) if len(node.inputs) > 4 else (1,)
        if not isinstance(start, int) or not isinstance(end, int) or step != 1:
            raise NotStaticError("a slice that is computed")
        return given[slice(start, end)]

    def _arithmetic(self, node: ir.Node) -> tuple[Entry, ...]:
        left, right = self._given(node, 0), self._given(node, 1)
        if len(left) != len(right):
            left, right = (side * max(len(left), len(right)) if len(side) == 1 else side for side in (left, right))
        return tuple(_result(node.op_type, one, other) for one, other in zip(left, right, strict=True))


def _plain(size: Size) -> Entry:
    found = size.number
    return size if found is None else found


def _result(operator: str, one: Entry, other: Entry) -> Entry:
    if one is None or other is None:
        return None
    if isinstance(one, int) and isinstance(other, int):
        if operator == "Div":
            return one // other if one >= 0 and other > 0 else None
        return {"Mul": one * other, "Add": one + other, "Sub": one - other}[operator]
    if operator not in ("Mul", "Div"):
        return None
    left, right = (number(side) if isinstance(side, int) else side for side in (one, other))
    if operator == "Mul":
        return _plain(left * right)
    whole = left.in_units_of(right)
    return None if whole is None else _plain(whole)


def _filled(asked: tuple[Entry, ...], before: Shape, *, zero: bool) -> Shape | None:
    """The shape that a reshape asks for, with what is left in the place of a -1; None where a part is not known."""
    sizes: list[Size | None] = []
    unknown = False
    for dim, entry in enumerate(asked):
        if entry == 0 and not zero:
            sizes.append(before[dim])
        elif isinstance(entry, Size):
            sizes.append(entry)
        elif entry is None:
            unknown = True
            sizes.append(None)
        else:
            sizes.append(None if entry == -1 else number(entry))
    left = sizes.count(None)
    if left > 1 or (left == 1 and unknown and -1 in asked):
        return None
    rest = product(before) / product(size for size in sizes if size is not None)
    return tuple(rest if size is None else size for size in sizes)


_COMPUTED: dict[str, Callable[[OnnxSizes, ir.Node], tuple[Entry, ...]]] = {
    "Shape": OnnxSizes._shape,
    "Identity": OnnxSizes._same,
    "Cast": OnnxSizes._cast,
    "Squeeze": OnnxSizes._same,
    "Unsqueeze": OnnxSizes._same,
    "Reshape": OnnxSizes._same,
    "Concat": OnnxSizes._concat,
    "Gather": OnnxSizes._gather,
    "Slice": OnnxSizes._slice,
    "Mul": OnnxSizes._arithmetic,
    "Div": OnnxSizes._arithmetic,
    "Add": OnnxSizes._arithmetic,
    "Sub": OnnxSizes._arithmetic,
}
