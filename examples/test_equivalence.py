"""A pytest that guards a deployment: copy it beside your model and put your model and inputs in.

    pytest examples/test_equivalence.py

It fails as soon as a change to the model, to torch or to bnfold makes the folded model compute something else, or
leaves a BatchNorm where there was none.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bnfold


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


def test_the_folded_model_computes_the_same_function(model: nn.Module, images: Tensor) -> None:
    folding = bnfold.fold(model, images)
    bnfold.assert_equivalent(model, folding.module, images, onnx=True)


def test_no_batchnorm_is_left(model: nn.Module, images: Tensor) -> None:
    plan = bnfold.plan(model, images)
    assert plan.summary == {"fold": len(plan), "affine": 0, "keep": 0}, [decision.detail for decision in plan]
