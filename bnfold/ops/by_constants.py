"""Affines by constants: a sum, a product or a quotient of a value and a constant, one number for each channel.

    x + c    x - c    c - x    x * c    x / c

Converters write a BatchNorm as a few of these; layer scales and frozen BatchNorms by hand are such, too. With one
number for all channels it is arithmetic, which an affine passes. With one for each channel it is an affine itself, and
is read as a normalisation of mean 0 and variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bnfold.ops.elementwise import Divide, Multiply, arithmetic, identity
from bnfold.ops.interface import FrontEnd
from bnfold.ops.joining import Add
from bnfold.ops.normalising import BatchNorm
from bnfold.ops.operation import Operation

__all__ = ["OfTwo", "by_constants", "channel_dim"]

OfTwo: TypeAlias = Add | Multiply | Divide
"""What may be an affine by constants, if one of the two is a constant."""


def by_constants(
    call: OfTwo,
    place: int,
    shape: tuple[int, ...],
    numbers: Callable[[], Tensor | None],
    facts: FrontEnd[Any],
    *,
    name: str,
    rank: int | None,
    fixed: bool = True,
    dtype: torch.dtype | None = None,
) -> Operation | None:
    """Return the affine that a call is, or arithmetic with one number; None where it is neither.

    Args:
        call: of a value and a constant.
        place: of the constant: 0 or 1.
        shape: of the constant.
        numbers: gives the constant, asked for only where its shape fits; None for what is no floating-point number.
        facts: the graph.
        name: of the affine, for people.
        rank: the number of dimensions of the value; None where unknown.
        fixed: whether the value has its number of channels in every run.
        dtype: of the constant in the model, where its numbers are given in another.
    """
    value = call.inputs[1 - place]
    if rank is None or len(shape) > rank or (isinstance(call, Divide) and place == 0):
        return None
    dim = channel_dim(shape, rank)
    if math.prod(shape) != 1 and (dim is None or facts.channels(value, dim) != shape[dim - rank]):
        return None  # the same is added to each example, or it is stretched
    given = numbers()
    if given is None:
        return None
    scale, shift = _line(call, place, given.detach().double().reshape(-1))
    finite = bool(torch.isfinite(scale).all() and torch.isfinite(shift).all())
    if not finite:
        return None
    if dim is None:
        factor, offset = float(scale), float(shift)
        changes = (factor, offset) != (1.0, 0.0)
        return arithmetic(call.node, value, factor, offset) if changes else identity(call.node, value)
    zero = torch.zeros(scale.numel(), dtype=dtype or given.dtype, device=given.device)
    mean, variance, weight, bias = (
        facts.made(call.node, part, tensor)
        for part, tensor in (("mean", zero), ("variance", torch.ones_like(zero)), ("scale", scale), ("shift", shift))
    )
    return BatchNorm(
        call.node, value, mean, variance, weight, bias, 0.0, False, name, fixed=fixed, dim=dim, by_constants=True
    )


def channel_dim(shape: tuple[int, ...], rank: int) -> int | None:
    """Return the dimension of a value of so many along which a constant of a shape is one for each; None for none.

    >>> channel_dim((6, 1, 1), 4), channel_dim((1, 6, 1, 1), 4), channel_dim((6,), 3), channel_dim((6, 1, 7), 4)
    (1, 1, 2, None)
    """
    dims = [dim + rank - len(shape) for dim, size in enumerate(shape) if size != 1]
    return dims[0] if len(dims) == 1 and dims[0] > 0 and 0 not in shape else None


def _line(call: Operation, place: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift."""
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    if isinstance(call, Multiply):
        return numbers, zero
    if isinstance(call, Divide):
        return 1 / numbers, zero
    assert isinstance(call, Add)
    if place == 1:
        return one, call.sign * numbers
    return call.sign * one, numbers
