"""``--merge``: from a file to a verified model with one convolution, and what the reports tell."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import safetensors.torch

from tests.cli.conftest import Run

NET = """
import torch
from torch import nn

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.large, self.small = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 1, bias=False)
        self.bn3, self.bn1, self.bn0 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.wide, self.last = nn.Conv2d(6, 9, 1), nn.Conv2d(9, 4, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn3(self.large(x)) + self.bn1(self.small(x)) + self.bn0(x))
        return self.last(self.wide(x))

def make():
    torch.manual_seed(0)
    model = Branches()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model.eval()
"""

SHAPE = ("--input-shape", "2,3,12,12")  # a proof at the size that is found, 224, takes a second


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "branches.py").write_text(NET, encoding="utf-8")
    return "branches.py:make"


def test_branches_become_one_convolution_and_every_report_tells(run: Run, spec: str, tmp_path: Path) -> None:
    result = run("fold", spec, *SHAPE, "--merge", "-v", "-o", "m.onnx", "--report", "r.json", "--report", "r.md")
    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert any(line.startswith("large merged small") for line in lines)
    assert any(line.startswith("last apart wide") and "pads with zeros" in line for line in lines)
    assert any(line.startswith("1 merge: 2 layers became 1, with ") and "1 stay apart" in line for line in lines)
    assert "convolution 5 4" in lines
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node].count("Conv") == 4
    data = json.loads((tmp_path / "r.json").read_text())
    assert [(merge["into"], merge["action"]) for merge in data["merges"]] == [("large", "merge"), ("last", "refuse")]
    assert data["counts"]["before"]["macs"] > data["counts"]["after"]["macs"]
    assert data["verification"]["passed"]
    told = (tmp_path / "r.md").read_text()
    assert "| large | merged | small |" in told
    assert "1 merge: 2 layers became 1" in told


def test_without_it_nothing_merges_and_nothing_is_told(run: Run, spec: str, tmp_path: Path) -> None:
    result = run("fold", spec, *SHAPE, "-o", "m.safetensors", "--report", "r.json")
    assert result.code == 0, result.err
    assert "merge" not in result.out
    assert "merges" not in json.loads((tmp_path / "r.json").read_text())
    assert "small.weight" in safetensors.torch.load_file(tmp_path / "m.safetensors")


def test_keep_undoes_a_merge(run: Run, spec: str, tmp_path: Path) -> None:
    result = run("fold", spec, *SHAPE, "--merge", "--keep", "small", "-o", "m.safetensors")
    assert result.code == 0, result.err
    assert "small.weight" in safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert "No convolutions became one" in result.out


def test_explain_tells_what_would_merge(run: Run, spec: str) -> None:
    result = run("explain", spec, "--merge", "--input-shape", "2,3,8,8")
    assert result.code == 0, result.err
    assert "large" in result.out
    assert "pads with zeros" in result.out
    assert "1 merge: 2 layers became 1" in result.out


def test_a_wrong_merge_is_not_written(run: Run, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: the small kernel stands one tap off."""
    from bnfold.fold.merge import branches
    from bnfold.fold.merge.geometry import Place
    from bnfold.fold.merge.kernels import added

    def off(total, weight, place):  # type: ignore[no-untyped-def]
        moved = Place((0, 0), place.step) if weight.shape[2:] == (1, 1) else place
        added(total, weight, moved)

    monkeypatch.setattr(branches, "added", off)
    result = run("fold", spec, *SHAPE, "--merge", "-o", "m.safetensors")
    assert result.code == 1
    assert "not equivalent" in result.err
    assert not (tmp_path / "m.safetensors").exists()
