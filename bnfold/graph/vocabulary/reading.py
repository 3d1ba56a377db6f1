"""What the tables are made of: readers, and how they take a node's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.signature import NotStaticError, Signature

__all__ = [
    "ANYTHING",
    "BINARY",
    "UNARY",
    "Arguments",
    "FunctionReader",
    "ModuleReader",
    "Row",
    "input_of",
    "one_input",
    "parameter_of",
    "source_of",
    "spelled",
    "value_of",
]

Arguments: TypeAlias = dict[str, Any]
ModuleReader: TypeAlias = Callable[[Node, Any, str], calls.Call]
FunctionReader: TypeAlias = Callable[[Node, Arguments], "calls.Call | None"]
Row: TypeAlias = tuple[Signature, FunctionReader]


def value_of(value: Any) -> Node:
    """Return an argument that must be a value of the graph.

    Raises:
        NotStaticError: it is a literal.
    """
    if not isinstance(value, Node):
        raise NotStaticError("the operation is called on a literal")
    return value


def input_of(node: Node) -> Node:
    """Return the value that a call of a layer reads: its first argument, by position or by name."""
    value = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return value_of(value)


def parameter_of(module: nn.Module, name: str, target: str) -> calls.Source:
    """Return the qualified name of a layer's tensor, or None where the layer has none of that name."""
    return None if getattr(module, name, None) is None else f"{target}.{name}"


def source_of(value: Any) -> calls.Source:
    """Return where an argument that is a tensor, or None, comes from."""
    if value is None:
        return None
    node = value_of(value)
    return str(node.target) if node.op == "get_attr" else node


def one_input(make: Callable[[Node, Node], calls.Call]) -> FunctionReader:
    """Return the reader of an operation of which nothing but its input matters."""
    return lambda node, a: make(node, value_of(a["input"]))


def spelled(table: dict[Any, Row], row: Row, *spellings: Any) -> None:
    """Give several spellings the same row."""
    table.update(dict.fromkeys(spellings, row))


class _Anything(Signature):
    """A signature for operations whose arguments only say sizes, which are known from the shapes."""

    def __init__(self) -> None:
        super().__init__("input")

    def bind(self, node: Node) -> dict[str, Any]:  # noqa: ARG002
        return {}


ANYTHING = _Anything()
UNARY = Signature("input")
BINARY = Signature("input, other, alpha=1")
