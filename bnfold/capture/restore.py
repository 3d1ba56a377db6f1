"""What a model's ``forward`` changes while it is traced, put back as it was; and whether it drew random numbers."""

from __future__ import annotations

import contextlib
import functools
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.graph.values import version, was_written

__all__ = ["buffers_of", "left_as_found", "own_copies", "put_back", "random_state", "same_random_numbers"]


@contextlib.contextmanager
def left_as_found(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what ``forward`` writes into modules while it is traced: attributes, buffers, counters, caches."""
    found = []
    states: list[dict[str, Any]] = [module.__dict__ for module in modules]
    seen = {id(state) for state in states}
    for state in states:  # grows: by the states of objects that hold caches for a module
        for value in state.values():
            own = getattr(value, "__dict__", None)
            if type(own) is dict and id(own) not in seen and not isinstance(value, _NO_STATE):
                seen.add(id(own))
                states.append(own)
        containers = [value for value in state.values() if type(value) in _CONTAINERS]
        contents = [(value, _content(value)) for value in containers if value]
        empty = [value for value in containers if not value]
        found.append((state, dict(state), contents, empty))
    try:
        yield
    finally:
        for state, before, contents, empty in found:
            if [*state] != [*before] or [*map(id, state.values())] != [*map(id, before.values())]:
                state.clear()
                state.update(before)
            for value, content in contents:
                _restore(value, content)
            for value in empty:
                if value:
                    value.clear()


_NO_STATE = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, functools.partial)
_CONTAINERS: frozenset[type] = frozenset((dict, list, set, OrderedDict, defaultdict))


def _content(value: Any) -> Any:
    """What a container holds now, and what the containers in it hold."""
    inner = [(part, _content(part)) for part in _parts(value) if type(part) in _CONTAINERS]
    return value.copy(), inner


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _restore(value: Any, content: Any) -> None:
    """Put back what a container held; it is touched only where something changed."""
    before, inner = content
    same = len(before) == len(value) and (
        [*map(id, value)] == [*map(id, before)] and [*map(id, value.values())] == [*map(id, before.values())]
        if isinstance(value, dict)
        else isinstance(value, set) or all(a is b for a, b in zip(before, value, strict=True))
    )
    if not same or isinstance(value, set):
        value.clear()
        (value.extend if isinstance(value, list) else value.update)(before)
    for part, held in inner:
        _restore(part, held)


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


def own_copies(inputs: Any) -> Any:
    """Return inputs for one run, which may write into them: every tensor a copy of its own."""
    return pytree.tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, inputs)


def buffers_of(modules: Iterable[nn.Module]) -> list[tuple[Tensor, int | None, Tensor]]:
    """Return the buffers of a model's modules, and tensors that are plain attributes, with what :func:`put_back` needs."""
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
