"""``type(x.shape[2]) is int`` is true in a recorded run, as in any other.

A size that is followed through a run is an ``int`` of a class of its own. ``isinstance``, ``__class__`` and patterns
take it for an ``int``; ``type`` alone tells it apart. So while a run is recorded, the name ``type`` stands for a class
that answers as the built-in does in a run without a recorder, in the files of the model's code that use the name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from bnfold.graph.leaves import is_foreign, is_torchs
from bnfold.graph.traced import TracedFloat, TracedInt

__all__ = ["exact_types"]

_PLAIN: dict[type, type] = {TracedInt: int, TracedFloat: float}


class _Answers(type):
    """Lets a class be called, and asked, as ``type`` is."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        found = type(*args, **kwargs)
        if len(args) > 1:
            return found
        return cls if found is type else _PLAIN.get(found, found)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, type)


class _Type(type, metaclass=_Answers):
    """What ``type`` stands for."""


_Type.__name__ = _Type.__qualname__ = "type"


@contextlib.contextmanager
def exact_types(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While this is entered, ``type`` answers ``int`` or ``float`` for followed sizes, in the code of these modules."""
    changed: list[dict[str, Any]] = []
    kinds: dict[Any, None] = dict.fromkeys(type(module) for module in modules if not is_torchs(module))
    try:
        for kind in kinds:
            for function in _that_ask(kind):
                if "type" not in function.__globals__:
                    changed.append(function.__globals__)
                    function.__globals__["type"] = _Type
        yield
    finally:
        for names in changed:
            names.pop("type", None)


@lru_cache(maxsize=4096)
def _that_ask(kind: type) -> tuple[FunctionType, ...]:
    """Return the functions of a class, and those that they name, whose code holds the name ``type``."""
    owners = [owner for owner in kind.__mro__ if owner is not nn.Module and owner is not object]
    stack = [each for owner in owners for each in map(_function, vars(owner).values()) if each is not None]
    seen: set[FunctionType] = set()
    while stack:
        function = stack.pop()
        if function in seen or is_foreign(function.__code__.co_filename):
            continue
        seen.add(function)
        names = {name for code in _codes(function.__code__) for name in code.co_names}
        stack += [each for name in names if isinstance(each := function.__globals__.get(name), FunctionType)]
    return tuple(each for each in seen if any("type" in code.co_names for code in _codes(each.__code__)))


def _function(value: Any) -> FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return value if isinstance(value, FunctionType) else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of all functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
