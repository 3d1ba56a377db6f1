"""Numbers that a recorded run computes from sizes: each knows its value in this run, and how it was computed.

``x.shape[2] // 2`` is 16 in a run on inputs of height 32, and another number in another run. A :class:`TracedInt`
answers every question with the 16 of this run; where it is used in a call, the computation becomes part of the graph,
and where it decides something (``if h < 16``, a key of a dict, a ``range``), the graph gets a check that the decision
comes out the same.

They derive from torch's own symbolic numbers, since torch's functions take these wherever they take a number, and from
nothing else that is not an ``int``. To ``isinstance`` they are an ``int`` and a ``float``.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bnfold.graph.requires import COMPARISONS

__all__ = ["Expression", "Session", "TracedFloat", "TracedInt", "computed", "settled"]


class Expression:
    """How a number is computed: a function of numbers and other expressions, or a node of the graph."""

    __slots__ = ("args", "function", "key", "node", "text")

    def __init__(
        self, function: Callable[..., Any] | None, args: tuple[Any, ...], text: str, node: Node | None
    ) -> None:
        self.function = function
        self.args = args
        self.text = text
        self.node = node
        self.key: Any = node if node is not None else (function, *(_key(arg) for arg in args))


class Session(Protocol):
    """What a number needs of the recorder that made it."""

    hashed: bool  # whether a number may be a key somewhere

    @property
    def open(self) -> bool:
        """Whether the run still goes on."""

    def decided(self, left: Any, comparison: str, right: Any, holds: bool) -> None:
        """Note that a comparison decided something."""

    def called_plainly(self, frame: FrameType) -> None:
        """Note that code asked for a plain number where one that knows how it was computed would do."""

    def unknown(self, text: str) -> Any:
        """Raise: the value of this number is asked for, and no example input gives it one."""


def settled(value: Any) -> Any:
    """Return a number's value in this run; anything else as it is."""
    return value.value if type(value) in (TracedInt, TracedFloat) else value


def _key(value: Any) -> Any:
    return value.expression.key if type(value) in (TracedInt, TracedFloat) else (type(value), value)


def _text(value: Any) -> str:
    if type(value) in (TracedInt, TracedFloat):
        return str(value.expression.text)
    return repr(value)


class _Traced:
    """What both kinds of number have in common."""

    __slots__ = ()
    value: Any
    expression: Expression
    session: Session

    # --- what decides -------------------------------------------------------------------------------------------

    def _pinned(self) -> Any:
        """Return the value, and let the graph check that it is this one."""
        if self.value is None:
            self.session.unknown(self.expression.text)
        if self.session.open:
            self.session.decided(self, "==", self.value, True)
        return self.value

    def __bool__(self) -> bool:
        return bool(self._compared("!=", 0))

    def __hash__(self) -> int:
        if sys._getframe(1).f_code.co_filename.endswith(_HASHES_SYMBOLS):
            raise TypeError("unhashable type: a size that is not known yet")
        self.session.hashed = True
        return hash(self._pinned())

    def _compared(self, comparison: str, other: Any) -> Any:
        if type(other) not in (int, float, bool, TracedInt, TracedFloat):
            if isinstance(other, Tensor) or not isinstance(other, numbers.Real):
                return NotImplemented
            other = int(other) if isinstance(other, numbers.Integral) else float(other)  # a number of numpy's
        if self.value is None or settled(other) is None:
            self.session.unknown(f"{_text(self)} {comparison} {_text(other)}")
        holds = bool(COMPARISONS[comparison](self.value, settled(other)))
        if self.session.open and _key(self) != _key(other):
            self.session.decided(self, comparison, other, holds)
        return holds

    def __eq__(self, other: object) -> Any:
        return self._compared("==", other)

    def __ne__(self, other: object) -> Any:
        return self._compared("!=", other)

    def __lt__(self, other: Any) -> Any:
        return self._compared("<", other)

    def __le__(self, other: Any) -> Any:
        return self._compared("<=", other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(">=", other)

    def __int__(self) -> int:
        self.session.called_plainly(sys._getframe(1))
        if self.value is None or isinstance(self.value, int):
            return int(self._pinned())
        return int(computed(self.session, int, (self,))._pinned())

    def __float__(self) -> float:
        self.session.called_plainly(sys._getframe(1))
        return float(self._pinned())

    def __complex__(self) -> complex:
        return complex(self._pinned())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self._pinned(), dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = _OF_NUMPY.get(ufunc)
        exact = all(isinstance(one, _EXACT) for one in inputs if isinstance(one, np.generic))
        if (
            function is None
            or not exact
            or method != "__call__"
            or kwargs
            or any(isinstance(one, np.ndarray) for one in inputs)
        ):
            plain = [one._pinned() if type(one) in (TracedInt, TracedFloat) else one for one in inputs]
            return getattr(ufunc, method)(*plain, **kwargs)
        return function(*(one.item() if isinstance(one, np.generic) else one for one in inputs))

    def __str__(self) -> str:
        return str(self._pinned())

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(self._pinned(), spec)

    def __getattr__(self, name: str) -> Any:  # .bit_length(), .real, .is_integer()
        if name.startswith("__") or not hasattr(type(self.value), name):
            raise AttributeError(f"'{type(self.value).__name__}' object has no attribute '{name}'")
        return getattr(self._pinned(), name)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return type(self.value), (self._pinned(),)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return self.__reduce__()

    # --- what computes ------------------------------------------------------------------------------------------

    def __round__(self, digits: int | None = None) -> Any:
        return computed(self.session, round, (self,) if digits is None else (self, digits))

    def __floor__(self) -> Any:
        return computed(self.session, math.floor, (self,))

    def __ceil__(self) -> Any:
        return computed(self.session, math.ceil, (self,))

    def __trunc__(self) -> Any:
        return computed(self.session, math.trunc, (self,))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self


# einops asks for the hash of a shape, and computes without its cache where there is none, as for torch's own symbols.
_HASHES_SYMBOLS = "einops/einops.py"


class TracedInt(_Traced, torch.SymInt):
    """A whole number that depends on sizes."""

    __slots__ = ("expression", "session", "value")

    def __init__(self, value: int | None, expression: Expression, session: Session) -> None:
        self.value = value
        self.expression = expression
        self.session = session

    __class__ = property(lambda _self: int)
    __hash__ = _Traced.__hash__

    def __index__(self) -> int:
        return int(self._pinned())


class TracedFloat(_Traced, torch.SymFloat):
    """A floating number that depends on sizes."""

    __slots__ = ("expression", "session", "value")

    def __init__(self, value: float | None, expression: Expression, session: Session) -> None:
        self.value = value
        self.expression = expression
        self.session = session

    __class__ = property(lambda _self: float)
    __hash__ = _Traced.__hash__


def computed(session: Session, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return what a function makes of numbers, with how it was computed."""
    values = [*map(settled, args)]
    value = None if None in values else function(*values)
    kind = _FLOAT_OF.get(function, TracedInt) if value is None else _KINDS.get(type(value))
    if not session.open:
        return value
    if kind is None:  # a complex number, a bool: nothing that torch has a symbol for
        for arg in args:
            if type(arg) in (TracedInt, TracedFloat):
                session.decided(arg, "==", arg.value, True)
        return value
    name = _SIGNS.get(function)
    texts = [_text(arg) for arg in args]
    text = f"({texts[0]} {name} {texts[1]})" if name else f"{function.__name__}({', '.join(texts)})"
    expression = Expression(function, args, text, None)
    return kind(value, expression, session)


_KINDS: dict[type, Any] = {int: TracedInt, float: TracedFloat}
_FLOAT_OF: dict[Any, Any] = {operator.truediv: TracedFloat, float: TracedFloat, torch.sym_float: TracedFloat}
_SIGNS: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.lshift: "<<",
    operator.rshift: ">>",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
}
_OF_NUMPY: dict[Any, Callable[..., Any]] = {  # what numpy's functions, and its numbers beside ours, are
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.floor_divide: operator.floordiv,
    np.remainder: operator.mod,
    np.power: operator.pow,
    np.equal: operator.eq,
    np.not_equal: operator.ne,
    np.less: operator.lt,
    np.less_equal: operator.le,
    np.greater: operator.gt,
    np.greater_equal: operator.ge,
    np.ceil: lambda x: computed(x.session, float, (math.ceil(x),)),
    np.floor: lambda x: computed(x.session, float, (math.floor(x),)),
}
_EXACT = (np.int64, np.float64)  # numbers of numpy's that compute as Python's do
_ONLY_WHOLE = (operator.lshift, operator.rshift, operator.and_, operator.or_, operator.xor)
_NAMES: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}


def _binary(function: Callable[[Any, Any], Any], *, swapped: bool) -> Callable[[Any, Any], Any]:
    def compute(self: Any, other: Any, *modulus: Any) -> Any:
        if modulus:
            return pow(self._pinned(), settled(other), settled(modulus[0]))
        if isinstance(other, np.generic) and not isinstance(other, _EXACT):
            return NotImplemented  # which rounds, or runs over, as no number of Python's does
        if type(other) not in (int, float, TracedInt, TracedFloat):
            if isinstance(other, Tensor) or not isinstance(other, numbers.Real):
                return NotImplemented
            other = int(other) if isinstance(other, numbers.Integral) else float(other)  # a bool, a number of numpy's
        if function in _ONLY_WHOLE and isinstance(settled(other), float):
            return NotImplemented
        return computed(self.session, function, (other, self) if swapped else (self, other))

    return compute


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: computed(self.session, function, (self,))


def _symbolic(function: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.sym_max`` and its kin call: a computation, and no decision."""
    return lambda self, *others: computed(self.session, function, (self, *others))


def _asked(name: str) -> Callable[[Any], Any]:
    return lambda self: getattr(self._pinned(), name)()


_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "invert": operator.invert,
}
_SYMBOLIC: dict[str, Callable[..., Any]] = {
    "max": torch.sym_max,
    "min": torch.sym_min,
    "float": torch.sym_float,
    "int": torch.sym_int,
}
_KINDS_OF_NUMBERS: tuple[type, ...] = (TracedInt, TracedFloat)
for _kind in _KINDS_OF_NUMBERS:
    for _name, _two in _NAMES.items():
        setattr(_kind, f"__{_name}__", _binary(_two, swapped=False))
        setattr(_kind, f"__r{_name}__", _binary(_two, swapped=True))
    for _name, _one in _UNARY.items():
        setattr(_kind, f"__{_name}__", _unary(_one))
    for _name, _any in _SYMBOLIC.items():
        setattr(_kind, f"__sym_{_name}__", _symbolic(_any))
    for _name in ("as_integer_ratio", "bit_length", "conjugate", "hex", "is_integer"):  # torch's would want its node
        setattr(_kind, _name, _asked(_name))
