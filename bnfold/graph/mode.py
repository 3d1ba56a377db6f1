"""Whether a module computes in training mode what it computes in eval mode.

Only parts that are in training mode *and* mind it are refused. Of torch's layers it is known which do; of all other
code, whether it mentions ``training``: a container whose ``forward`` never asks does the same in both modes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import nn

from bnfold.errors import TrainingModeError

__all__ = ["minds_training", "require_eval", "training_parts"]

_SHOWN = 5  # names in a message

_DROPS = "drops values at random"
_LAYERS: tuple[tuple[Any, Callable[[Any], bool], str], ...] = (
    (nn.modules.batchnorm._NormBase, lambda layer: layer.running_mean is not None, "normalises by its batch"),
    (nn.modules.dropout._DropoutNd, lambda layer: layer.p > 0, _DROPS),
    (nn.RReLU, lambda layer: layer.lower != layer.upper, "draws its slopes at random"),
    (nn.RNNBase, lambda layer: layer.dropout > 0, _DROPS),
    (nn.MultiheadAttention, lambda layer: layer.dropout > 0, _DROPS),
    ((nn.TransformerEncoder, nn.TransformerEncoderLayer), lambda _: True, "treats padding in another way"),
)  # what of torch's layers minds the mode, when, and why; FractionalMaxPool, say, is as random in eval mode
_LIBRARIES = ("torch", "numpy", "math", "typing", "collections", "functools", "operator", "einops")


def training_parts(parts: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the parts that are in training mode and mind it, with why: ``{"drop": "drops values at random"}``.

    Args:
        parts: a model's modules by name, as ``named_modules`` gives them.
    """
    known: dict[type, str | None] = {}
    found = {name: minds_training(part, known) for name, part in parts.items() if part.training}
    return {name or "the model itself": why for name, why in found.items() if why is not None}


def minds_training(module: nn.Module, known: dict[type, str | None] | None = None) -> str | None:
    """Return why a module itself, not its parts, computes something else in training mode; None where it does not.

    A normalisation that holds no running statistics uses its batch's in both modes, and a dropout of nothing is the
    identity. Code that is not torch's minds the mode if it mentions ``training``, by name or as text, in any method of
    any class of its, in a function that the module holds, in its hooks, or in a function that one of these calls by
    name; and, in case of doubt, if it cannot be seen.

    Args:
        module: in whichever mode.
        known: answers for classes, filled as they are found.
    """
    for kinds, minds, why in _LAYERS:
        if isinstance(module, kinds) and minds(module):
            return why
    if isinstance(module, torch.jit.ScriptModule):
        return "is TorchScript, whose code is not looked into"
    state = vars(module)
    hooks = [hook for name in ("_forward_pre_hooks", "_forward_hooks") for hook in state.get(name, {}).values()]
    if any(_mentions(hook) for hook in hooks):
        return "carries a hook that reads `training`"
    known = {} if known is None else known
    kind = type(module)
    if kind not in known:
        known[kind] = _class_minds(kind)
    if known[kind] is None and any(_mentions(value) for held in state.values() for value in _functions(held)):
        return "holds a function that reads `training`"
    return known[kind]


def _class_minds(kind: type) -> str | None:
    """Why a class's own code minds the mode, or is taken to."""
    unseen = None
    for base in kind.__mro__:
        if base in (nn.Module, object) or base.__module__.startswith(("torch.nn.modules.", "torch.fx.")):
            continue  # the table tells all of these
        for name, value in vars(base).items():
            if _mentions(value):
                return "reads `training`"
            if name in ("forward", "__call__") and callable(value) and not any(True for _ in _codes(value, set())):
                unseen = "is of code that cannot be seen"
    return unseen


def _functions(held: Any) -> list[Any]:
    """The functions that an attribute holds: itself, or in a list or a dict."""
    several = held.values() if isinstance(held, dict) else held if isinstance(held, (list, tuple)) else (held,)
    return [value for value in several if inspect.isroutine(value) or isinstance(value, functools.partial)]


def _mentions(value: Any) -> bool:
    """Whether the code of a function, or of what it calls by name, holds ``training`` as a name or as text."""
    return any("training" in code.co_names or "training" in code.co_consts for code in _codes(value, set()))


def _codes(value: Any, seen: set[int]) -> Iterator[CodeType]:
    """The code of a function, method, property, hook, or partial or wrapped function, and of what it calls by name."""
    stack = [value]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, CodeType):
            yield value
            stack.extend(constant for constant in value.co_consts if isinstance(constant, CodeType))
        elif isinstance(value, property):
            stack.append(value.fget)
        elif isinstance(value, functools.partial):
            stack.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, (staticmethod, classmethod)) or inspect.ismethod(value):
            stack.append(value.__func__)
        elif inspect.isfunction(value):
            stack.append(value.__code__)
            stack.extend(_called(value))
        elif callable(value) and not isinstance(value, (type, nn.Module)):  # an object, such as a hook of torch's
            stack.extend(function for function in vars(type(value)).values() if inspect.isfunction(function))


def _called(function: Any) -> Iterator[Any]:
    """The functions that another one may call: those in its closure, and those of its module and of others by name."""
    if hasattr(function, "__wrapped__"):
        yield function.__wrapped__
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if inspect.isroutine(content) or isinstance(content, functools.partial):
            yield content
    names = {name for code in _nested(function.__code__) for name in code.co_names}
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        inside = [getattr(value, inner, None) for inner in names] if isinstance(value, ModuleType) else [value]
        for found in inside:
            if inspect.isfunction(found) and not _is_a_librarys(found):
                yield found


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _is_a_librarys(function: Any) -> bool:
    return str(function.__module__).partition(".")[0] in _LIBRARIES


def require_eval(role: str, module: nn.Module | Mapping[str, nn.Module]) -> None:
    """Raise unless every part of a module that minds its mode is in eval mode.

    Args:
        role: how the message calls the module: "The original model".
        module: any module, or its parts by name where they are known.

    Raises:
        TrainingModeError: with up to five of the names, and why each matters.
    """
    found = training_parts(dict(module.named_modules()) if isinstance(module, nn.Module) else module)
    if not found:
        return
    why: dict[str, list[str]] = {}
    for name, reason in list(found.items())[:_SHOWN]:
        why.setdefault(reason, []).append(name)
    said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in why.items())
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise TrainingModeError(
        f"{role} is in training mode, where parts of it compute something else ({said}{more}).",
        fix="Call .eval() on it first.",
    )
