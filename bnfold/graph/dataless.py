"""Run torch calls on tensors without data: what shape, type and layout does the result have?

A value that depends on the model's input is a tensor on the meta device, which has no data. All others (parameters,
buffers, what the code makes by ``torch.arange``) are real tensors, and calls on them alone are really computed: what
code asks of them is answered as in any run. Where both meet, a *twin* on the meta device stands for the real one.

torch's own meta kernels are exact, and slow where they are written in Python (0.1 to 0.8 ms a call). The calls that
networks are made of (activations, normalisations, sums) give a tensor like their input, which takes 3 microseconds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
        like = _LIKE.get(function)
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
        like = _LAYERS.get(type(module))
        if like is None or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            return None
        return like(module, args[0])


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


# --- calls whose result is like their input ----------------------------------------------------------------------


def _similar(x: Tensor) -> Tensor | None:
    """A new tensor like another of which every element has a place of its own; None where that is not so."""
    if not x.is_meta or not (x.is_contiguous() or x.is_contiguous(memory_format=_CHANNELS_LAST.get(x.dim(), _DENSE))):
        return None
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=_META)


_DENSE = torch.contiguous_format
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _unary(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point() or "dtype" in kwargs:
        return None
    return args[0] if kwargs.get("inplace") is True else _similar(args[0])


def _activation(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return None if any(arg is True for arg in args[1:]) else _unary(args, kwargs)  # inplace, by position


def _binary(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs:
        return None
    left, right = args
    if not isinstance(left, Tensor) or isinstance(right, bool):
        return None
    if isinstance(right, Tensor):
        if left.dtype != right.dtype or not left.is_floating_point():
            return None
        if left.size() == right.size() and left.stride() == right.stride():
            return _similar(left if left.is_meta else right)
        larger, smaller = (left, right) if left.dim() >= right.dim() else (right, left)
        if _spreads(smaller, larger) or (left.dim() == right.dim() and _spreads(larger, smaller)):
            shape = tuple(map(max, larger.size(), (1,) * (larger.dim() - smaller.dim()) + smaller.size()))
            return torch.empty(shape, dtype=left.dtype, device=_META)
        return None
    return _unary((left,), {})


def _spreads(small: Tensor, large: Tensor) -> bool:
    """Whether a tensor is repeated along some dimensions to the shape of another, both of them dense and in order."""
    if not (large.is_contiguous() and small.is_contiguous()):
        return False
    tail = large.size()[large.dim() - small.dim() :]
    return all(have in (1, want) for have, want in zip(small.size(), tail, strict=True))


def _add_in_place(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    right = args[1]
    same = not isinstance(right, Tensor) or (right.size() == args[0].size() and right.dtype == args[0].dtype)
    return args[0] if same and args[0].is_floating_point() else None


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    x, mean = args[0], args[1] if len(args) > 1 else None
    if not isinstance(x, Tensor) or x.dim() < 2 or not isinstance(mean, Tensor) or x.size(1) != mean.numel():
        return None
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    return None if training or x.dtype != mean.dtype else _similar(x)


def _layer_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    x, shape = args[0], args[1] if len(args) > 1 else kwargs.get("normalized_shape")
    if not isinstance(x, Tensor) or not x.is_floating_point() or not isinstance(shape, (tuple, list)):
        return None
    fits = x.is_meta and tuple(x.size()[-len(shape) :]) == tuple(shape)
    return torch.empty(x.size(), dtype=x.dtype, device=_META) if fits else None  # in order, whatever order x is in


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) not in (2, 3) or kwargs or not all(isinstance(arg, Tensor) for arg in args[:2]):
        return None
    x, weight = args[0], args[1]
    fits = weight.dim() == 2 and x.dim() > 1 and x.size(-1) == weight.size(1) and x.dtype == weight.dtype
    if not fits or not x.is_contiguous() or not x.is_meta:
        return None
    return torch.empty((*x.size()[:-1], weight.size(0)), dtype=x.dtype, device=_META)


def _in_order(x: Tensor) -> bool:
    """Whether a tensor is contiguous, and of no other memory format at the same time."""
    other = _CHANNELS_LAST.get(x.dim())
    return x.is_contiguous() and (other is None or not x.is_contiguous(memory_format=other))


def _convolved(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor | None:
    """The result of a convolution of an input with a batch; None where something is not as it mostly is.

    Its sizes are those of torch.nn.Conv2d's documentation.
    """
    size, kernel = x.size(), weight.size()
    spatial = len(kernel) - 2
    if not x.is_meta or len(size) != len(kernel) or size[1] != kernel[1] * groups or kernel[0] % groups:
        return None
    if x.dtype != weight.dtype or not _in_order(x) or not weight.is_contiguous() or torch.is_autocast_enabled("cpu"):
        return None
    if not len(stride) == len(padding) == len(dilation) == spatial or 0 in size or 0 in stride:
        return None
    out = [
        (size[d + 2] + 2 * padding[d] - dilation[d] * (kernel[d + 2] - 1) - 1) // stride[d] + 1 for d in range(spatial)
    ]
    if min(out) < 1:
        return None  # torch says why
    return torch.empty((size[0], kernel[0], *out), dtype=x.dtype, device=_META)


def _concatenated(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    dim = args[1] if len(args) == 2 else kwargs.get("dim", 0)
    parts = args[0] if args else None
    if (
        len(args) + len(kwargs) > 2
        or not kwargs.keys() <= {"dim"}
        or type(dim) is not int
        or not isinstance(parts, (list, tuple))
        or not parts
    ):
        return None
    first = parts[0]
    if not all(isinstance(part, Tensor) and part.dim() and part.is_meta and _in_order(part) for part in parts):
        return None
    rank = first.dim()
    if any(part.dim() != rank or part.dtype != first.dtype for part in parts) or not -rank <= dim < rank:
        return None
    sizes, dim = [part.size() for part in parts], dim % rank
    rest = {(*size[:dim], *size[dim + 1 :]) for size in sizes}
    if len(rest) > 1 or any(0 in size for size in sizes):
        return None
    shape = (*sizes[0][:dim], sum(size[dim] for size in sizes), *sizes[0][dim + 1 :])
    return torch.empty(shape, dtype=first.dtype, device=_META)


def _averaged(x: Tensor, rank: int, to: Any) -> Tensor | None:
    """The average of an input with a batch in cells, of which there are ``to`` along each dimension."""
    sizes = (to,) * rank if not isinstance(to, (tuple, list)) else to
    if not x.is_meta or not x.is_floating_point() or x.dim() != rank + 2 or len(sizes) != rank or not _in_order(x):
        return None
    if 0 in x.size() or not all(size is None or (type(size) is int and size > 0) for size in sizes):
        return None
    out = [have if size is None else size for size, have in zip(sizes, x.size()[2:], strict=True)]
    return torch.empty((*x.size()[:2], *out), dtype=x.dtype, device=_META)


def _average(rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return _averaged(args[0], rank, args[1]) if len(args) == 2 and not kwargs and isinstance(args[0], Tensor) else None


def _dropout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    return args[0] if training is False and args and isinstance(args[0], Tensor) and args[0].is_meta else None


_UNARY = "relu sigmoid tanh exp log sqrt rsqrt abs neg sin cos erf square reciprocal softmax log_softmax".split()
_FUNCTIONAL = (
    "relu relu6 silu gelu elu selu celu leaky_relu mish hardswish hardsigmoid hardtanh softplus softsign logsigmoid "
    "tanhshrink softmax log_softmax sigmoid tanh".split()
)
_LIKE: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.dropout: _dropout,
    torch.cat: _concatenated,
}
for _rank in (1, 2, 3):
    _LIKE[getattr(F, f"adaptive_avg_pool{_rank}d")] = partial(_average, _rank)
for _name in _UNARY:
    for _home in (torch, torch.Tensor):
        if hasattr(_home, _name):
            _LIKE[getattr(_home, _name)] = _unary
for _name in _FUNCTIONAL:
    _LIKE[getattr(F, _name)] = _activation
for _name in ("add", "sub", "mul"):
    _LIKE[getattr(torch.Tensor, _name)] = _LIKE[getattr(torch, _name)] = _LIKE[getattr(operator, _name)] = _binary
    _LIKE[getattr(torch.Tensor, f"{_name}_")] = _add_in_place
for _function in (torch.Tensor.div, torch.div, operator.truediv):
    _LIKE[_function] = _binary

# --- layers of which the same is known ---------------------------------------------------------------------------


def _layer_like(module: Any, x: Tensor) -> Tensor | None:
    if not x.is_floating_point():
        return None
    return x if getattr(module, "inplace", False) else _similar(x)


def _layer_batch_norm(module: Any, x: Tensor) -> Tensor | None:
    if module.training or module.running_mean is None or x.dtype != module.running_mean.dtype:
        return None
    module._check_input_dim(x)
    return _similar(x) if x.size(1) == module.num_features else None


def _layer_convolution(module: Any, x: Tensor) -> Tensor | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    return _convolved(x, module.weight, module.stride, module.padding, module.dilation, module.groups)


def _layer_average(rank: int, module: Any, x: Tensor) -> Tensor | None:
    return _averaged(x, rank, module.output_size)


def _layer_itself(module: Any, x: Tensor) -> Tensor | None:
    return None if module.training else x


_LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {nn.Identity: lambda _module, x: x}
for _name in (
    "ReLU ReLU6 SiLU GELU ELU SELU CELU LeakyReLU Mish Hardswish Hardsigmoid Hardtanh Softplus Softsign Sigmoid Tanh "
    "LogSigmoid Tanhshrink".split()
):
    _LAYERS[getattr(nn, _name)] = _layer_like
for _name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
    _LAYERS[getattr(nn, _name)] = _layer_batch_norm
for _name in ("Conv1d", "Conv2d", "Conv3d"):
    _LAYERS[getattr(nn, _name)] = _layer_convolution
for _rank in (1, 2, 3):
    _LAYERS[getattr(nn, f"AdaptiveAvgPool{_rank}d")] = partial(_layer_average, _rank)
for _name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
    _LAYERS[getattr(nn, _name)] = _layer_itself
