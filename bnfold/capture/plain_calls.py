"""``int(x)``, ``float(x)`` and ``len(x)`` in the model's code, where ``x`` depends on sizes.

Python lets these give nothing but plain numbers, so a size that passes one would be held fast: ``int(h * 0.5)`` is what
it is for the ``h`` of this run. Functions in which that happened are run again with calls that keep how the number was
computed. Only the name that is called is changed, in a copy of the function's code, and only where all that the
function does with it is to call it: ``isinstance(x, int)`` and ``dtype=float`` mean the types, and such a function
stays as it is.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import gc
import threading
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any, TypeAlias

from torch import Tensor

from bnfold.graph.leaves import is_foreign
from bnfold.graph.traced import TracedFloat, TracedInt, computed

__all__ = ["PlainCalls", "calls_plainly", "functions_of", "keeping_sizes"]

PlainCalls: TypeAlias = "set[tuple[CodeType, ...]]"  # of what :func:`calls_plainly` returns
_PLAIN = ("int", "float", "len")


def calls_plainly(frame: FrameType | None) -> tuple[CodeType, ...]:
    """Return the code that a frame runs and those that it is written in; empty where it is not the model's."""
    found: list[CodeType] = []
    while frame is not None and (not found or found[-1] in frame.f_code.co_consts):
        found.append(frame.f_code)
        frame = frame.f_back
    return () if not found or is_foreign(found[0].co_filename) else tuple(found)


def functions_of(codes: PlainCalls) -> dict[FunctionType, CodeType]:
    """Return the functions that run some codes of :func:`calls_plainly`, with the code to run in their place."""
    outer = {chain[-1]: None for chain in codes if chain}
    found: dict[FunctionType, CodeType] = {}
    for code in outer:
        new = _rewritten(code)
        if new is code:
            continue
        for holder in gc.get_referrers(code):
            runs = type(holder) is FunctionType and holder.__code__ is code
            if runs and not any(name in holder.__globals__ for name in _PLAIN):
                found[holder] = new
    return found


def _rewritten(code: CodeType) -> CodeType:
    """Return a code that calls our functions for the plain ones, where it does nothing but call these."""
    uses: dict[str, bool] = dict.fromkeys(_PLAIN, True)
    for instruction in dis.get_instructions(code):
        if instruction.argval in uses and instruction.opcode in dis.hasname:
            # from Python 3.11 on, the lowest bit says that what is loaded is called
            called = instruction.opname == "LOAD_GLOBAL" and _TELLS_CALLS and bool((instruction.arg or 0) & 1)
            uses[instruction.argval] &= called
    names = tuple(_OURS[name] if uses.get(name) else name for name in code.co_names)
    constants = tuple(_rewritten(part) if isinstance(part, CodeType) else part for part in code.co_consts)
    same = names == code.co_names and all(a is b for a, b in zip(constants, code.co_consts, strict=True))
    return code if same else code.replace(co_names=names, co_consts=constants)


_TELLS_CALLS = "LOAD_GLOBAL" in dis.opmap and "PUSH_NULL" in dis.opmap
_OURS = {name: f"__bnfold_{name}__" for name in _PLAIN}
_LOCK = threading.RLock()


@contextlib.contextmanager
def keeping_sizes(functions: dict[FunctionType, CodeType]) -> Iterator[None]:
    """While entered, functions run the codes of :func:`functions_of`."""
    with _LOCK:
        for name, function in (("int", _int), ("float", _float), ("len", _len)):
            setattr(builtins, _OURS[name], function)  # they stay: a frame of another thread may still look for them
        before = {function: function.__code__ for function in functions}
        try:
            for function, code in functions.items():
                function.__code__ = code
            yield
        finally:
            for function, code in before.items():
                function.__code__ = code


def _int(*args: Any, **kwargs: Any) -> Any:
    if len(args) == 1 and not kwargs:
        value = args[0]
        if type(value) is TracedInt:
            return value
        if type(value) is TracedFloat:
            return computed(value.session, int, (value,))
    return int(*args, **kwargs)


def _float(*args: Any) -> Any:
    if len(args) == 1:
        value = args[0]
        if type(value) is TracedFloat:
            return value
        if type(value) is TracedInt:
            return computed(value.session, float, (value,))
    return float(*args)


def _len(value: Any, /) -> Any:
    if isinstance(value, Tensor) and value.dim():
        return value.size(0)
    return len(value)
