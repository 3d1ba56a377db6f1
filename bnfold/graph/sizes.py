"""What a graph itself tells of sizes, whatever the batch, the height and the width of its input.

A :class:`Size` is a number times unknowns, ``2 N H / 25`` say. An example's shapes tell one size of many; what a
reshape does to the channels must hold for all of them. So sizes are followed through the graph: a convolution's
channels are those of its weight, its batch is that of its input, and its height is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.requires import require_shape
from bnfold.graph.signature import NotStaticError, static

if TYPE_CHECKING:
    from bnfold.graph.facts import Facts

__all__ = ["ONE", "Size", "Sizes", "number", "product"]


@dataclass(frozen=True)
class Size:
    """``factor * product(unknown ** power)``: a size that is a whole number in each run.

    Attributes:
        factor: not 0.
        powers: of the unknowns, none of them 0.
    """

    factor: Fraction
    powers: frozenset[tuple[Hashable, int]] = frozenset()

    @staticmethod
    def unknown(name: Hashable) -> Size:
        """A size of which nothing is known; the same name is the same size."""
        return Size(Fraction(1), frozenset({(name, 1)}))

    def _joined(self, other: Size, sign: int) -> Size:
        powers = dict(self.powers)
        for name, power in other.powers:
            powers[name] = powers.get(name, 0) + sign * power
        factor = self.factor * other.factor if sign > 0 else self.factor / other.factor
        return Size(factor, frozenset((name, power) for name, power in powers.items() if power))

    def __mul__(self, other: Size) -> Size:
        return self._joined(other, 1)

    def __truediv__(self, other: Size) -> Size:
        return self._joined(other, -1)

    @property
    def number(self) -> int | None:
        """The size, where it is the same in every run."""
        return int(self.factor) if not self.powers and self.factor.denominator == 1 else None

    def in_units_of(self, other: Size) -> Size | None:
        """How often ``other`` goes into this size, where it does so in every run."""
        quotient = self / other
        whole = quotient.factor.denominator == 1 and all(power > 0 for _, power in quotient.powers)
        return quotient if whole else None


ONE = Size(Fraction(1))
Shape: TypeAlias = "tuple[Size, ...]"


def number(value: int) -> Size:
    """Return a size that is known. Raises :class:`NotStaticError` for 0, by which nothing may be divided."""
    if value == 0:
        raise NotStaticError("a size of zero")
    return Size(Fraction(value))


def product(sizes: Iterable[Size]) -> Size:
    """Return the size of all dimensions together."""
    total = ONE
    for size in sizes:
        total = total * size
    return total


_SAME_SHAPE = (
    calls.Passing,
    calls.ActiveDropout,
    calls.PositivelyHomogeneous,
    calls.ByNumber,
    calls.Rearrange,
    calls.BatchNorm,
    calls.ExplicitAffine,
    calls.AffineNormalization,
    calls.ChannelShuffle,
)
_OVER_SPACE = (
    calls.Convolution,
    calls.TransposedConvolution,
    calls.MaxPool,
    calls.AveragePool,
    calls.AdaptiveAveragePool,
)
_POINTWISE = frozenset(
    "sigmoid tanh silu gelu mish hardswish hardsigmoid hardtanh relu6 elu selu celu softplus softsign logsigmoid exp "
    "log sqrt rsqrt abs pow clamp softmax log_softmax float half double to type sigmoid_ tanh_ silu_ hardswish_ "
    "hardsigmoid_ hardtanh_ clamp_ mul mul_ div div_ add add_ sub sub_ truediv imul iadd maximum minimum "
    "normalize".split()
)
_RESHAPING_IN_PLACE = frozenset(
    "squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_ resize_ resize_as_ set_ as_strided_".split()
)


class Sizes:
    """The sizes of a graph's values; ``Facts.sizes`` asks it."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def of(self, value: Node) -> Shape | None:
        """Return the sizes of a tensor's dimensions; None where nothing is known of it."""
        return self._all[0].get(value)

    @cached_property
    def _all(self) -> tuple[dict[Node, Shape], dict[Node, Any]]:
        tensors: dict[Node, Shape] = {}
        numbers: dict[Node, Any] = {}
        if any(_name(node) in _RESHAPING_IN_PLACE for node in self.facts.index):
            return tensors, numbers  # a value may have two shapes
        for node in self.facts.index:
            shapes = self.facts.shapes(node)
            if not shapes:
                numbers[node] = _number(node, tensors, numbers)
                continue
            fresh = self._fresh(node, shapes)
            found = None if self._batches is not None else self._told(node, fresh, tensors, numbers)
            tensors[node] = found if found is not None and _fits(found, shapes) else fresh
        return tensors, numbers

    def _fresh(self, node: Node, shapes: Sequence[tuple[int, ...]]) -> Shape:
        """The sizes where the operation tells none."""
        unknown = tuple(Size.unknown((node, dim)) for dim in range(len(shapes[0])))
        batches = self._batches
        if batches is None or len(shapes) != len(batches):
            return unknown
        return tuple(
            _of_batch(sizes, batches) or left for sizes, left in zip(zip(*shapes, strict=True), unknown, strict=True)
        )

    @cached_property
    def _batches(self) -> tuple[int, ...] | None:
        """The batches of the shapes that are known, where a guard pins all other sizes of the input; else None."""
        found: tuple[int, ...] = ()
        for node in self.facts.index:
            if node.op != "placeholder" or not (shapes := self.facts.shapes(node)):
                continue
            guards = [user.args[1] for user in node.users if user.target is require_shape]
            if not guards or not isinstance(guards[0], (tuple, list)) or None in guards[0][1:]:
                return None
            if None in guards[0]:
                found = tuple(shape[0] for shape in shapes)
            elif not found:
                found = tuple(0 for _ in shapes)
        return found or None

    def _told(self, node: Node, fresh: Shape, tensors: dict[Node, Shape], numbers: dict[Node, Any]) -> Shape | None:
        """The sizes as far as the operation tells them."""
        if self.facts.is_constant(node):
            return self._constant(node)
        if node.op == "placeholder":
            return fresh
        try:
            call = self.facts.call(node)
            if call is None:
                read = [tensors[value] for value in node.all_input_nodes if value in tensors]
                return _broadcast(read, fresh) if self._pointwise(node) else None
            return _Rule(self.facts, call, fresh, tensors, numbers).shape()
        except (NotStaticError, AttributeError, LookupError, TypeError, ValueError):
            return None

    def _constant(self, node: Node) -> Shape | None:
        shape = self.facts.shapes(node)[0]
        return None if 0 in shape else tuple(map(number, shape))

    def _pointwise(self, node: Node) -> bool:
        if node.op == "call_module":
            module = self.facts.capture.module(str(node.target))
            home = type(module).__module__
            return home == "torch.nn.modules.activation" and not isinstance(module, (nn.MultiheadAttention, nn.GLU))
        return _name(node) in _POINTWISE and _is_torchs(node)


def _is_torchs(node: Node) -> bool:
    home = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_method" or home.startswith(("torch", "_operator", "bnfold.graph.inplace"))


def _name(node: Node) -> str:
    """The name of a function or method, without an overload."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name.partition(".")[0] if node.op != "call_module" else ""


def _fits(found: Shape, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether what is known agrees with the runs on the example."""
    return all(
        len(found) == len(shape) and all(size.number in (None, seen) for size, seen in zip(found, shape, strict=True))
        for shape in shapes
    )


def _of_batch(sizes: tuple[int, ...], batches: tuple[int, ...]) -> Size | None:
    """A size that is the same for each batch, or a multiple of it."""
    if 0 in sizes:
        return None
    if len(set(sizes)) == 1 and (len(set(batches)) > 1 or batches[0] == 0):
        return number(sizes[0])
    if 0 in batches:
        return None
    times = {Fraction(size, batch) for size, batch in zip(sizes, batches, strict=True)}
    return Size.unknown("batch") * Size(times.pop()) if len(times) == 1 else None


def _broadcast(shapes: Sequence[Shape | None], fresh: Shape) -> Shape | None:
    """The sizes of values that are stretched to one another."""
    if not shapes or any(shape is None or len(shape) > len(fresh) for shape in shapes):
        return None
    found = list(fresh)
    for dim in range(len(fresh)):
        seen = {shape[dim - len(fresh)] for shape in shapes if shape is not None and len(shape) >= len(fresh) - dim} - {
            ONE
        }
        if len(seen) <= 1:
            found[dim] = next(iter(seen), ONE)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Rule:
    """What one call tells of the sizes of its output.

    Attributes:
        fresh: what to take for a size that it does not tell.
        tensors: sizes of the values before it.
        numbers: and of numbers computed from sizes, and tuples of them.
    """

    facts: Facts
    call: Any
    fresh: Shape
    tensors: dict[Node, Shape]
    numbers: dict[Node, Any]

    def shape(self) -> Shape | None:
        call = self.call
        if isinstance(call, calls.Item):
            return self._item()
        if isinstance(call, calls.Concatenate):
            return self._concatenated(call)
        if isinstance(call, calls.Add):
            return _broadcast([self.tensors.get(call.left), self.tensors.get(call.right)], self.fresh)
        before = self.tensors[call.input]
        for kinds, rule in _RULES:
            if isinstance(call, kinds):
                return rule(self, before)
        return None

    def same(self, before: Shape) -> Shape:
        channels = self.facts.told_channels(self.call)
        return before if channels is None or len(before) < 2 else _with(before, 1, number(channels))

    def over_space(self, before: Shape) -> Shape | None:
        if len(before) != self.call.spatial_dims + 2:
            return None
        channels = before[1]
        if isinstance(self.call, calls.Absorber):
            told = self.facts.told_channels(self.call)
            channels = self.fresh[1] if told is None else number(told)
        return (before[0], channels, *self._output_size())

    def _output_size(self) -> Shape:
        """The sizes that an adaptive pooling is asked for."""
        space = self.fresh[2:]
        asked: Any = None
        node = self.call.node
        if isinstance(self.call, (calls.MaxPool, calls.AdaptiveAveragePool)):
            if node.op == "call_module":
                asked = getattr(self.facts.capture.module(str(node.target)), "output_size", None)
            elif _name(node).startswith("adaptive"):
                asked = node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None)
        if isinstance(asked, int):
            asked = (asked,) * len(space)
        if not isinstance(asked, (tuple, list)):
            return space
        asked = tuple(asked) * (len(space) if len(asked) == 1 else 1)
        return tuple(number(size) if isinstance(size, int) else left for size, left in zip(asked, space, strict=True))

    def resized(self, before: Shape) -> Shape:
        return (*before[:2], *self.fresh[2:])

    def padded(self, before: Shape) -> Shape | None:
        if self.call.widths is None:
            return None
        first = len(before) - len(self.call.widths) // 2
        return (*before[:first], *self.fresh[first:])

    def mean(self, before: Shape) -> Shape:
        rank = len(before)
        reduced = set(range(rank)) if self.call.dims is None else {dim % rank for dim in self.call.dims}
        if self.call.keepdim:
            return tuple(ONE if dim in reduced else size for dim, size in enumerate(before))
        return tuple(size for dim, size in enumerate(before) if dim not in reduced)

    def linear(self, before: Shape) -> Shape:
        weight = self.facts.shape_of_source(self.call.weight)
        last = self.fresh[-1] if weight is None else number(weight[0])
        return (*before[:-1], last)

    def embedded(self, before: Shape) -> Shape:
        weight = self.facts.shape_of_source(self.call.weight)
        return (*before, self.fresh[-1] if weight is None else number(weight[1]))

    def pixel_shuffled(self, before: Shape) -> Shape:
        r = number(self.call.factor)
        if isinstance(self.call, calls.PixelUnshuffle):
            return (*before[:-3], before[-3] * r * r, before[-2] / r, before[-1] / r)
        return (*before[:-3], before[-3] / (r * r), before[-2] * r, before[-1] * r)

    def permuted(self, before: Shape) -> Shape:
        order = [dim % len(before) for dim in self.call.order]
        if self.call.swap:
            first, second = order
            order = list(range(len(before)))
            order[first], order[second] = second, first
        return tuple(before[dim] for dim in order)

    def sliced(self, before: Shape) -> Shape:
        found = list(before)
        for dim in self.call.others:
            found[dim] = self.fresh[dim]
        if self.call.dim is not None:
            dim = self.call.dim
            whole = before[dim].number
            start, stop, _ = slice(self.call.start, self.call.stop).indices(whole or 0)
            found[dim] = self.fresh[dim] if whole is None else number(stop - start)
        return tuple(found)

    def selected(self, before: Shape) -> Shape:
        dim = self.call.dim % len(before)
        shapes = self.facts.shapes(self.call.node)
        return _with(before, dim, number(shapes[0][dim]) if self._constant_index() else self.fresh[dim])

    def _constant_index(self) -> bool:
        index = self.call.index
        return not isinstance(index, Node) or self.facts.is_constant(index)

    def _item(self) -> Shape | None:
        call = self.call
        source = self.facts.call(call.input)
        if isinstance(source, calls.Split):
            before = self.tensors[source.input]
            dim = source.dim % len(before)
            whole, taken = before[dim].number, self.facts.shapes(call.node)[0][dim]
            known = whole is not None or isinstance(source.sizes, tuple)
            return _with(before, dim, number(taken) if known else self.fresh[dim])
        if isinstance(source, calls.MaxPool):
            return _Rule(self.facts, source, self.fresh, self.tensors, self.numbers).shape()
        return self.tensors[call.input][1:]

    def _concatenated(self, call: calls.Concatenate) -> Shape:
        parts = [self.tensors[part] for part in call.parts]
        dim = call.dim % len(self.fresh)
        joined = [part[dim].number for part in parts]
        total = self.fresh[dim] if None in joined else number(sum(size for size in joined if size is not None))
        others = [
            next((part[d] for part in parts if part[d].number is not None), parts[0][d]) for d in range(len(self.fresh))
        ]
        return _with(tuple(others), dim, total)

    def reshaped(self, before: Shape) -> Shape | None:
        node = self.call.node
        if node.op == "call_module":
            layer: Any = self.facts.capture.module(str(node.target))
            if isinstance(layer, nn.Flatten):
                return _flattened(before, layer.start_dim, layer.end_dim)
            sizes = [number(size) if size != -1 else None for size in layer.unflattened_size]
            return _unflattened(before, layer.dim, sizes)
        name, given = _name(node), _Given(node)
        if name in ("view_as", "reshape_as"):
            return self.tensors[given("other", 1)]
        if name == "flatten":
            return _flattened(before, static(given("start_dim", 1, 0)), static(given("end_dim", 2, -1)))
        if name == "unflatten":
            return _unflattened(before, static(given("dim", 1)), self._asked(given("sizes", 2)))
        if name == "unsqueeze":
            dim = static(given("dim", 1)) % (len(before) + 1)
            return (*before[:dim], ONE, *before[dim:])
        if name == "squeeze":
            return _squeezed(before, static(given("dim", 1, None)))
        if name in ("view", "reshape", "_unsafe_view"):
            rest = [*node.args[1:], *(value for key, value in node.kwargs.items() if key not in ("input", "self"))]
            asked = self._asked(rest[0] if len(rest) == 1 and not isinstance(rest[0], int) else rest)
            return _filled(asked, product(before))
        return None

    def _asked(self, sizes: Any) -> list[Size | None]:
        """The sizes that a view asks for; None for -1."""
        if isinstance(sizes, Node):
            known = self.numbers[sizes]
            sizes = known if isinstance(known, tuple) else (known,)
        asked: list[Size | None] = []
        for given in sizes:
            size = self.numbers[given] if isinstance(given, Node) else given
            if not isinstance(size, (int, Size)):
                raise NotStaticError("a size that is no number")
            asked.append(size if isinstance(size, Size) else None if size == -1 else number(size))
        return asked


_RULES: tuple[tuple[Any, Callable[[_Rule, Shape], Shape | None]], ...] = (
    (_SAME_SHAPE, _Rule.same),
    (_OVER_SPACE, _Rule.over_space),
    (calls.Interpolate, _Rule.resized),
    (calls.Pad, _Rule.padded),
    (calls.Mean, _Rule.mean),
    (calls.Linear, _Rule.linear),
    (calls.Embedding, _Rule.embedded),
    ((calls.PixelShuffle, calls.PixelUnshuffle), _Rule.pixel_shuffled),
    (calls.Permute, _Rule.permuted),
    (calls.Slice, _Rule.sliced),
    (calls.Select, _Rule.selected),
    (calls.Reshape, _Rule.reshaped),
)


@dataclass(frozen=True)
class _Given:
    """The arguments of a node, by name or place."""

    node: Node

    def __call__(self, name: str, place: int, *default: Any) -> Any:
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        if len(self.node.args) > place:
            return self.node.args[place]
        if default:
            return default[0]
        raise NotStaticError(f"{self.node.name} lacks {name}")


def _with(sizes: Shape, dim: int, size: Size) -> Shape:
    return (*sizes[:dim], size, *sizes[dim + 1 :])


def _flattened(before: Shape, start: int, end: int) -> Shape:
    first, last = start % len(before), end % len(before)
    return (*before[:first], product(before[first : last + 1]), *before[last + 1 :])


def _unflattened(before: Shape, dim: int, sizes: list[Size | None]) -> Shape:
    dim = dim % len(before)
    return (*before[:dim], *_filled(sizes, before[dim]), *before[dim + 1 :])


def _filled(asked: list[Size | None], total: Size) -> Shape:
    """The sizes asked for, with what is left in the place of a None."""
    left = total / product(size for size in asked if size is not None)
    return tuple(left if size is None else size for size in asked)


def _squeezed(before: Shape, dims: Any) -> Shape | None:
    """What is left without dimensions of size 1; None where that depends on a size that is not known."""
    rank = len(before)
    asked = set(range(rank)) if dims is None else {dim % rank for dim in ((dims,) if isinstance(dims, int) else dims)}
    left = tuple(size for dim, size in enumerate(before) if not (dim in asked and size == ONE))
    unsure = [dim for dim in sorted(asked) if before[dim].number is None]
    # a batch of one that leaves with the rest: what reads a vector in the place of (N, C) takes it for C channels too
    return left if not unsure or (unsure == [0] and len(left) == 2) else None


_ARITHMETIC: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.floordiv: operator.floordiv,
    operator.mod: operator.mod,
}


def _number(node: Node, tensors: dict[Node, Shape], numbers: dict[Node, Any]) -> Any:
    """Return the size that a node computes, or several as a tuple; an unknown one where it computes none."""
    try:
        found = _computed(node, tensors, numbers)
    except (NotStaticError, LookupError, TypeError, ValueError, ZeroDivisionError):
        found = None
    return Size.unknown(node) if found is None else found


def _computed(node: Node, tensors: dict[Node, Shape], numbers: dict[Node, Any]) -> Any:
    target, args = node.target, node.args
    if target is getattr and args[1] == "shape":
        return tensors[_node(args[0])]
    if target == "size" and node.op == "call_method":
        sizes = tensors[_node(args[0])]
        dim = static(node.kwargs.get("dim", args[1] if len(args) > 1 else None))
        return sizes if dim is None else sizes[dim]
    if target is torch.ops.aten.sym_size.int:
        return tensors[_node(args[0])][static(args[1])]
    if target == "numel" or target in (torch.numel, torch.ops.aten.sym_numel.default):
        return product(tensors[_node(args[0])])
    if target is operator.getitem:
        several = numbers[_node(args[0])]
        return several[static(args[1])] if isinstance(several, tuple) else None
    if len(args) != 2 or node.kwargs:
        return numbers[_node(args[0])] if target is int else None
    left: Any
    right: Any
    left, right = (numbers[part] if isinstance(part, Node) else part for part in args)
    if target is operator.add and (isinstance(left, tuple) or isinstance(right, tuple)):
        return tuple(number(part) if isinstance(part, int) else part for part in (*left, *right))
    left, right = (part if isinstance(part, Size) else number(part) for part in (left, right))
    if target is operator.mul:
        return left * right
    whole = left.in_units_of(right) if target is operator.floordiv else None
    if whole is not None:
        return whole
    if target not in _ARITHMETIC or left.number is None or right.number is None:
        return None
    return number(_ARITHMETIC[target](left.number, right.number))


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise NotStaticError("no value of the graph")
    return value
