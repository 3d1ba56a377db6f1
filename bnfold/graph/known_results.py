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
    """Whether torch takes a tensor for one in the order of its dimensions.

    One channel, or one cell, is in both orders at once: there the strides of the dimensions of size 1 decide, which
    mean nothing else (c10/core/MemoryFormat.h, is_channels_last_strides_2d).
    """
    if not x.is_contiguous():
        return False
    other = _CHANNELS_LAST.get(x.dim())
    if other is None or not x.is_contiguous(memory_format=other):
        return True
    return x.stride() == torch.empty(x.size(), device=_META).stride()


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
    if not x.is_meta or len(size) != len(kernel) or groups < 1 or kernel[0] % groups:
        return None
    if x.dtype != weight.dtype or not _in_order(x) or not weight.is_contiguous() or torch.is_autocast_enabled("cpu"):
        return None
    if not len(stride) == len(padding) == len(dilation) == spatial or 0 in size or 0 in stride or min(padding) < 0:
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
    stride, padding, dilation = ((value,) * rank if type(value) is int else value for value in args[3:6])
    if args[1].dim() != rank + 2 or not all(map(_whole, (stride, padding, dilation))) or type(args[6]) is not int:
        return None
    return _convolved(args[0], args[1], stride, padding, dilation, args[6])


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
    settings = [(value,) * rank if type(value) is int else value for value in (kernel, stride, padding, dilation)]
    if settings[1] is None:
        settings[1] = settings[0]
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
    return _pooled(args[0], rank, kernel, stride, padding, ceil_mode=up)


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
CALLS: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.dropout: _dropout,
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
for _name in _FUNCTIONAL:
    CALLS[getattr(F, _name)] = _activation
for _name in ("add", "sub", "mul"):
    CALLS[getattr(torch.Tensor, _name)] = CALLS[getattr(torch, _name)] = CALLS[getattr(operator, _name)] = _binary
    CALLS[getattr(torch.Tensor, f"{_name}_")] = _add_in_place
for _function in (torch.Tensor.div, torch.div, operator.truediv):
    CALLS[_function] = _binary

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


def _layer_max_pool(rank: int, module: Any, x: Tensor) -> Tensor | None:
    if module.return_indices:
        return None
    return _pooled(x, rank, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


def _layer_avg_pool(rank: int, module: Any, x: Tensor) -> Tensor | None:
    if getattr(module, "divisor_override", None) == 0:
        return None  # torch says why
    return _pooled(x, rank, module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)


def _layer_average(rank: int, module: Any, x: Tensor) -> Tensor | None:
    return _averaged(x, rank, module.output_size)


def _layer_itself(module: Any, x: Tensor) -> Tensor | None:
    return None if module.training else x


LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {nn.Identity: lambda _module, x: x}
for _name in (
    "ReLU ReLU6 SiLU GELU ELU SELU CELU LeakyReLU Mish Hardswish Hardsigmoid Hardtanh Softplus Softsign Sigmoid Tanh "
    "LogSigmoid Tanhshrink".split()
):
    LAYERS[getattr(nn, _name)] = _layer_like
for _name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
    LAYERS[getattr(nn, _name)] = _layer_batch_norm
for _name in ("Conv1d", "Conv2d", "Conv3d"):
    LAYERS[getattr(nn, _name)] = _layer_convolution
for _rank in (1, 2, 3):
    LAYERS[getattr(nn, f"AdaptiveAvgPool{_rank}d")] = partial(_layer_average, _rank)
    LAYERS[getattr(nn, f"MaxPool{_rank}d")] = partial(_layer_max_pool, _rank)
    LAYERS[getattr(nn, f"AvgPool{_rank}d")] = partial(_layer_avg_pool, _rank)
for _name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
    LAYERS[getattr(nn, _name)] = _layer_itself
