"""Calls and layers of which shape, type and layout of the result are known without torch's own kernels.

torch's kernels on the meta device are exact, and slow where they are written in Python (0.1 to 0.8 ms a call); the
first of them imports sympy too, which takes a second. The calls that networks are made of give a tensor like their
input (activations, normalisations, sums), or one whose sizes torch's documentation gives (convolutions, pools): 3 to
20 microseconds. What fits no layer raises, as torch does, and whatever is not as it mostly is gives None here: then
torch's kernel runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CALLS", "LAYERS"]

_META = torch.device("meta")

# --- calls whose result is like their input ----------------------------------------------------------------------


def _similar(x: Tensor) -> Tensor | None:
    """A new tensor like another of which every element has a place of its own; None where that is not so.

    Along a dimension of size 1 the stride of ``x`` may be any: that of a new tensor is as torch makes it.
    """
    if not x.is_meta:
        return None
    if x.is_contiguous():
        return torch.empty(x.size(), dtype=x.dtype, device=_META)
    other = _CHANNELS_LAST.get(x.dim())
    if other is None or not x.is_contiguous(memory_format=other):
        return None
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=_META) if 1 not in x.size() else None


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _plain(x: Tensor) -> bool:
    """Whether a contiguous tensor has a new one's strides along dimensions of size 1 too, where they may be any."""
    return 1 not in x.size() or x.stride() == torch.empty(x.size(), device=_META).stride()


def _number(value: Any) -> bool:
    """Whether a value is a real number, that of a traced one too; a bool is none here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_name(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by their names; None where one is told twice, or has no such name."""
    told = {**dict(zip(names, args, strict=False)), **kwargs}
    return told if len(told) == len(args) + len(kwargs) and told.keys() <= set(names) else None


def _unary(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    return _similar(args[0])


def _activation(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    settings = _by_name(_ACTIVATIONS[name], args[1:], kwargs)
    return None if not args or settings is None else _activated(name, args[0], settings)


def _activated(name: str, x: Any, settings: dict[str, Any]) -> Tensor | None:
    inplace = settings.pop("inplace", False)
    if not isinstance(x, Tensor) or not x.is_floating_point() or type(inplace) is not bool:
        return None
    if (settings and not _usual(settings)) or (name in ("relu6", "hardtanh") and not _plain(x)):
        return None
    made = _similar(x)
    return x if inplace and made is not None else made


def _usual(settings: Mapping[str, Any]) -> bool:
    """Whether torch takes these settings of an activation."""
    if "approximate" in settings:
        return settings["approximate"] in ("none", "tanh")
    if not all(map(_number, settings.values())) or settings.get("alpha") == 0:
        return False
    return bool(settings.get("min_val", -1) <= settings.get("max_val", 1))


def _in_rows(x: Any) -> Tensor | None:
    """A result of which the elements lie in the order of the dimensions, whatever order those of ``x`` lie in."""
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
        return None
    return torch.empty(x.size(), dtype=x.dtype, device=_META)


def _log_sigmoid(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return _in_rows(args[0]) if len(args) == 1 and not kwargs else None


def _softmax(settings: frozenset[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """A softmax over one dimension in the type of its input; a type that is told is left to torch."""
    dim = args[1] if len(args) == 2 else kwargs.get("dim")
    if not 1 <= len(args) <= 2 or (len(args) == 2 and "dim" in kwargs) or not kwargs.keys() <= settings:
        return None
    if type(dim) is not int or kwargs.get("dtype") is not None or not isinstance(args[0], Tensor):
        return None
    return _in_rows(args[0]) if -args[0].dim() <= dim < args[0].dim() else None


def _binary(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs:
        return None
    left, right = args
    if not isinstance(left, Tensor) or not left.is_floating_point():
        return None
    if isinstance(right, Tensor):
        if left.dtype != right.dtype or left.layout != right.layout:
            return None
        if left.size() == right.size() and left.stride() == right.stride():
            return _similar(left if left.is_meta else right) if _plain(left) else None
        larger, smaller = (left, right) if left.dim() >= right.dim() else (right, left)
        if _spreads(smaller, larger) or (left.dim() == right.dim() and _spreads(larger, smaller)):
            shape = tuple(map(max, larger.size(), (1,) * (larger.dim() - smaller.dim()) + smaller.size()))
            return torch.empty(shape, dtype=left.dtype, device=_META)
        return None
    return _similar(left) if _number(right) and _plain(left) else None


def _spreads(small: Tensor, large: Tensor) -> bool:
    """Whether a tensor is repeated along some dimensions to the shape of another, both of them dense and in order."""
    if not (large.is_contiguous() and small.is_contiguous() and _plain(large) and _plain(small)):
        return False
    tail = large.size()[large.dim() - small.dim() :]
    return all(have in (1, want) for have, want in zip(small.size(), tail, strict=True))


def _add_in_place(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    left, right = args
    if isinstance(right, Tensor):
        same = right.size() == left.size() and right.dtype == left.dtype and right.layout == left.layout
    else:
        same = _number(right)
    return left if same and _similar(left) is not None else None


def _of_size(value: Any, size: tuple[int, ...], dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype and tuple(value.size()) == size


def _none_or_of_size(value: Any, size: tuple[int, ...], dtype: torch.dtype) -> bool:
    return value is None or _of_size(value, size, dtype)


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    told = _by_name(_OF_BATCH_NORM, args, kwargs)
    if told is None:
        return None
    if told.get("training", False) is not False or not _number(told.get("eps", 0.1)):
        return None
    return _normalised(*(told.get(name) for name in _OF_BATCH_NORM[:5]))


_OF_BATCH_NORM = "input running_mean running_var weight bias training momentum eps".split()


def _normalised(x: Any, mean: Any, variance: Any, weight: Any, bias: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
        return None
    size, dtype = (x.size(1),), x.dtype
    if not all(_of_size(value, size, dtype) for value in (mean, variance)):
        return None
    return _similar(x) if all(_none_or_of_size(value, size, dtype) for value in (weight, bias)) else None


def _layer_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    told = _by_name(_OF_LAYER_NORM, args, kwargs)
    if told is None:
        return None
    x, shape = told.get("input"), told.get("normalized_shape")
    if not isinstance(x, Tensor) or not shape or not _whole(shape) or not _number(told.get("eps", 0.1)):
        return None
    size = tuple(shape)
    if tuple(x.size()[-len(size) :]) != size:
        return None
    fits = all(_none_or_of_size(told.get(name), size, x.dtype) for name in ("weight", "bias"))
    return _in_rows(x) if fits else None


_OF_LAYER_NORM = "input normalized_shape weight bias eps".split()


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) not in (2, 3) or kwargs or not all(isinstance(arg, Tensor) for arg in args[:2]):
        return None
    x, weight = args[0], args[1]
    fits = weight.dim() == 2 and x.dim() > 1 and x.size(-1) == weight.size(1) and x.dtype == weight.dtype
    if not fits or not x.is_contiguous() or not x.is_meta or torch.is_autocast_enabled("cpu"):
        return None
    if len(args) == 3 and not _none_or_of_size(args[2], (weight.size(0),), x.dtype):
        return None
    return torch.empty((*x.size()[:-1], weight.size(0)), dtype=x.dtype, device=_META)


def _in_order(x: Tensor) -> bool:
    """Whether torch takes a tensor for one in the order of its dimensions.

    One channel, or one cell, is in both orders at once: there the strides of the dimensions of size 1 decide, which
    mean nothing else (c10/core/MemoryFormat.h, is_channels_last_strides_2d). In 1-D torch adds a dimension and does
    the same.
    """
    if not x.is_contiguous():
        return False
    other = _CHANNELS_LAST.get(x.dim())
    if x.dim() != 3 and (other is None or not x.is_contiguous(memory_format=other)):
        return True
    return _plain(x)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Any,
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
    if not x.is_meta or len(size) != len(kernel) or groups < 1 or kernel[0] % groups:
        return None
    if x.dtype != weight.dtype or not _in_order(x) or not _in_order(weight) or torch.is_autocast_enabled("cpu"):
        return None
    if not len(stride) == len(padding) == len(dilation) == spatial or 0 in size or 0 in kernel:
        return None
    if min(*stride, *dilation) < 1 or min(padding) < 0 or not _none_or_of_size(bias, (kernel[0],), x.dtype):
        return None
    if size[1] != kernel[1] * groups:  # in the words of torch's kernel for the CPU
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(kernel)}, expected input{list(size)} to have "
            f"{kernel[1] * groups} channels, but got {size[1]} channels instead"
        )
    out = list(map(_windows, size[2:], kernel[2:], stride, padding, dilation))
    if min(out) < 1:
        raise RuntimeError(f"Kernel size {list(kernel[2:])} can't be greater than the padded input of {list(size)}")
    return torch.empty((size[0], kernel[0], *out), dtype=x.dtype, device=_META)


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return in how many places a window stands along one dimension."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _convolution(rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """A convolution as a layer calls it: with everything told, by position."""
    if len(args) != 7 or kwargs or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
        return None
    if args[1].dim() != rank + 2 or type(args[6]) is not int:
        return None
    return _convolved_with(rank, *args)


def _convolved_with(
    rank: int, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """The result of a convolution with settings as they are given: a number stands for one in every dimension."""
    settings = [_in_each(rank, value) for value in (stride, padding, dilation)]
    if not all(map(_whole, settings)):
        return None
    return _convolved(x, weight, bias, settings[0], settings[1], settings[2], groups)


def _in_each(rank: int, value: Any) -> Any:
    """A setting for every dimension: a number stands for the same in each."""
    return (value,) * rank if type(value) is int else value


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, (tuple, list)) and all(type(number) is int for number in numbers)


def _pooled(
    x: Any,
    rank: int,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
) -> Tensor | None:
    """The result of a pool of an input with a batch; its sizes are those of torch.nn.MaxPool2d's documentation."""
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point() or x.dim() != rank + 2:
        return None
    settings = [_in_each(rank, value) for value in (kernel, stride, padding, dilation)]
    if settings[1] is None:
        settings[1] = settings[0]
    if type(ceil_mode) is not bool:
        return None
    if not all(_whole(numbers) and len(numbers) == rank for numbers in settings) or 0 in x.size() or not _in_order(x):
        return None
    sizes = []
    for size, window, step, edge, spread in zip(x.size()[2:], *settings, strict=True):
        if min(window, step, spread) < 1 or not 0 <= edge <= window // 2:
            return None  # torch says why
        whole = _windows(size + (step - 1 if ceil_mode else 0), window, step, edge, spread)
        if ceil_mode and (whole - 1) * step >= size + edge:
            whole -= 1  # a window that starts in the padding behind the input counts for nothing
        sizes.append(whole)
    if min(sizes) < 1:
        raise RuntimeError(f"Given input size {list(x.size()[1:])}, the output size of a pool is too small: {sizes}")
    return torch.empty((*x.size()[:2], *sizes), dtype=x.dtype, device=_META)


def _max_pool(rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs.get("return_indices") or not kwargs.keys() <= _OF_MAX_POOLS:
        return None
    settings = {name: value for name, value in kwargs.items() if name != "return_indices"}
    return _pooled(args[0], rank, args[1], **settings)


def _avg_pool(rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """An average pool as a layer calls it: by position."""
    if kwargs or not 2 <= len(args) <= 6 + (rank > 1) or (len(args) > 6 and args[6] == 0):
        return None
    kernel, stride, padding, up = (*args[1:5], *(None, 0, False)[len(args) - 2 :])[:4]
    return _average_pooled(args[0], rank, kernel, stride, padding, up)


def _average_pooled(x: Any, rank: int, kernel: Any, stride: Any, padding: Any, ceil_mode: Any) -> Tensor | None:
    if rank == 3 and isinstance(x, Tensor) and x.dim() == 5:  # in 3-D torch takes no window larger than the input
        windows = _in_each(3, kernel)
        if not _whole(windows) or len(windows) != 3 or any(map(operator.gt, windows, x.size()[2:])):
            return None
    return _pooled(x, rank, kernel, stride, padding, ceil_mode=ceil_mode)


_OF_MAX_POOLS = frozenset(("stride", "padding", "dilation", "ceil_mode", "return_indices"))


def _mean(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mean of an input over some of its dimensions."""
    if not args or not isinstance(args[0], Tensor) or len(args) > 3 or not kwargs.keys() <= {"dim", "keepdim"}:
        return None
    x, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    dims = (dim,) if type(dim) is int else dim
    if not x.is_meta or not x.is_floating_point() or not dims or not _whole(dims) or 0 in x.size():
        return None
    rank = x.dim()
    gone = {dim % rank for dim in dims if -rank <= dim < rank} if rank else set()
    if len(gone) != len(dims) or type(keep) is not bool or not _in_order(x):
        return None
    shape = [1 if d in gone else size for d, size in enumerate(x.size()) if keep or d not in gone]
    return torch.empty(shape, dtype=x.dtype, device=_META)


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
    if 0 in x.size() or not all((size is None and rank > 1) or (type(size) is int and size > 0) for size in sizes):
        return None  # in 1-D torch takes no None
    out = [have if size is None else size for size, have in zip(sizes, x.size()[2:], strict=True)]
    return torch.empty((*x.size()[:2], *out), dtype=x.dtype, device=_META)


def _average(rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return _averaged(args[0], rank, args[1]) if len(args) == 2 and not kwargs and isinstance(args[0], Tensor) else None


def _dropout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    told = _by_name(_OF_DROPOUT, args, kwargs)
    if told is None:
        return None
    x = told.get("input")
    if told.get("training", True) is not False or not isinstance(x, Tensor) or not x.is_meta:
        return None
    return x if _chance(told.get("p", 0.5)) else None


def _chance(p: Any) -> bool:
    return _number(p) and 0 <= p <= 1


_OF_DROPOUT = "input p training inplace".split()


_UNARY = "relu sigmoid tanh exp log sqrt rsqrt abs neg sin cos erf square reciprocal".split()
_INPLACE = ("inplace",)
_ACTIVATIONS: dict[str, tuple[str, ...]] = {  # the names of their settings, in order
    "relu": _INPLACE,
    "relu6": _INPLACE,
    "silu": _INPLACE,
    "gelu": ("approximate",),
    "elu": ("alpha", *_INPLACE),
    "selu": _INPLACE,
    "celu": ("alpha", *_INPLACE),
    "leaky_relu": ("negative_slope", *_INPLACE),
    "mish": _INPLACE,
    "hardswish": _INPLACE,
    "hardsigmoid": _INPLACE,
    "hardtanh": ("min_val", "max_val", *_INPLACE),
    "softplus": ("beta", "threshold"),
    "softsign": (),
    "tanhshrink": (),
    "sigmoid": (),
    "tanh": (),
}
CALLS: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.dropout: _dropout,
    F.logsigmoid: _log_sigmoid,
    torch.cat: _concatenated,
    torch.mean: _mean,
    torch.Tensor.mean: _mean,
}
for _rank in (1, 2, 3):
    CALLS[getattr(F, f"adaptive_avg_pool{_rank}d")] = partial(_average, _rank)
    CALLS[getattr(F, f"conv{_rank}d")] = partial(_convolution, _rank)
    CALLS[getattr(F, f"max_pool{_rank}d")] = partial(_max_pool, _rank)
    CALLS[getattr(F, f"avg_pool{_rank}d")] = partial(_avg_pool, _rank)
for _name in _UNARY:
    for _home in (torch, torch.Tensor):
        if hasattr(_home, _name):
            CALLS[getattr(_home, _name)] = _unary
for _name in _ACTIVATIONS:
    CALLS[getattr(F, _name)] = partial(_activation, _name)
for _name in ("softmax", "log_softmax"):
    CALLS[getattr(F, _name)] = partial(_softmax, frozenset(("dim", "dtype", "_stacklevel")))
    for _home in (torch, torch.Tensor):
        CALLS[getattr(_home, _name)] = partial(_softmax, frozenset(("dim", "dtype")))
for _name in ("add", "sub", "mul"):
    CALLS[getattr(torch.Tensor, _name)] = CALLS[getattr(torch, _name)] = CALLS[getattr(operator, _name)] = _binary
    CALLS[getattr(torch.Tensor, f"{_name}_")] = _add_in_place
for _function in (torch.Tensor.div, torch.div, operator.truediv):
    CALLS[_function] = _binary

# --- layers of which the same is known ---------------------------------------------------------------------------


def _layer_like(name: str, module: Any, x: Tensor) -> Tensor | None:
    return _activated(name, x, {setting: getattr(module, setting) for setting in _ACTIVATIONS[name]})


def _layer_batch_norm(module: Any, x: Tensor) -> Tensor | None:
    if module.training or x.dim() < 2 or not _number(module.eps) or x.size(1) != module.num_features:
        return None
    module._check_input_dim(x)
    return _normalised(x, module.running_mean, module.running_var, module.weight, module.bias)


def _layer_convolution(rank: int, module: Any, x: Tensor) -> Tensor | None:
    if module.padding_mode != "zeros" or type(module.groups) is not int:
        return None
    settings = (module.stride, module.padding, module.dilation, module.groups)
    return _convolved_with(rank, x, module.weight, module.bias, *settings)


def _layer_max_pool(rank: int, module: Any, x: Tensor) -> Tensor | None:
    if module.return_indices:
        return None
    return _pooled(x, rank, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


def _layer_avg_pool(rank: int, module: Any, x: Tensor) -> Tensor | None:
    if getattr(module, "divisor_override", None) == 0:
        return None  # torch says why
    return _average_pooled(x, rank, module.kernel_size, module.stride, module.padding, module.ceil_mode)


def _layer_average(rank: int, module: Any, x: Tensor) -> Tensor | None:
    return _averaged(x, rank, module.output_size)


def _layer_dropout(rank: int | None, module: Any, x: Tensor) -> Tensor | None:
    """An input as it is; one of another rank than the layer is for is left to torch, which warns or raises."""
    fits = rank is None or x.dim() == rank
    return x if fits and not module.training and _chance(module.p) else None


LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {nn.Identity: lambda _module, x: x}
LAYERS[nn.LogSigmoid] = lambda _module, x: _in_rows(x)
for _name in (
    "ReLU ReLU6 SiLU GELU ELU SELU CELU LeakyReLU Mish Hardswish Hardsigmoid Hardtanh Softplus Softsign Sigmoid Tanh "
    "Tanhshrink".split()
):
    LAYERS[getattr(nn, _name)] = partial(_layer_like, "leaky_relu" if _name == "LeakyReLU" else _name.lower())
for _name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
    LAYERS[getattr(nn, _name)] = _layer_batch_norm
for _rank in (1, 2, 3):
    LAYERS[getattr(nn, f"Conv{_rank}d")] = partial(_layer_convolution, _rank)
    LAYERS[getattr(nn, f"Dropout{_rank}d")] = partial(_layer_dropout, _rank + 2)
    LAYERS[getattr(nn, f"AdaptiveAvgPool{_rank}d")] = partial(_layer_average, _rank)
    LAYERS[getattr(nn, f"MaxPool{_rank}d")] = partial(_layer_max_pool, _rank)
    LAYERS[getattr(nn, f"AvgPool{_rank}d")] = partial(_layer_avg_pool, _rank)
for _name in ("Dropout", "AlphaDropout", "FeatureAlphaDropout"):
    LAYERS[getattr(nn, _name)] = partial(_layer_dropout, None)
