"""Models whose code fixes the batch: their files are written, and the output says why they take one batch only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
import torch

from tests.cli.conftest import Run

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def body(self, x):
        return self.bn(self.conv(x))

    def forward(self, x):
        {code}


def make():
    return Net().eval()
"""
CODES = {
    "loop": ("return torch.stack([self.body(image[None])[0] for image in x])", "`x.shape[0] == 2` holds"),
    "asked": ("assert x.shape[0] == 2; return self.body(x)", "`x.shape[0] == 2` holds"),
    "range": ("return torch.cat([self.body(x[i:i + 1]) for i in range(x.shape[0])])", "`x.shape[0] == 2` holds"),
    "view": ("return self.body(x).view(2, -1)", "`view`"),
    "reshape": ("return self.body(x).reshape(2, 384)", "`reshape`"),
    "two or more": ("return self.body(x) if x.shape[0] > 1 else self.body(x) * 2", "`x.shape[0] > 1` holds"),
}


@pytest.mark.parametrize("name", CODES)
def test_files_are_written_for_one_batch_and_the_output_says_why(run: Run, tmp_path: Path, name: str) -> None:
    code, why = CODES[name]
    (tmp_path / "net.py").write_text(NET.replace("{code}", code))
    result = run("fold", "net.py:make", "--input-shape", "2,3,8,8", "-o", "a.onnx", "-o", "a.pt2", "--report", "a.json")
    assert result.code == 0, result.err
    for path in ("a.onnx", "a.pt2"):
        assert re.search(rf"wrote {path} .*, for batch 2 only\n", result.out)
    note = next(line for line in result.err.splitlines() if why in line)
    assert re.search(r"\b2( only)?: `.*net\.py:19", note), note
    (shape,) = (value.type.tensor_type.shape for value in onnx.load("a.onnx").graph.input)
    assert [dimension.dim_value for dimension in shape.dim] == [2, 3, 8, 8]
    program = torch.export.load("a.pt2").module()
    with pytest.raises(Exception, match="2"):
        program(torch.randn(3, 3, 8, 8))
    report = json.loads(Path("a.json").read_text())
    assert report["fixed_batch"]["size"] == 2
    assert why in report["fixed_batch"]["why"]
    own = [case for case in report["verification"]["cases"] if "batch 2" in case]
    assert len(own) >= 1 if name == "two or more" else len(own) >= 2


def test_a_model_of_any_batch_is_not_said_to_have_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.replace("{code}", "return self.body(x)"))
    result = run("fold", "net.py:make", "--input-shape", "2,3,8,8", "-o", "a.onnx", "--report", "a.json")
    assert result.code == 0, result.err
    assert "batch 2 only" not in result.out + result.err
    assert "fixed_batch" not in json.loads(Path("a.json").read_text())


def test_a_wrong_fold_of_a_fixed_batch_is_found(run: Run, tmp_path: Path) -> None:
    code, _ = CODES["loop"]
    (tmp_path / "net.py").write_text(NET.replace("{code}", code))
    (tmp_path / "other.py").write_text(NET.replace("{code}", code.replace("[0] for", "[0] * 1.001 for")))
    assert run("fold", "net.py:make", "--input-shape", "2,3,8,8", "-o", "a.onnx", "-o", "a.pt2").code == 0
    for candidate in ("a.onnx", "a.pt2"):
        right = run("verify", "net.py:make", candidate, "--trust", "--input-shape", "2,3,8,8")
        assert right.code == 0, right.out + right.err
        assert run("verify", "other.py:make", candidate, "--trust", "--input-shape", "2,3,8,8").code == 1
