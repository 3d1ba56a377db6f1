"""``--affines``: layer scales and frozen BatchNorms by hand, from a file to a verified model; what is told of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from bnfold.batch.columns import columns
from tests.cli.conftest import Run

NET = """
import torch
from torch import nn

class Frozen(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name in ("gain", "bias", "mean"):
            self.register_buffer(name, torch.randn(channels))
        self.register_buffer("variance", torch.rand(channels) + 0.3)

    def forward(self, x):
        scale = self.gain * (self.variance + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.mean * scale).reshape(1, -1, 1, 1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.frozen = nn.Conv2d(3, 8, 3), Frozen(8)
        self.last, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x):
        y = torch.relu(self.frozen(self.conv(x)))
        return torch.sigmoid(torch.sigmoid(y + self.bn(self.last(y)) * self.gamma) * self.gamma)

def make():
    torch.manual_seed(0)
    return Net().eval()
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "scaled.py").write_text(NET, encoding="utf-8")
    return "scaled.py:make"


def test_affines_fold_are_proved_and_told_by_their_kind(run: Run, spec: str, tmp_path: Path) -> None:
    shape = ("--input-shape", "2,3,8,8")
    result = run(
        "fold", spec, "--affines", "--strict", *shape, "-o", "m.safetensors", "--report", "r.json", "--report", "r.html"
    )
    assert result.code == 0, result.err
    assert "1 BatchNorm and 4 affines by constants: 3 folded, 0 explicit affine, 2 kept" in result.out
    decisions = json.loads((tmp_path / "r.json").read_text())["batchnorms"]
    assert [(d["batchnorm"], d["kind"], d["action"], d["reason"]) for d in decisions] == [
        ("frozen", "affine", "fold", None),
        ("frozen", "affine", "fold", None),
        ("bn", "batchnorm", "fold", None),
        ("gamma", "affine", "keep", "shared"),
        ("gamma", "affine", "keep", "shared"),
    ]
    assert set(safetensors.torch.load_file(tmp_path / "m.safetensors")) == {
        *("conv.weight", "conv.bias", "last.weight", "last.bias", "gamma")
    }
    assert "gamma" in (tmp_path / "r.html").read_text()


def test_explain_names_one_and_without_the_option_there_is_none(run: Run, spec: str) -> None:
    shape = ("--input-shape", "2,3,8,8")
    told = run("explain", spec, "gamma", "--affines", *shape)
    assert told.code == 0, told.err
    assert "needs a gradient and is used elsewhere too" in told.out
    assert run("explain", spec, "gamma", *shape).code == 2


def test_a_manifest_has_the_column() -> None:
    assert columns()["affines"].values("yes") == ["--affines"]
