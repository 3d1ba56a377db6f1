"""ONNX Runtime may round more than torch; what it makes in the original itself is no fault of a fold."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

import bnfold
from bnfold.export import to_onnx
from bnfold.verify import blame
from tests.networks import built

EXAMPLE = torch.full((2, 1, 224, 224), 0.7)  # torch sums equal terms with hardly an error


def mean_of_a_large_map() -> nn.Module:
    """The mean has 50,176 terms: ONNX Runtime adds them up one after the other, torch in several sums."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_mean_of_a_large_map_is_no_false_alarm():
    model = built(mean_of_a_large_map)
    for candidate in (model, bnfold.fold(model).module):
        report = bnfold.verify(model, to_onnx(candidate, EXAMPLE), EXAMPLE)
        assert report.passed, report
        assert any("ONNX Runtime rounds more than torch" in note for note in report.notes)
        assert "own-export" in {cause for comparison in report.comparisons for cause in comparison.relaxed}


def test_a_wrong_export_of_such_a_network_is_found_all_the_same():
    model = built(mean_of_a_large_map)
    exported = to_onnx(bnfold.fold(model).module, EXAMPLE)
    (weight,) = (tensor for tensor in exported.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[values[:, 0, 0, 0].argmax()] *= 1.0001
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    report = bnfold.verify(model, exported, EXAMPLE)
    assert report.verdict == "failed"
    assert report.blame == "export"


def test_an_export_that_is_wrong_for_the_original_too_is_not_taken_for_rounding(monkeypatch):
    model = built(mean_of_a_large_map)
    right = blame.onnx_of

    def wrong(*arguments, **options):
        made = right(*arguments, **options)
        for tensor in made.model.graph.initializer:
            if len(tensor.dims) == 4:
                values = onnx.numpy_helper.to_array(tensor) * np.float32(1.0001)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return made

    monkeypatch.setattr(blame, "onnx_of", wrong)
    report = bnfold.verify(model, wrong(model, (EXAMPLE,)).model, EXAMPLE)
    assert report.verdict == "failed"
    assert "as far off" in report.reason
