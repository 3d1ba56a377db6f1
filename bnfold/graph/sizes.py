"""What a graph itself tells of sizes, whatever the batch, the height and the width of its input.

Sizes (:mod:`bnfold.ops.symbolic`) are followed through the graph, from each operation's inputs to its output. Numbers
that the graph computes of sizes, and reshapes to such numbers, are read here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Node

from bnfold import ops
from bnfold.graph.reading import static
from bnfold.graph.requires import require_shape
from bnfold.ops.spelling import NotStaticError
from bnfold.ops.symbolic import ONE, Shape, Sight, Size, broadcast, number, product

if TYPE_CHECKING:
    from bnfold.graph.facts import Facts

__all__ = ["Sizes"]


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
                return broadcast(read, fresh) if self._pointwise(node) else None
            first = call.inputs[0]
            before = tensors.get(first, ()) if isinstance(call, ops.Item) else tensors[first]
            if isinstance(call, ops.Reshape):
                return _Reshaped(node, self.facts, tensors, numbers).sizes(before)
            return call.sizes(before, Sight(self.facts, tensors, fresh))
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
    return node.op == "call_method" or home.startswith(("torch", "_operator", "bnfold.ops.inplace"))


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


@dataclass(frozen=True, eq=False)
class _Reshaped:
    """What a reshape makes of the sizes of its input.

    Attributes:
        node: the reshape.
        facts: the graph.
        tensors: sizes of the values before it.
        numbers: and of numbers computed from sizes, and tuples of them.
    """

    node: Node
    facts: Facts
    tensors: dict[Node, Shape]
    numbers: dict[Node, Any]

    def sizes(self, before: Shape) -> Shape | None:
        node = self.node
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
