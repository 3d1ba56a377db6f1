"""``--dynamic`` and ``--opset``: a size that was guessed is not frozen, and the output says what is free."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bnfold
from tests.cli.conftest import Run

NET = """
import torch
from torch import nn


def net(*more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(4), *more)
    model[2].running_mean.normal_()
    model[2].running_var.uniform_(0.5, 2)
    return model.eval()


def make():
    torch.manual_seed(1)
    return net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def pooled():
    torch.manual_seed(1)
    return net(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 2))
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


def test_a_file_of_a_guessed_shape_runs_at_another(run: Run, net: Path) -> None:
    result = run("fold", "net.py:make", "-o", "a.onnx", "-o", "a.pt2", "--report", "a.json")
    assert result.code == 0, result.err
    assert "wrote a.onnx  (batch, 3, height, width)  " in result.out
    assert "wrote a.pt2  (batch, 3, height, width)  " in result.out
    report = json.loads(Path("a.json").read_text())
    assert report["outputs"][0]["inputs"] == "(batch, 3, height, width)"
    on = {comparison["name"]: comparison["compared_on"] for comparison in report["verification"]["comparisons"]}
    assert on["ONNX Runtime, optimisations off"] == "batch 1-3, 224x224 and 167x281"  # two batches, one size not square
    assert on["torch.export"] == "batch 1-3, 224x224 and 167x281"
    space: dict[str, object] = {}
    exec(NET, space)
    model = space["make"]()  # type: ignore[operator]
    x = torch.randn(3, 3, 51, 33)
    with torch.no_grad():
        expected = model(x).numpy()
    session = onnxruntime.InferenceSession("a.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], expected, atol=1e-5)
    program = torch.export.load("a.pt2").module()
    np.testing.assert_allclose(program(x).detach().numpy(), expected, atol=1e-5)
    bnfold.export_onnx(model, "own.onnx", torch.randn(2, 3, 32, 32))  # as somebody else would, at 32x32
    compared = run("verify", "own.onnx", "a.onnx")
    assert compared.code == 0, compared.err
    both = run("verify", "a.onnx", "a.onnx")  # of which no size is known
    assert both.code == 0, both.err


def test_a_given_shape_is_kept_unless_its_size_is_to_be_free(run: Run, net: Path) -> None:
    given = ("fold", "net.py:make", "--input-shape", "1,3,32,32", "--force", "-q", "--no-verify", "-o", "a.onnx")
    sizes = {}
    for dynamic in (None, "batch,size", "size", "none"):
        result = run(*given, *([] if dynamic is None else ["--dynamic", dynamic]))
        assert result.code == 0, result.err
        (shape,) = (value.type.tensor_type.shape.dim for value in onnx.load("a.onnx").graph.input)
        sizes[dynamic] = [dim.dim_param or dim.dim_value for dim in shape]
    assert sizes == {
        None: ["batch", 3, 32, 32],
        "batch,size": ["batch", 3, "height", "width"],
        "size": [1, 3, "height", "width"],
        "none": [1, 3, 32, 32],
    }


def test_what_onnx_cannot_do_is_said_with_the_modules_name(run: Run, net: Path) -> None:
    result = run("fold", "net.py:pooled", "-o", "a.onnx", "--no-verify")
    assert result.code == 0, result.err
    assert "ONNX has no adaptive pooling to 7, which `3` does." in " ".join(result.err.split())
    assert "wrote a.onnx  (batch, 3, 224, 224)  " in result.out
    named = run("fold", "net.py:pooled", "--input-shape", "2,3,28,28", "-o", "b.onnx", "--dynamic", "batch,size")
    assert named.code == 6
    assert "The size cannot stay free in ONNX" in named.err
    assert not Path("b.onnx").exists()


def test_an_opset_is_written_and_proved(run: Run, net: Path) -> None:
    result = run("fold", "net.py:make", "--input-shape", "2,3,16,16", "-o", "a.onnx", "--opset", "15")
    assert result.code == 0, result.err
    assert "equivalent in" in result.out
    assert onnx.load("a.onnx").opset_import[0].version == 15


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dynamic", "hight"], "`hight` is no dimension that can stay free."),
        (["--opset", "999"], "There is no opset 999"),
        (["--opset", "18", "-o", "a.pt2"], "--opset is about .onnx files"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_before_any_work(
    run: Run, net: Path, options: list[str], said: str
) -> None:
    result = run("fold", "net.py:missing", *options)
    assert result.code == 2
    assert said in " ".join(result.err.split())


def test_bench_takes_what_is_free(run: Run, net: Path) -> None:
    given = ("bench", "net.py:make", "--input-shape", "1,3,16,16", "--seconds", "0.05", "--target", "onnxruntime")
    result = run(*given, "--batch", "1", "--batch", "2", "--dynamic", "batch,size")
    assert result.code == 0, result.err
    assert result.out.count("ONNX Runtime") == 2
