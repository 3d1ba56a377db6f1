"""What an exporter's page says is told in one sentence that a person can use."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.errors import ExportError
from bnfold.export.program import first_sentence


class ConversionError(Exception):
    """As torch.onnx names its own."""


class PassError(Exception):
    """As onnx_ir names its own."""


def raised(*errors: Exception) -> Exception:
    """The first of some errors, each raised from the next."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


NODE = (
    "Error when translating node %roll : [num_users=1] = call_function[target=torch.ops.aten.roll.default](args = ())"
)
SHOWN = "Error when calling function 'TracedOnnxFunction(<function aten_roll at 0x7fc6f9b9a8e0>)' with args '[1]'"
PASSES = "An error occurred when running the '<onnx_ir.passes.PassManager object at 0x7fc6f91b4410>' pass"
SENTENCES = {
    "a plain one": (raised(ValueError("no such size\nmore")), "no such size."),
    "a heading": (raised(ValueError("Errors:\n - no such size!")), "no such size!"),
    "no text": (raised(ValueError()), "ValueError."),
    "of a conversion": (raised(ConversionError(NODE), ValueError("no function found")), "no function found."),
    "the innermost cause, with the operator": (
        raised(
            ConversionError("page"), ConversionError(NODE), ValueError(SHOWN), AssertionError("only 4D is supported")
        ),
        "aten.roll: only 4D is supported.",
    ),
    "a cause around a slip of the exporter's": (
        raised(
            PassError(PASSES),
            PassError("An error occurred at step 0"),
            PassError(PASSES),
            RuntimeError("Error during constant folding for node 'node_split' (::SplitToSequence)"),
            AttributeError("'NoneType' object has no attribute 'ndim'"),
        ),
        "Error during constant folding for node 'node_split' (::SplitToSequence).",
    ),
    "no cause says more": (
        raised(ConversionError(NODE), ValueError(SHOWN), KeyError("dim"), ValueError()),
        "Error when calling function 'TracedOnnxFunction(<function aten_roll>)' with args '[1]'.",
    ),
    "no cause": (
        raised(PassError(PASSES)),
        "An error occurred when running the '<onnx_ir.passes.PassManager object>' pass.",
    ),
    "a number in hexadecimal": (raised(ValueError("opcode 0xFF is not known")), "opcode 0xFF is not known."),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_an_exporters_page_is_told_in_one_sentence_without_addresses(name: str) -> None:
    error, sentence = SENTENCES[name]
    assert first_sentence(error) == sentence


def test_errors_that_cause_each_other_come_to_an_end() -> None:
    first, second = ValueError(SHOWN), ValueError(SHOWN)
    first.__cause__, second.__cause__ = second, first
    assert "aten_roll" in first_sentence(first)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y)


def test_what_the_exporter_cannot_translate_is_told_without_addresses(tmp_path: Path) -> None:
    """An attention of three dimensions: newer versions of onnxscript may translate it."""
    model, x = Attends().eval(), torch.randn(2, 3, 8, 8)
    said = "aten.scaled_dot_product_attention: "
    try:
        bnfold.export_onnx(bnfold.fold(model, x).module, tmp_path / "model.onnx", x, dynamic=())
    except ExportError as error:
        said = str(error)
    assert "aten.scaled_dot_product_attention: " in said
    assert not re.search("0x[0-9a-f]{6}", said)
