"""Large weights in a file apart: computed in pieces while they are written, and the same as those computed at once."""

from __future__ import annotations

import gc
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import bnfold
from bnfold.cli import main
from bnfold.onnx_graph import api, rewrite
from bnfold.verify import onnx_double, runtime
from bnfold.verify.onnx_double import DoubleModel
from bnfold.verify.onnx_original import OnnxOriginal
from tests.onnx_graph.graphs import GRAPHS
from tests.onnx_graph.support import answers, drawn, peak_error

LAYERS = {
    "bn_conv": True,
    "bn_flatten_gemm": True,
    "bn_matmul": True,
    "conv1d_bn": True,
    "conv_bn": True,
    "conv_transpose_bn": False,
    "gemm_with_alpha_and_beta_bn": True,
    "grouped_dilated_conv_bn": False,
    "matmul_add_bn": True,
    "repvgg_identity_branch": True,
    "shared_weights": True,
}
"""By the graph of the suite, whether a weight of it is computed in pieces."""


@pytest.mark.parametrize("name", LAYERS)
def test_pieces_are_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = next(small for small in GRAPHS if small.name == name).model()
    apart, folded = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    expected = bnfold.fold_onnx(model).model
    onnx.save(model, apart, save_as_external_data=True, location="model.data", size_threshold=0)
    monkeypatch.setattr(rewrite, "_LARGE", 0)
    monkeypatch.setattr(rewrite, "_PIECE", 8)
    asked: list[tuple[slice, slice]] = []
    plain = rewrite.Rewriter._weights

    def weights(self, name, absorptions, rows=slice(None), columns=slice(None)):
        asked.append((rows, columns))
        return plain(self, name, absorptions, rows, columns)

    monkeypatch.setattr(rewrite.Rewriter, "_weights", weights)
    bnfold.fold_onnx(apart).save(folded)
    assert any(pair != (slice(None), slice(None)) for pair in asked) == LAYERS[name]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folded).graph.initializer}
    wanted = {tensor.name: numpy_helper.to_array(tensor) for tensor in expected.graph.initializer}
    assert found.keys() == wanted.keys()
    for each, values in wanted.items():
        assert np.array_equal(found[each], values) or np.allclose(found[each], values, rtol=3e-7, atol=0), each


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_double, "_HELD", 0)
    monkeypatch.setattr(api, "_LARGE_LAYER", 0)
    monkeypatch.setattr(runtime, "MAPPED", 0)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_are_cast_for_each_run_give_the_same_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = next(small for small in GRAPHS if small.name == name)
    model = small.model()
    inputs = drawn(small.shapes[0])
    held = [answers(each, inputs) for each in bnfold.fold_onnx(model).in_float64()]
    monkeypatch.setattr(onnx_double, "_HELD", 0)
    monkeypatch.setattr(api, "_LARGE_LAYER", 0)
    cast = [answers(each, inputs) for each in bnfold.fold_onnx(model).in_float64()]
    assert all(np.array_equal(one, other) for one, other in zip(held[0], cast[0], strict=True))
    assert peak_error(cast[1], held[1]) <= 1e-15  # the sums of a product in pieces may be in another order


@pytest.mark.usefixtures("_all_are_large")
def test_no_weight_of_a_large_model_is_kept_and_no_value_after_its_last_reader() -> None:
    small = next(small for small in GRAPHS if small.name == "conv_bn")
    double = DoubleModel(bnfold.fold_onnx(small.model()).in_float64()[0])
    given: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    class Watched(dict):
        def __getitem__(self, key):
            tensor = super().__getitem__(key)

            class Tensor:
                def numpy(self):
                    array = tensor.numpy()
                    alive.append(sum(reference() is not None for reference in given))
                    given.append(weakref.ref(array))
                    return array

            return Tensor()

    double._weights = Watched(double._weights)
    double([torch.from_numpy(each) for each in drawn(small.shapes[0])])
    assert len(given) >= 5  # a convolution's, and those of the BatchNorm
    gc.collect()
    assert not any(reference() is not None for reference in given)
    assert max(alive) <= 4  # those of one node


@pytest.mark.usefixtures("_all_are_large")
def test_a_large_original_is_moved_in_a_file_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    small = next(small for small in GRAPHS if small.name == "conv_bn")
    model = small.model()
    before = model.SerializeToString()
    example = [torch.from_numpy(each).float() for each in drawn(small.shapes[0])]
    original = OnnxOriginal(model, example)
    plain = original.run(example)[0].value
    run = original.moved(1)
    assert list(tmp_path.rglob("*.data"))
    moved = run(example)[0].value
    assert 0 < float((moved - plain).abs().max()) < 1e-4 * float(plain.abs().max())
    assert float((original.moved(1)(example)[0].value - moved).abs().max()) == 0
    assert float((original.moved(2)(example)[0].value - moved).abs().max()) > 0
    assert model.SerializeToString() == before
    del run
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("apart", [False, True])
def test_a_large_file_is_folded_and_proved_and_leaves_nothing_else(tmp_path: Path, apart: bool) -> None:
    model = next(small for small in GRAPHS if small.name == "conv_bn").model()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=apart, location="net.data", size_threshold=0)
    assert main(["fold", str(tmp_path / "net.onnx"), "-q"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"net.onnx", "net.folded.onnx"} | ({"net.data", "net.folded.onnx.data"} if apart else set())
