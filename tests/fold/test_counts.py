"""Multiply-accumulates, parameters and operations, counted by hand and by the module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.fold.counts import Counts, counts
from tests.networks import randomise


def small() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
        nn.Dropout(),
    )
    randomise(model)
    return model


CONVOLUTIONS = 8 * 3 * 9 * 64 + 8 * 2 * 9 * 64
LINEAR = 128 * 10
PARAMETERS = (8 * 27 + 8) + 16 + (8 * 2 * 9) + 16 + (1280 + 10)


@pytest.mark.parametrize("batch", [1, 3])
def test_one_example_of_the_batch_is_counted(batch: int) -> None:
    found = counts(small(), torch.zeros(batch, 3, 16, 16))
    assert found.macs == CONVOLUTIONS + LINEAR
    assert found.parameters == PARAMETERS
    assert found.parameter_bytes == 4 * (PARAMETERS + 32) + 2 * 8  # the statistics, and two counters of batches
    assert found.ops == {"convolution": 2, "batch_norm": 2, "relu": 1, "max_pool2d": 1, "linear": 1}


def test_a_fold_keeps_the_multiplications_and_loses_the_batchnorms() -> None:
    model = small()
    model.insert(0, nn.MaxPool2d(1))
    model.insert(1, nn.BatchNorm2d(3))  # nothing absorbs it: zeros are padded after it
    randomise(model)
    before, after = bnfold.fold(model, torch.zeros(2, 3, 16, 16)).counts()
    assert before == counts(model, torch.zeros(2, 3, 16, 16))
    assert before.macs == after.macs
    assert before.ops["batch_norm"] == 3
    assert after.ops == {"max_pool2d": 2, "convolution": 2, "relu": 1, "linear": 1, "explicit_affine": 1}


def test_nothing_is_computed_and_nothing_is_changed() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ torch.ones(4, 2)

    model = Caches().eval()
    x = torch.full((2, 4), float("nan"))
    assert counts(model, x).macs == 16 + 8
    assert bool(model(x).isnan().all())


def test_what_cannot_run_on_fake_tensors_has_parameters_alone() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    assert counts(nn.Sequential(nn.Linear(2, 2), Branches()), torch.zeros(1, 2)) == Counts(None, 6, 24)
    assert counts(nn.Linear(2, 2), None) == Counts(None, 6, 24)


def test_tied_parameters_count_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert counts(nn.Sequential(layer, layer), torch.zeros(1, 4)) == Counts(32, 16, 64, {"matmul": 2})
