"""``bnfold fold``, ``explain``, ``verify`` and ``bench`` of an .onnx file, by their exit codes and what they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold import ops
from bnfold.cli import main
from bnfold.onnx_graph import rewrite
from bnfold.onnx_graph.facts import OnnxFacts
from bnfold.onnx_graph.spellings import READERS
from tests.onnx_graph.graphs import GRAPHS
from tests.onnx_graph.support import Net, left

SMALL = ("--input-shape", "2,4,8,8")  # cheap


def run(*words: object) -> int:
    return main([str(word) for word in words])


def written(path: Path, name: str = "concat_bn") -> Path:
    model = next(small for small in GRAPHS if small.name == name).model()
    onnx.save(model, path)
    return path


def test_fold_writes_a_proven_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "net.onnx")
    assert run("fold", source, "--report", tmp_path / "report.json", *SMALL) == 0
    assert left(onnx.load(tmp_path / "net.folded.onnx")) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["capture"] == "onnx"
    assert report["summary"] == {"fold": 1, "affine": 0, "keep": 0}
    assert [decision["kind"] for decision in report["batchnorms"]] == ["batchnorm"]
    names = [comparison["name"] for comparison in report["verification"]["comparisons"]]
    assert names == ["float64 algebra", "ONNX Runtime, optimisations off", "ONNX Runtime, optimisations on"]
    assert report["verification"]["passed"]
    assert all("and" in comparison["compared_on"] for comparison in report["verification"]["comparisons"])
    assert [Path(output["path"]).name for output in report["outputs"]] == ["net.folded.onnx"]
    assert "equivalent" in capsys.readouterr().out


def test_verify_and_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "net.onnx", "conv_pool_mul_add")
    assert run("explain", source) == 0
    told = capsys.readouterr().out
    assert "mul6" in told
    assert "conv3" in told
    assert run("fold", source, "-q", *SMALL) == 0
    assert run("verify", source, tmp_path / "net.folded.onnx", *SMALL) == 0
    assert run("explain", source, "mul7") == 2
    assert "Did you mean" in capsys.readouterr().err


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "net.onnx")
    assert run("bench", source, "--seconds", "0", "--input-shape", "1,4,8,8") == 0
    assert "ONNX Runtime" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--opset", "17"), 2),
        (("--dynamic", "batch"), 2),
        (("-o", "out.pt2"), 2),
        (("--keep", "nothing"), 2),
        (("--strict",), 0),
    ],
)
def test_options_that_mean_nothing_here_are_usage_errors(tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    source = written(tmp_path / "net.onnx")
    assert run("fold", source, "-q", *options, *SMALL) == code
    assert (tmp_path / "net.folded.onnx").exists() == (code == 0)


def test_strict_counts_normalisations_and_not_affines(tmp_path: Path) -> None:
    net = Net()
    x = net.node("Mul", [net.node("Sigmoid", [net.input(["n", 4, 8, 8])]), net.weight(4, 1, 1)])
    onnx.save(net.model(net.node("Sigmoid", [net.bn(net.conv(x, 4, 6, pads=[1] * 4), 6)])), tmp_path / "net.onnx")
    assert run("fold", tmp_path / "net.onnx", "-q", "--strict", *SMALL) == 0
    source = written(tmp_path / "other.onnx", "bn_alone")
    assert run("fold", source, "-q", "--strict") == 4
    assert not (tmp_path / "other.folded.onnx").exists()


def spoiled(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
    right = rewrite.absorbed_weights
    monkeypatch.setattr(rewrite, "absorbed_weights", lambda *given: change(*right(*given)))


def one_weight(monkeypatch: pytest.MonkeyPatch) -> str:
    def change(weight: Any, bias: Any) -> tuple[Any, Any]:
        weight.data.view(-1)[:1] *= 1.001
        return weight, bias

    spoiled(monkeypatch, change)
    return "conv_bn"


def no_shift(monkeypatch: pytest.MonkeyPatch) -> str:
    spoiled(monkeypatch, lambda weight, bias: (weight, bias * 0))
    return "conv_average_pool_bn"


def another_order_of_pixels(monkeypatch: pytest.MonkeyPatch) -> str:
    def wrong(node: Any, a: Any) -> Any:
        return ops.PixelShuffle(node, a.value(), a.integer("blocksize", 0), False)

    monkeypatch.setitem(READERS, "DepthToSpace", wrong)
    return "conv_depth_to_space_bn"


def padding_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ops.Convolution, "shift_stops", lambda *_: None)
    return "bn_conv_that_pads_one_side"


def maxima_of_negative_scales(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ops.MaxPool, "rule", ops.Passing.rule)
    return "conv_max_pool_bn_of_negative_scales"


def a_beta_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> str:
    right = OnnxFacts.parameter
    monkeypatch.setattr(
        OnnxFacts, "parameter", lambda self, value, **made: right(self, value, **{**made, "factor": 1.0})
    )
    return "gemm_with_alpha_and_beta_bn"


MUTANTS = [
    *(one_weight, no_shift, another_order_of_pixels, padding_that_nobody_sees, maxima_of_negative_scales),
    a_beta_that_is_forgotten,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_fold_is_caught_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], str]
) -> None:
    name = mutant(monkeypatch)
    source = written(tmp_path / "net.onnx", name)
    shape = "4,5" if name.startswith("gemm") else "2,4,8,8"
    assert run("fold", source, "-q", "--input-shape", shape) == 1
    assert not (tmp_path / "net.folded.onnx").exists()


# --- files from strangers ----------------------------------------------------------------------------------------


def external(folder: Path, location: str = "net.data") -> Path:
    source = written(folder / "net.onnx")
    model = onnx.load(source)
    onnx.save_model(
        model, source, save_as_external_data=True, location="net.data", size_threshold=0, all_tensors_to_one_file=True
    )
    if location != "net.data":
        model = onnx.load(source, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        source.write_bytes(model.SerializeToString())
    return source


def broken(folder: Path, how: str) -> Path:
    source = written(folder / "net.onnx")
    model = onnx.load(source)
    if how == "cut":
        source.write_bytes(source.read_bytes()[:-200])
        return source
    if how == "missing initializer":
        del model.graph.initializer[0]
    elif how == "cycle":
        model.graph.node[0].input[0] = model.graph.node[-1].output[0]
    elif how == "negative size":
        model.graph.initializer[0].dims[0] = -4
    elif how == "more declared than held":
        model.graph.initializer[0].dims[0] = 2**40
    elif how == "two of one name":
        model.graph.node[1].output[0] = model.graph.node[0].output[0]
    elif how == "an output that nothing gives":
        model.graph.output[0].name = "nothing"
    elif how == "no graph":
        model.ClearField("graph")
    elif how == "sparse":
        model.graph.sparse_initializer.add()
    elif how == "of no type":
        model.graph.initializer[0].data_type = 99
    elif how == "wrong shape":
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.zeros((6, 5, 3, 3), np.float32), model.graph.initializer[0].name)
        )
    elif how == "opset":
        model.opset_import[0].version = 5
    source.write_bytes(model.SerializeToString())
    return source


HOWS = [
    *("cut", "missing initializer", "cycle", "negative size", "more declared than held", "two of one name"),
    *("an output that nothing gives", "no graph", "sparse", "of no type", "wrong shape", "opset"),
]


@pytest.mark.parametrize("how", HOWS)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", broken(tmp_path, how), "-q") == 3
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert told.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize("location", ["../net.data", "/etc/passwd", "elsewhere/../../net.data", "nothing.data"])
def test_weights_outside_of_the_folder_are_refused(
    tmp_path: Path, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    source = external(folder, location)
    (tmp_path / "net.data").write_bytes((folder / "net.data").read_bytes())
    assert run("fold", source, "-q", *SMALL) == 3
    assert "folder" in capsys.readouterr().err or location == "nothing.data"
    assert not (folder / "net.folded.onnx").exists()


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    source = external(folder)
    (folder / "net.data").rename(tmp_path / "net.data")
    (folder / "net.data").symlink_to(tmp_path / "net.data")
    assert run("fold", source, "-q", *SMALL) == 3


def test_weights_in_another_file_stay_in_one(tmp_path: Path) -> None:
    source = external(tmp_path)
    before = (tmp_path / "net.data").read_bytes()
    assert run("fold", source, "-q", *SMALL) == 0
    assert (tmp_path / "net.data").read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["net.data", "net.folded.onnx", "net.folded.onnx.data", "net.onnx"]
    assert run("verify", source, tmp_path / "net.folded.onnx", *SMALL) == 0
    (tmp_path / "net.data").unlink()
    assert left(onnx.load(tmp_path / "net.folded.onnx")) == 0
