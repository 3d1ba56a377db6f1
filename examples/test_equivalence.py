"""A pytest that guards a deployment: copy it beside your model and put your model and inputs in.

    pytest examples/test_equivalence.py

It fails as soon as a change to the model, to torch or to bnfold makes the folded model compute something else, or
leaves a BatchNorm where there was none. What fails says by how much, where, and which BatchNorm is to blame.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import bnfold

if TYPE_CHECKING:  # pytest itself imports the plugin below
    from bnfold.testing import AssertEquivalent, AssertFolds

pytest_plugins = ["bnfold.testing"]  # not needed where bnfold is installed: pytest finds it by itself


@pytest.fixture
def model() -> nn.Module:
    """Your model, with its trained weights, in eval mode. This one has some that look like it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 14 * 14, 10),
        nn.BatchNorm1d(10),
    )
    for _ in range(3):  # in training mode: the BatchNorms see some batches
        net(torch.randn(16, 1, 28, 28))
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 1, 28, 28)


def test_every_batchnorm_folds_and_the_function_stays(
    model: nn.Module, images: Tensor, assert_folds: AssertFolds
) -> None:
    assert_folds(model, images)


def test_the_deployed_file_computes_the_same_function(
    model: nn.Module, images: Tensor, assert_equivalent: AssertEquivalent, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    bnfold.export_onnx(bnfold.fold(model, images).module, path, images)
    assert_equivalent(model, path, images)


def test_without_the_fixtures(model: nn.Module, images: Tensor) -> None:
    folding = bnfold.fold(model, images)
    bnfold.assert_equivalent(model, folding.module, images)
