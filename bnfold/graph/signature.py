"""Bind the arguments of a graph node to the parameter names of the function it calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

__all__ = ["NotStaticError", "Signature", "static"]


class NotStaticError(Exception):
    """An argument that the vocabulary needs as a number is computed at run time, or the call does not fit."""


class Signature:
    """The parameters of a function: ``Signature("input, kernel_size, stride=None")``.

    A default is written as a Python literal. Defaults of operators are those of their documentation.
    """

    __slots__ = ("defaults", "names")

    def __init__(self, text: str) -> None:
        self.names: list[str] = []
        self.defaults: dict[str, Any] = {}
        for part in text.split(","):
            name, _, default = part.strip().partition("=")
            self.names.append(name)
            if default:
                self.defaults[name] = _LITERALS[default] if default in _LITERALS else _number(default)

    def bind(self, node: Node) -> dict[str, Any]:
        """Return ``{parameter: argument}`` with defaults filled in.

        Raises:
            NotStaticError: the call has arguments that this signature does not know, or lacks one.
        """
        names = self.names
        if len(node.args) > len(names):
            raise NotStaticError(f"{node.name} has more arguments than {names}")
        bound: dict[str, Any] = dict(self.defaults)
        bound.update(zip(names, node.args, strict=False))
        for name, value in node.kwargs.items():
            key = "input" if name == "self" else name
            if key not in names:
                raise NotStaticError(f"{node.name} has an argument {name}")
            bound[key] = value
        missing = [name for name in names if name not in bound]
        if missing:
            raise NotStaticError(f"{node.name} lacks {missing}")
        return bound

    def put(self, node: Node, values: Mapping[str, Any]) -> None:
        """Set arguments of ``node`` by parameter name, in place."""
        args, kwargs = list(node.args), dict(node.kwargs)
        for name, value in values.items():
            index = self.names.index(name)
            if index < len(args):
                args[index] = value
            else:
                kwargs[name] = value
        node.args, node.kwargs = tuple(args), kwargs


_LITERALS: dict[str, Any] = {"None": None, "True": True, "False": False, "()": (), "[]": []}


def _number(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    return float(text) if any(mark in text for mark in ".e") else int(text)


def static(value: Any) -> Any:
    """Return ``value`` with lists as tuples, if no part of it is computed at run time.

    Raises:
        NotStaticError: part of it is a :class:`torch.fx.Node`.
    """
    if isinstance(value, Node):
        raise NotStaticError(f"{value.name} is computed at run time")
    if isinstance(value, (list, tuple)):
        return tuple(static(part) for part in value)
    return value
