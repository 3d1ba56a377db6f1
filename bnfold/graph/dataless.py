"""Run torch calls on tensors without data: what shape, type and layout does the result have?

A value that depends on the model's input is a tensor on the meta device, which has no data. All others (parameters,
buffers, what the code makes by ``torch.arange``) are real tensors, and calls on them alone are really computed: what
code asks of them is answered as in any run. Where both meet, a *twin* on the meta device stands for the real one.

torch's own meta kernels are exact and slow; what is known without them is in :mod:`bnfold.graph.known_results`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.graph.known_results import CALLS, LAYERS
from bnfold.graph.traced import TracedFloat, TracedInt

__all__ = ["Dataless", "DatalessMode", "leaves", "settle"]

_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout))


def leaves(value: Any, found: list[Any]) -> list[Any]:
    """Append the tensors and traced numbers in a nest of lists, tuples, dicts and slices; return the list."""
    kind = type(value)
    if kind in _PLAIN:
        return found
    if isinstance(value, Tensor) or kind is TracedInt or kind is TracedFloat:
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            leaves(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            leaves(part, found)
    elif kind is slice:
        leaves((value.start, value.stop, value.step), found)
    return found


def settle(value: Any, tensor: Callable[[Tensor], Any], other: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a nest with every traced number as it is in this run, and every tensor as ``tensor`` gives it.

    Args:
        value: a nest of lists, tuples, dicts and slices.
        tensor: applied to tensors.
        other: applied to everything else that is no plain number or word.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value if kind is not torch.device else other(value)
    if kind is TracedInt or kind is TracedFloat:
        return value.value
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, torch.Size):
        return tuple(settle(part, tensor, other) for part in value)
    if isinstance(value, (tuple, list)):
        parts = [settle(part, tensor, other) for part in value]
        return kind(*parts) if hasattr(value, "_fields") else kind(parts)
    if isinstance(value, dict):
        return {key: settle(part, tensor, other) for key, part in value.items()}
    if kind is slice:
        return slice(*(settle(part, tensor, other) for part in (value.start, value.stop, value.step)))
    return other(value)


_META = torch.device("meta")


class Dataless:
    """Runs calls of which some inputs have no data."""

    def __init__(self) -> None:
        self._twins: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id names a tensor only as long as it lives

    def twin(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the meta device like a real one; a tensor without data as it is."""
        if tensor.is_meta:
            return tensor
        found = self._twins.get(id(tensor))
        if found is None:
            if tensor.layout is torch.strided:
                found = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=_META)
            else:
                found = tensor.detach().to(_META)
            self._twins[id(tensor)] = found
            self._alive.append(tensor)
        return found

    def forget(self, tensor: Tensor) -> None:
        """Forget the twin of a tensor that was written to in place, since its shape may have changed."""
        self._twins.pop(id(tensor), None)

    def call(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what a function of torch makes of its arguments, at least one of which has no data."""
        like = CALLS.get(function)
        if like is not None:
            result = like(args, kwargs)
            if result is not None:
                return result
        if function is torch.Tensor.__getitem__ or function is operator.getitem:
            return args[0][settle(args[1], self._index)]  # a mask tells how many it selects
        if function is torch.Tensor.to:
            kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking"}
        try:
            return function(*settle(args, self.twin, _on_meta), **settle(dict(kwargs), self.twin, _on_meta))
        except RuntimeError as error:
            if "item() cannot be called on meta tensors" not in str(error):
                raise
        # a tensor is given for a number, as in `x.new_full(size, stride[0])`, and the call reads it
        return function(*settle(args, self._number, _on_meta), **settle(dict(kwargs), self._number, _on_meta))

    def _number(self, tensor: Tensor) -> Any:
        return self.twin(tensor) if tensor.is_meta or tensor.dim() else tensor.item()

    def _index(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype is torch.bool else self.twin(tensor)

    def layer(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what a layer makes of one value, where that is known without running it; else None."""
        like = LAYERS.get(type(module))
        if like is None or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            return None
        try:
            return like(module, args[0])
        except RuntimeError:  # it does not fit: the layer's own call says so, where those that watch a run see it
            return None


class DatalessMode(TorchFunctionMode):
    """While entered, every call of torch runs on tensors without data."""

    def __init__(self, dataless: Dataless) -> None:
        super().__init__()
        self._dataless = dataless

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call; what it makes of nothing has no data either."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        found = [leaf for leaf in leaves((args, kwargs), []) if isinstance(leaf, Tensor)]
        if any(leaf.is_meta for leaf in found):
            return self._dataless.call(func, args, kwargs)
        result = func(*args, **kwargs)
        return self._dataless.twin(result) if not found and isinstance(result, Tensor) else result


def _on_meta(value: Any) -> Any:
    return _META if isinstance(value, torch.device) else value
