"""Whatever a runtime does, it does to its own process: there are outputs, or one sentence."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnfold.errors import UsageError, WitnessError
from bnfold.witness import registry
from bnfold.witness.session import Session

FAKES = "tests.witness.fakes"
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two outputs of one input whose name is no Python name."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in ("a/b:0", "twice", "square")]
    nodes = [helper.make_node("Add", ["a/b:0"] * 2, ["twice"]), helper.make_node("Mul", ["a/b:0"] * 2, ["square"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def session(request: pytest.FixtureRequest, model: Path) -> Iterator[Session]:
    made = Session(f"{FAKES}:{request.param}", model, seconds=60)
    yield made
    made.close()


@pytest.mark.parametrize("session", ["right", "prints", "floods"], indirect=True)
def test_outputs_come_in_the_order_of_the_file_as_often_as_they_are_asked_for(session: Session) -> None:
    for x in (X, X + 1):
        twice, square = session({"a/b:0": x})
        np.testing.assert_array_equal(twice, x * 2)
        np.testing.assert_array_equal(square, x * x)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("crashes", "its process ended with SIGSEGV"),
        ("leaves", "its process ended with code 3"),
        ("hangs", "it gave no answer within 1.5 seconds and was ended"),
    ],
)
def test_one_that_ends_or_hangs_while_it_runs_is_told_in_a_sentence(name: str, says: str, model: Path) -> None:
    made = Session(f"{FAKES}:{name}", model, seconds=60)
    made._seconds = 1.5 if name == "hangs" else 60
    begin = time.monotonic()
    with pytest.raises(WitnessError) as caught:
        made({"a/b:0": X})
    assert caught.value.what == f"The witness {FAKES}:{name} fails: {says}."
    assert time.monotonic() - begin < 60
    assert made._process.returncode is not None
    assert not made._folder.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"{FAKES}:crashes_on_load", "its process ended with SIGABRT"),
        (f"{FAKES}:refuses", "no kernel for this, and more lines"),
        ("no_such_package:load", r"the package no_such_package is not installed \(`pip install "),
        (f"{FAKES}:no_such_function", "no_such_function"),
    ],
)
def test_one_that_does_not_load_is_told_in_a_sentence(name: str, says: str, model: Path) -> None:
    with pytest.raises(WitnessError, match=says) as caught:
        Session(name, model, seconds=60)
    assert "\n" not in str(caught.value)


def test_closing_ends_the_process_and_removes_what_it_was_given(model: Path) -> None:
    made = Session(f"{FAKES}:right", model, seconds=60)
    made({"a/b:0": X})
    process, folder = made._process, made._folder
    assert sorted(os.listdir(folder)) == ["inputs.npz", "outputs.npz"]
    made.close()
    assert process.returncode is not None
    assert not folder.exists()


def test_an_unknown_witness_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match="no witness called `openvno`") as caught:
        registry.find("openvno")
    assert caught.value.fix == "Did you mean `openvino`?"


def test_packages_register_witnesses_as_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "tool-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: tool\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[bnfold.witnesses]\ntool = tool.runtime:load\nopenvino = tool:evil\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.find("tool").value == "tool.runtime:load"
    assert registry.find("openvino").value == "bnfold.witness.openvino:load", "bnfold's own cannot be replaced"
