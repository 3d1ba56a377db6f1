"""The graph of a recorded run: which node stands for which value."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnfold.capture.failures import NotArgumentError
from bnfold.capture.lines import here, user_line, user_lines
from bnfold.capture.tables import OPERATORS
from bnfold.graph.captured import DTYPE, NARROW
from bnfold.graph.dataless import leaves
from bnfold.graph.traced import TracedFloat, TracedInt

__all__ = ["TRACED", "Deps", "Nodes", "memory_of", "plain_node"]

Deps = dict[Any, Any]  # the traced numbers that a tensor depends on, by the key of their expression
TRACED = (TracedInt, TracedFloat)
_LITERALS = frozenset((int, float, bool, str, type(None)))


class Nodes:
    """A graph in the making, and the node for each tensor and number.

    Args:
        root: the model.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}  # what the graph reads and the model does not hold
        self.shapes: dict[Node, tuple[int, ...]] = {}
        self.blind = False
        self.scope = ""  # the part of the model whose code runs
        self._folder = here()
        self._nodes: dict[int, Node] = {}
        self._deps: dict[int, Deps] = {}  # of real tensors that the code made
        self._memory_deps: dict[int, Deps] = {}
        self._made_at: dict[int, str | None] = {}  # the memory of real tensors that the code made
        self._alive: list[Any] = []  # an id names a tensor only as long as it lives
        self._names: dict[int, str] = {}
        self._constant_names: dict[int, str] = {}
        self._attributes: dict[str, Node] = {}
        self._numbers: dict[Any, Node] = {}
        self._narrow: dict[str, torch.dtype] = {}
        self._dtypes: dict[torch.dtype, Node] = {}
        self._devices: dict[int, tuple[torch.device, Node]] = {}
        self._devices_used: set[int] = set()

    def depends_on_data(self, found: Sequence[Any]) -> bool:
        """Whether a value among tensors and numbers depends on the model's input."""
        raise NotImplementedError

    def pin(self, found: Sequence[Any]) -> None:
        """Let the graph check the numbers that a value depends on, whose content is asked for."""
        raise NotImplementedError

    def name_constant(self, tensor: Tensor, name: str, narrow: torch.dtype | None = None) -> None:
        """Give a tensor that the model does not hold a name in the graph."""
        self.constants[name] = tensor
        self._constant_names[id(tensor)] = name
        if narrow is not None:
            self._narrow[name] = narrow

    def name_of(self, tensor: Tensor) -> str | None:
        """Return the name of a tensor that the model holds."""
        return self._names.get(id(tensor))

    def record(self, func: Any, name: str, args: Any, kwargs: Any) -> Node:
        """Add a node for a call of torch, at the level at which the code wrote it."""
        nodes = [self.arg(value) for value in args]
        named = {key: self.arg(value) for key, value in kwargs.items()}
        if name == "__deepcopy__":
            return self.mark(plain_node(self.graph, "call_method", "clone", (nodes[0],), {}))
        if name == "__get__":
            return self.mark(plain_node(self.graph, "call_function", getattr, (nodes[0], func.__self__.__name__), {}))
        written = OPERATORS.get(func)
        if written is not None and len(nodes) == written[1] and not named:
            target, _, swapped = written
            return self.mark(
                plain_node(self.graph, "call_function", target, tuple(nodes[::-1] if swapped else nodes), {})
            )
        kind = type(func)
        if kind in (MethodDescriptorType, WrapperDescriptorType) or (
            kind is FunctionType and func.__module__ == "torch._tensor"
        ):
            return self.mark(plain_node(self.graph, "call_method", name, tuple(nodes), named))
        return self.mark(plain_node(self.graph, "call_function", func, tuple(nodes), named))

    def require(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
        """Add a node for a call that the code did not write; arguments are nodes and plain values."""
        return self.mark(plain_node(self.graph, "call_function", function, args, dict(kwargs or {})))

    def mark(self, node: Node) -> Node:
        """Note where in the user's code a node comes from, and return it."""
        lines = user_lines(self._folder)
        node.meta["source"], node.meta["lines"] = next(iter(lines), None), lines
        node.meta["module"] = self.scope
        return node

    def put(self, node: Node, value: Any, deps: Deps | None = None) -> None:
        """Let a node stand for a value: a tensor, or a nest with some."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._alive.append(value)
            if not value.is_meta:
                self._deps[id(value)] = deps or {}
                if deps:
                    self._memory_deps.setdefault(memory_of(value), {}).update(deps)
                self._made_at.setdefault(memory_of(value), node.meta.get("source"))
            elif not self.blind:
                self.shapes[node] = tuple(value.size())
                node.meta[DTYPE] = value.dtype
        elif isinstance(value, (tuple, list)):
            for index, part in enumerate(value):
                if leaves(part, []):
                    self.put(plain_node(self.graph, "call_function", operator.getitem, (node, index), {}), part, deps)
        elif isinstance(value, dict):
            for key, part in value.items():
                if leaves(part, []):
                    self.put(plain_node(self.graph, "call_function", operator.getitem, (node, key), {}), part, deps)

    def node_of(self, tensor: Tensor) -> Node:
        """Return the node that a tensor is, or that reads it from the model."""
        node = self._nodes.get(id(tensor))
        if node is not None:
            return node
        if tensor.is_meta:
            self.depends_on_data((tensor,))
        name = self._names.get(id(tensor)) or self._constant_names.get(id(tensor))
        if name is None:
            self.pin((tensor,))  # what it was made of, out of sight, is what it holds
            name = f"_tensor_constant{len(self.constants)}"
            while hasattr(self.root, name):
                name = "_" + name
            self.constants[name] = tensor
            self._constant_names[id(tensor)] = name
            self._alive.append(tensor)
        node = self._attributes.get(name)
        if node is None:
            node = self._attributes[name] = self.mark(plain_node(self.graph, "get_attr", name, (), {}))
            if name in self._narrow:
                node.meta[NARROW] = self._narrow[name]
            self.shapes[node] = tuple(tensor.size())
        return node

    def _number(self, traced: Any) -> Any:
        """Return the node that computes a number when the graph runs."""
        expression = traced.expression
        if traced.session is not self:
            return traced.value
        if expression.node is not None:
            return expression.node
        node = self._numbers.get(expression.key)
        if node is None:
            args = tuple(self._number(arg) if type(arg) in TRACED else arg for arg in expression.args)
            node = self.mark(plain_node(self.graph, "call_function", expression.function, args, {}))
            self._numbers[expression.key] = node
        expression.node = node
        return node

    def arg(self, value: Any) -> Any:
        """Return what stands for a value as an argument of a node."""
        kind = type(value)
        if kind in _LITERALS:
            return value
        if isinstance(value, Tensor):
            return self.node_of(value)
        if kind in TRACED:
            return self._number(value)
        if isinstance(value, (tuple, list)):
            parts = [self.arg(part) for part in value]
            if hasattr(value, "_fields"):
                return kind(*parts)
            return parts if isinstance(value, list) else tuple(parts)
        if kind is torch.device:
            asked = self._devices.get(id(value))
            if asked is None:
                return value
            self._devices_used.add(id(value))
            return self.mark(plain_node(self.graph, "call_function", getattr, (asked[1], "device"), {}))
        if kind is torch.dtype:
            return self._dtypes.get(value, value)
        if kind is dict:
            return {key: self.arg(part) for key, part in value.items()}
        if kind is slice:
            return slice(self.arg(value.start), self.arg(value.stop), self.arg(value.step))
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, (int, float, str)):  # a subclass, such as an enumeration's
            return kind.__mro__[-2](value) if kind.__mro__[-2] in (int, float, str) else value
        if kind in (type(Ellipsis), torch.memory_format, torch.layout, complex):
            return value
        raise NotArgumentError(kind, user_line())  # not remembered: what is made of plain values keeps its value


def plain_node(graph: Graph, op: str, target: Any, args: Any, kwargs: Any) -> Node:
    """Add a node to a graph."""
    node = graph.create_node(op, target, (), {})
    node.args = args  # given to `create_node`, the arguments would be searched for symbolic sizes
    if kwargs:
        node.kwargs = kwargs
    return node


def memory_of(tensor: Tensor) -> int:
    """Return what names the memory of a tensor, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
