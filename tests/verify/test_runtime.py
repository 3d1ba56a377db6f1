"""ONNX models under ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import FileAccessError, RefusedFileError
from bnfold.export import to_onnx
from bnfold.verify import runtime
from bnfold.verify.runtime import NoKernelError, OrtModel
from tests.networks import built, normal


def doubled(name: str = "Mul", dtype: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of two inputs, the second unused, by hand."""
    helper = onnx.helper
    x = helper.make_tensor_value_info("x", dtype, ["batch", 3])
    unused = helper.make_tensor_value_info("unused", onnx.TensorProto.INT64, [])
    y = helper.make_tensor_value_info("y", dtype, ["batch", 3])
    two = helper.make_tensor("two", dtype, [3], np.full(3, 2.0))
    graph = helper.make_graph([helper.make_node(name, ["x", "two"], ["y"])], "g", [x, unused], [y], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("optimisation", ["off", "full"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_inputs_are_matched_by_position_and_what_is_no_tensor_is_left_out(optimisation, batch):
    model = OrtModel(doubled(), optimisation)
    assert model.input_names == ("x", "unused")
    x = normal(batch, 3)
    (y,) = model(x, "no tensor", torch.tensor(3))
    assert torch.equal(y, x * 2)


def test_a_model_can_be_a_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(doubled(), path)
    assert torch.equal(OrtModel(path, "off")(normal(2, 3), torch.tensor(3))[0], normal(2, 3) * 2)


def test_views_and_other_memory_formats_are_taken():
    x = normal(3, 4).t()[1:]
    assert torch.equal(OrtModel(doubled(), "off")(x, torch.tensor(0))[0], x * 2)


def test_a_missing_file_and_a_bad_one_are_refused(tmp_path):
    with pytest.raises(FileAccessError, match="no file"):
        OrtModel(tmp_path / "none.onnx", "off")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not onnx")
    with pytest.raises(RefusedFileError, match="does not take the model"):
        OrtModel(bad, "off")
    with pytest.raises(RefusedFileError, match="NoSuchOperator") as caught:
        OrtModel(doubled("NoSuchOperator"), "off")
    assert "\n" not in str(caught.value)


def test_wrong_inputs_raise_one_line():
    model = OrtModel(doubled(), "off")
    with pytest.raises(RuntimeError, match=r"takes 2 inputs \(x, unused\), and 1 is given"):
        model(normal(2, 3))
    with pytest.raises(RuntimeError) as caught:
        model(normal(2, 4), torch.tensor(0))
    assert "\n" not in str(caught.value)


def test_nothing_is_printed(capfd):
    OrtModel(doubled(), "full")(normal(2, 3), torch.tensor(0))
    with pytest.raises(RuntimeError):
        OrtModel(doubled(), "full")(normal(2, 4), torch.tensor(0))
    assert capfd.readouterr() == ("", "")


def test_a_model_too_large_for_one_message_is_run_from_a_file_that_goes_away(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "PROTOBUF_LIMIT", 1)
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    linear = torch.nn.Linear(3, 5).eval()
    model = OrtModel(to_onnx(linear, normal(2, 3)), "off")
    torch.testing.assert_close(model(normal(2, 3))[0], linear(normal(2, 3)).detach())
    assert [file.name for file in tmp_path.glob("bnfold-*/*")] == ["model.onnx"]
    del model
    assert list(tmp_path.glob("bnfold-*")) == []


def test_a_precision_without_kernels_is_proved_in_float64():
    model = built(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).to(torch.bfloat16)
    x = normal(2, 3, 8, 8).to(torch.bfloat16)
    folded = bnfold.fold(model, x).module
    with pytest.raises(NoKernelError, match="for want of a kernel"):
        OrtModel(to_onnx(folded, x), "off")
    report = bnfold.verify(model, folded, x, onnx=True)
    assert report.passed, str(report)
    assert report.comparisons[-1].name == "ONNX, computed in float64"
    assert any("kernel" in note for note in report.notes)
    assert bnfold.verify(model, folded, x, onnx=False).passed
    with torch.no_grad():
        folded.get_parameter("0.bias").mul_(2)
    assert bnfold.verify(model, folded, x, onnx=True).verdict == "failed"  # the missing kernel hides no wrong fold
