"""How operations are spelled: what a front end looks up to read a node as an operation.

Each family of operations keeps its spellings beside its classes, in a :class:`Spellings`: functions of torch and aten
operators, tensor methods, layers by type, and ONNX operators. A spelling has a *reader*, which makes an operation of
what the node is given, its :class:`Arguments`; one reader serves all spellings whose parameters mean the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from bnfold.ops.interface import Source, Value
    from bnfold.ops.operation import Operation

__all__ = [
    "ANYTHING",
    "BINARY",
    "UNARY",
    "Arguments",
    "NotStaticError",
    "Reader",
    "Signature",
    "Spellings",
    "one_input",
]


class NotStaticError(Exception):
    """What an operation needs as a number is computed at run time, or the call does not fit."""


class Arguments(ABC):
    """What a node gives to an operation, by the names of its parameters.

    Attributes:
        layer: the layer that is called; None for anything else.
        name: the layer's name, or None.
    """

    layer: Any = None
    name: str | None = None

    @abstractmethod
    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument as it stands there."""

    @abstractmethod
    def is_value(self, argument: Any) -> bool:
        """Whether an argument is a value of the graph, and no literal."""

    @abstractmethod
    def value(self, name: str = "input") -> Value:
        """Return an argument that is a value. Raises :class:`NotStaticError` for a literal."""

    @abstractmethod
    def source(self, name: str) -> Source:
        """Return where a parameter comes from. Raises :class:`NotStaticError` for a literal other than None."""

    @abstractmethod
    def plain(self, argument: Any) -> Any:
        """Return a literal, lists as tuples. Raises :class:`NotStaticError` where part of it is a value."""

    def static(self, name: str, default: Any = None) -> Any:
        """Return an argument that is a literal, as :meth:`plain` does."""
        return self.plain(self.get(name, default))


Reader: TypeAlias = "Callable[[Value, Arguments], Operation | None]"


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

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``{parameter: argument}`` with defaults filled in.

        Raises:
            NotStaticError: there are arguments that this signature does not know, or one is lacking.
        """
        names = self.names
        if len(args) > len(names):
            raise NotStaticError(f"more arguments than {names}")
        bound: dict[str, Any] = dict(self.defaults)
        bound.update(zip(names, args, strict=False))
        for name, value in kwargs.items():
            key = _SYNONYMS.get(name, name)
            if key not in names:
                raise NotStaticError(f"an argument {name}")
            bound[key] = value
        missing = [name for name in names if name not in bound]
        if missing:
            raise NotStaticError(f"without {missing}")
        return bound


_SYNONYMS = {"self": "input", "axis": "dim", "keepdims": "keepdim"}
"""Other names that torch takes for a parameter; the last two are numpy's."""

_LITERALS: dict[str, Any] = {"None": None, "True": True, "False": False, "()": (), "[]": []}


def _number(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    return float(text) if any(mark in text for mark in ".e") else int(text)


class _Anything(Signature):
    """For operations whose other arguments only say sizes, which are known from the shapes."""

    def __init__(self) -> None:
        super().__init__("input")

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"input": args[0] if args else kwargs.get("input", kwargs.get("self")), "rest": (*args[1:],), **kwargs}


ANYTHING = _Anything()
UNARY = Signature("input")
BINARY = Signature("input, other, alpha=1")


@dataclass(frozen=True)
class Spellings:
    """The spellings of a family of operations.

    Attributes:
        functions: functions of torch and aten operators, each with its parameters.
        methods: tensor methods by name, each with its parameters.
        layers: by exact type: a subclass may compute anything.
        onnx: operators by name; a reader takes a node's inputs and attributes by the names that ONNX gives them.
    """

    functions: dict[Any, tuple[Signature, Reader]] = field(default_factory=dict)
    methods: dict[str, tuple[Signature, Reader]] = field(default_factory=dict)
    layers: dict[type, Reader] = field(default_factory=dict)
    onnx: dict[str, Reader] = field(default_factory=dict)

    def function(self, signature: Signature, reader: Reader, *spellings: Any) -> None:
        """Add functions of torch, and aten operators, with the same parameters."""
        self._add(self.functions, spellings, (signature, reader))

    def method(self, signature: Signature, reader: Reader, *names: str) -> None:
        """Add tensor methods with the same parameters."""
        self._add(self.methods, names, (signature, reader))

    def layer(self, reader: Reader, *kinds: type) -> None:
        """Add types of layers whose settings have the same names."""
        self._add(self.layers, kinds, reader)

    @staticmethod
    def _add(table: dict[Any, Any], spellings: Sequence[Any], row: Any) -> None:
        for spelling in dict.fromkeys(spellings):
            if spelling in table:
                raise ValueError(f"{spelling} is spelled twice")
            table[spelling] = row


def one_input(make: Callable[[Value, Value], Operation]) -> Reader:
    """Return the reader of an operation of which nothing but its input matters."""
    return lambda node, a: make(node, a.value())
