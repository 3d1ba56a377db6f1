"""What a model's ``forward`` changes while it is traced, put back as it was; and whether it drew random numbers."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Container, Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.graph.leaves import is_foreign, is_torchs
from bnfold.graph.values import version, was_written

__all__ = [
    "Change",
    "buffers_of",
    "caches_of",
    "empty_caches",
    "forget_sizes",
    "left_as_found",
    "own_copies",
    "put_back",
    "random_state",
    "same_random_numbers",
    "seed",
]


@contextlib.contextmanager
def left_as_found(modules: Iterable[nn.Module], changed: list[Change] | None = None) -> Iterator[None]:
    """Undo what ``forward`` writes into modules while it runs: attributes, buffers, counters, caches.

    Args:
        modules: the parts of a model.
        changed: gets what was changed: the ``__dict__`` of a part, or of an object that it holds, and an attribute.
    """
    found = []
    states: list[dict[str, Any]] = [module.__dict__ for module in modules]
    seen = {id(state) for state in states}
    for state in states:  # grows: by the states of objects that hold caches for a module
        contents, empty = [], []
        for value in state.values():
            kind = type(value)
            if kind in _CONTAINERS:
                if value:
                    contents.append((value, _content(value)))
                else:
                    empty.append(value)
            elif kind not in _STATELESS and not isinstance(value, _NO_STATE):
                own = getattr(value, "__dict__", None)
                if own and type(own) is dict and id(own) not in seen:
                    seen.add(id(own))
                    states.append(own)
        found.append((state, dict(state), contents, empty))
    try:
        yield
    finally:
        for state, before, contents, empty in found:
            if not _holds_items(state, before):
                if changed is not None:
                    changed += [(state, name) for name in _changed(state, before)]
                state.clear()
                state.update(before)
            inner = filled = [value for value in empty if value]
            if contents:
                inner = filled + [value for value, content in contents if not _same(value, content)]
            if not inner:
                continue
            if changed is not None:
                changed += [(state, name) for name, value in before.items() if any(value is one for one in inner)]
            for value in filled:
                value.clear()
            for value, content in contents:
                _restore(value, content)


Change: TypeAlias = "tuple[dict[str, Any], str]"


def _changed(state: dict[str, Any], before: dict[str, Any]) -> list[str]:
    missing = object()
    return [name for name in {**before, **state} if state.get(name, missing) is not before.get(name, missing)]


def _same(value: Any, content: Any) -> bool:
    """Whether a container, and each in it, holds what it held."""
    before, inner = content
    return _holds(value, before) and all(_same(part, held) for part, held in inner)


def _holds(value: Any, before: Any) -> bool:
    """Whether a container itself holds the very objects that it held, in their order."""
    if isinstance(value, dict):
        return _holds_items(value, before)
    if len(before) != len(value):
        return False
    return {*map(id, value)} == {*map(id, before)} if isinstance(value, set) else all(map(operator.is_, before, value))


def _holds_items(value: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether a dict holds the very keys and values that it held, in their order."""
    return (
        len(before) == len(value)
        and all(map(operator.is_, value, before))
        and all(map(operator.is_, value.values(), before.values()))
    )


_NO_STATE = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, functools.partial)
_STATELESS = frozenset((bool, int, float, str, tuple, type(None)))
_CONTAINERS: frozenset[type] = frozenset((dict, list, set, OrderedDict, defaultdict, Counter, deque))


def _content(value: Any, around: tuple[Any, ...] = ()) -> Any:
    """What a container holds now, and what the containers in it hold; one that holds itself is looked at once."""
    around = (*around, value)
    nested = [part for part in _parts(value) if type(part) in _CONTAINERS]
    inner = [(part, _content(part, around)) for part in nested if all(part is not one for one in around)]
    return value.copy(), inner


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _restore(value: Any, content: Any) -> None:
    """Put back what a container held; it is touched only where something changed."""
    before, inner = content
    if not _holds(value, before):
        value.clear()
        (value.extend if isinstance(value, (list, deque)) else value.update)(before)
    for part, held in inner:
        _restore(part, held)


def empty_caches(
    modules: Iterable[nn.Module], among: Container[tuple[nn.Module, str]] | None = None
) -> list[tuple[nn.Module, str]]:
    """Remove attributes that hide an empty default of their class, and return them.

    ``shape = None`` in a class, and ``self.shape = x.shape`` in its ``forward``: what is kept for the size of an
    earlier run. Without it ``forward`` computes anew, as the model did in its first run.

    Args:
        modules: of the model; changed.
        among: which to remove at most; None for all.
    """
    removed = [found for found in caches_of(modules) if among is None or found in among]
    for part, name in removed:
        del part.__dict__[name]
    return removed


def caches_of(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Return the attributes that hide an empty default of their class."""
    found = []
    empty: dict[type, set[str]] = {}
    for part in modules:
        kind = type(part)
        if kind not in empty:
            empty[kind] = _empty_defaults(kind)
        if empty[kind]:
            found += [(part, name) for name in empty[kind] & part.__dict__.keys() if part.__dict__[name] is not None]
    return found


def _empty_defaults(kind: type) -> set[str]:
    """Return the names for which a class of the model's own holds None, or a tensor without elements."""
    held: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ != "torch.nn.modules.module":
            held |= base.__dict__
    return {
        name
        for name, value in held.items()
        if (value is None or (isinstance(value, Tensor) and value.numel() == 0)) and not name.startswith("__")
    }


class _Outdated:
    """Stands for a size of an earlier run, and is unequal to all."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = None  # type: ignore[assignment]


_OUTDATED = _Outdated()


def holders_of(modules: Iterable[nn.Module], numbers: Container[int]) -> list[tuple[nn.Module, str]]:
    """Return the attributes of a model's own modules that hold one of some numbers, alone or among others."""
    return [
        (part, name)
        for part in modules
        if not is_torchs(part)
        for name, value in part.__dict__.items()
        if isinstance(value, (int, tuple, list)) and any(number in numbers for number in _whole_numbers(value))
    ]


def _whole_numbers(value: Any, around: tuple[Any, ...] = ()) -> Iterator[int]:
    """Yield the whole numbers in a nest, which may hold itself."""
    if type(value) is int:
        yield value
    elif isinstance(value, (tuple, list, dict)) and all(value is not one for one in around):
        for part in _parts(value):
            yield from _whole_numbers(part, (*around, value))


def outdate(
    kept: list[tuple[nn.Module, str]], _: Any, among: Container[tuple[nn.Module, str]] | None = None
) -> list[tuple[nn.Module, str]]:
    """Let attributes hold what is unequal to all sizes, and return them; ``among`` as in :func:`empty_caches`."""
    outdated = [where for where in dict.fromkeys(kept) if among is None or where in among]
    for part, name in outdated:
        part.__dict__[name] = _OUTDATED
    return outdated


def is_filled(part: nn.Module, name: str) -> bool:
    """Whether an attribute that was emptied or outdated holds something again."""
    return name in part.__dict__ and part.__dict__[name] is not _OUTDATED


def forget_sizes() -> None:
    """Empty the ``lru_cache`` of each function of the user's: it may hold what a run computed from traced sizes."""
    for cached in gc.get_objects():
        if type(cached) is functools._lru_cache_wrapper:
            code = getattr(getattr(cached, "__wrapped__", None), "__code__", None)
            if code is not None and not is_foreign(code.co_filename):
                cached.cache_clear()


def random_state() -> tuple[Any, ...]:
    """The state of the generators that a forward may draw from: torch's, Python's and numpy's."""
    _, keys, position, *_ = np.random.get_state()
    return torch.random.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(keys).tobytes(), position


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the generators as they were: torch's, Python's and numpy's."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def seed(number: int) -> None:
    """Seed torch's generators.

    ``torch.manual_seed`` keeps the stack of each call for devices that are not there, which takes up to a millisecond.
    """
    torch.default_generator.manual_seed(number)
    if torch.accelerator.is_available():
        torch.manual_seed(number)


def own_copies(inputs: Any) -> Any:
    """Return inputs for one run, which may write into them: every tensor a copy of its own."""
    return pytree.tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, inputs)


def buffers_of(modules: Iterable[nn.Module]) -> list[tuple[Tensor, int | None, Tensor]]:
    """Return the buffers and plain tensors that a model's modules hold, with what :func:`put_back` needs."""
    held: dict[Tensor, None] = {}
    for part in modules:
        for value in (*part._buffers.values(), *part.__dict__.values()):  # a tensor may be a plain attribute, too
            if isinstance(value, Tensor):
                held[value] = None
    return [(buffer, version(buffer), buffer.clone()) for buffer in held]


def put_back(state: list[tuple[Tensor, int | None, Tensor]], *, by_content: bool = False) -> list[Tensor]:
    """Restore the buffers that were written to, and return them.

    Args:
        state: of :func:`buffers_of`.
        by_content: look at the numbers, too: ``batch_norm`` writes its running statistics without counting that.
    """
    written = []
    for buffer, before, content in state:
        if was_written(buffer, None if by_content else before, content) or was_written(buffer, before, content):
            buffer.data.copy_(content)
            written.append(buffer)
    return written
