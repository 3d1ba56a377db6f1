"""The verifier on the seed network, right fold and wrong."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bnfold.verify import verify


class Seed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 14 * 14, 10)

    def forward(self, x):
        return self.fc1(torch.relu(self.bn1(self.pool(self.conv1(x)))).view(-1, 8 * 14 * 14))


def seed_network() -> Seed:
    torch.manual_seed(0)
    model = Seed().eval()
    nn.init.uniform_(model.bn1.weight, 0.3, 2)
    nn.init.normal_(model.bn1.bias)
    nn.init.normal_(model.bn1.running_mean)
    nn.init.uniform_(model.bn1.running_var, 0.1, 3)
    return model


def folded(model: Seed, eps: float = 1e-5) -> Seed:
    result, bn = copy.deepcopy(model), model.bn1
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + eps)
    shift = bn.bias.double() - bn.running_mean.double() * scale
    result.conv1.weight.data = (model.conv1.weight.double() * scale[:, None, None, None]).float()
    result.conv1.bias.data = (model.conv1.bias.double() * scale + shift).float()
    result.bn1 = nn.Identity()
    return result


def test_a_right_fold_passes_in_torch_and_as_onnx():
    report = verify(seed_network(), folded(seed_network()), torch.randn(1, 1, 28, 28))
    assert report.passed, str(report)
    assert [c.name for c in report.comparisons] == [
        "rounded weights",
        "torch",
        "ONNX Runtime, optimisations off",
        "ONNX Runtime, optimisations on",
    ]


def test_another_eps_fails():
    report = verify(seed_network(), folded(seed_network(), eps=2e-5), torch.randn(1, 1, 28, 28), onnx=False)
    assert not report.passed
    assert report.verdict == "failed"
    assert "times what rounding makes" in report.reason
