"""A plan alone finds the weights that a fold would round to infinity, by a bound that may not be too small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.fold.overflow import _largest
from tests.fold.support import double


def made(kind: str, dtype: torch.dtype) -> Tensor:
    """Return a tensor whose largest magnitude is hard to bound in some way."""
    numbers = torch.randn(64, 33, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if kind == "one among zeros":
        numbers = torch.zeros_like(numbers)
        numbers[5, 3, 1, 1] = -3.5
    elif kind == "tiny":
        numbers *= 1e-25
    elif kind == "all equal":
        numbers.fill_(-0.7)
    elif kind == "square overflows":
        numbers *= 1e21 if dtype == torch.float32 else 3e3
    elif kind == "nothing":
        numbers = numbers[:0]
    result = numbers.to(dtype)
    return result.to(memory_format=torch.channels_last) if kind == "channels last" else result


KINDS = ("ordinary", "one among zeros", "tiny", "all equal", "square overflows", "nothing", "channels last")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_never_below_the_largest_magnitude(kind: str, dtype: torch.dtype) -> None:
    tensor = made(kind, dtype)
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    assert _largest(tensor) >= largest
    if kind == "ordinary":  # and it is no bound at will: the root of the number of elements is what it may lose
        assert _largest(tensor) <= 1.01 * largest * math.sqrt(tensor.numel())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_is_not_finite_has_no_finite_bound(value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(4, 8, 3, 3, dtype=dtype)
    tensor[2, 5, 1, 0] = value
    assert not math.isfinite(_largest(tensor))


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e38, 1e30, 1.0])
def test_plan_decides_about_one_odd_weight_what_fold_does(value: float) -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float()
    net[1].weight.data.fill_(1e3)
    net[0].weight.data[2, 1, 0, 2] = value
    planned, folded = bnfold.plan(net), bnfold.fold(net).plan
    assert [(d.action, d.reason) for d in planned] == [(d.action, d.reason) for d in folded]
    assert planned[0].action == ("fold" if value < 1e34 else "affine")
