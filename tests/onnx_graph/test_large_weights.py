"""Large weights in a file apart: computed in pieces while they are written, and the same as those computed at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.onnx_graph import rewrite
from tests.onnx_graph.graphs import GRAPHS

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
