"""Rows of weights are scaled in float64 and rounded once, whatever their layout, dtype and size."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from bnfold.affine import ChannelAffine
from bnfold.ops.form import ChannelForm

weights = importlib.import_module("bnfold.fold.rounded")

LAYOUTS = {
    "contiguous": torch.randn(7, 5, 3, 3),
    "channels_last": torch.randn(7, 5, 3, 3).contiguous(memory_format=torch.channels_last),
    "channels_last_3d": torch.randn(7, 5, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d),
    "a matrix": torch.randn(7, 5),
    "a transposed matrix": torch.randn(5, 7).t(),
    "every second row": torch.randn(14, 5)[::2],
    "every second column": torch.randn(7, 10)[:, ::2],
    "one value stretched": torch.randn(7, 1, 1, 1).expand(7, 5, 3, 3),
    "one row": torch.randn(1, 5, 3, 3),
    "no rows": torch.randn(0, 5, 3, 3),
    "empty rows": torch.randn(7, 0),
}


def expected(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)


@pytest.mark.parametrize("piece", [1, 10, 45, 100, 65536])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_product_is_that_of_float64_rounded_once(layout: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_PIECE", piece)
    weight = LAYOUTS[layout]
    before, scale = weight.clone(), torch.randn(weight.shape[0], dtype=torch.float64)
    found, finite = weights._scaled_rows(weight, scale)
    assert finite
    assert torch.equal(found, expected(weight, scale))
    assert found.stride() == torch.empty_like(weight).stride()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_in_every_dtype(dtype: torch.dtype) -> None:
    weight, scale = torch.randn(9, 4, 3, 3).to(dtype), torch.randn(9, dtype=torch.float64)
    found, finite = weights._scaled_rows(weight, scale)
    assert finite
    assert found.dtype == dtype
    assert torch.equal(found, expected(weight, scale))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_with_any_number_of_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    weight, scale = torch.randn(300, 257, 3, 3), torch.randn(300, dtype=torch.float64)
    assert torch.equal(weights._scaled_rows(weight, scale)[0], expected(weight, scale))


@pytest.mark.parametrize("row", [0, 4, 8])
@pytest.mark.parametrize(("value", "factor"), [(torch.inf, 1.0), (torch.nan, 1.0), (3e38, 2.0), (-3e38, 2.0)])
def test_a_product_that_is_not_finite_is_seen_in_whatever_piece_it_is(
    row: int, value: float, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PIECE", 80)
    weight = torch.randn(9, 4, 3, 3)
    weight[row, 2, 1, 1] = value
    assert not weights._scaled_rows(weight, torch.full((9,), factor, dtype=torch.float64))[1]


def test_a_sum_that_overflows_is_no_product_that_does() -> None:
    assert weights._scaled_rows(torch.full((4, 4), 3e38), torch.ones(4, dtype=torch.float64))[1]


def test_a_demand_is_split_into_its_parts_with_what_they_care_for() -> None:
    scale, shift = torch.randn(2, 6, dtype=torch.float64)
    cares = torch.tensor([True, False, True, False, True, False])
    demand = ChannelForm(ChannelAffine(scale, shift), 1, 4, cares, unsure=True)
    parts = demand.split([1, 0, 3, 2])
    for part, place in zip(parts, ([0], [], [1, 2, 3], [4, 5]), strict=True):
        picked = demand.picked(torch.tensor(place, dtype=torch.long))
        assert torch.equal(part.affine.scale, picked.affine.scale)
        assert torch.equal(part.affine.shift, picked.affine.shift)
        assert part.cares is not None
        assert torch.equal(part.cares, picked.cares)
        assert (part.dim, part.rank, part.unsure) == (1, 4, True)
    assert all(part.cares is None for part in ChannelForm(ChannelAffine(scale, shift), 1, 4).split([2, 4]))
