"""The public surface: its names, what importing it costs, and its errors."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest

import bnfold
from bnfold import errors

PUBLIC = [
    "BnfoldError",
    "CaptureError",
    "ChannelAffine",
    "Decision",
    "ExportError",
    "FileAccessError",
    "Folding",
    "MissingPackageError",
    "NeedsInputsError",
    "NotEquivalentError",
    "NotFiniteError",
    "NotFoldedError",
    "OnnxFolding",
    "Plan",
    "RefusedFileError",
    "TrainingModeError",
    "UnknownNameError",
    "UsageError",
    "__version__",
    "affine_of",
    "assert_equivalent",
    "batch",
    "export_onnx",
    "extend",
    "fold",
    "fold_onnx",
    "fold_program",
    "plan",
    "verify",
]
EXIT_CODES = {
    "BnfoldError": 70,
    "UsageError": 2,
    "TrainingModeError": 2,
    "UnknownNameError": 2,
    "RefusedFileError": 3,
    "NotFoldedError": 4,
    "FileAccessError": 5,
    "CaptureError": 6,
    "OtherInputError": 6,
    "NeedsInputsError": 6,
    "ExportError": 6,
    "WitnessError": 6,
    "MissingPackageError": 6,
    "NotFiniteError": 6,
    "NotEquivalentError": 1,
}


def test_the_public_names_are_these() -> None:
    assert bnfold.__all__ == PUBLIC
    assert dir(bnfold) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(bnfold, name)
    assert getattr(bnfold, name) is value
    if callable(value):
        assert inspect.getdoc(value)


def test_another_name_is_an_attribute_error_that_says_which() -> None:
    with pytest.raises(AttributeError, match="module 'bnfold' has no attribute 'unfold'"):
        _ = bnfold.unfold


def test_star_import_gives_the_public_names() -> None:
    namespace: dict[str, Any] = {}
    exec("from bnfold import *", namespace)
    assert set(PUBLIC) <= set(namespace)


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return set(done.stdout.split())


def test_importing_bnfold_imports_no_heavy_package() -> None:
    loaded = modules_after("import bnfold\nbnfold.__version__\nbnfold.BnfoldError")
    assert not loaded & {"torch", "onnx", "onnxruntime", "onnxscript", "numpy", "safetensors", "click", "rich"}


def test_folding_imports_neither_onnx_nor_onnxruntime() -> None:
    statement = (
        "import torch, bnfold\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()\n"
        "bnfold.fold(net, torch.randn(2, 3, 8, 8))"
    )
    assert not modules_after(statement) & {"onnx", "onnxruntime", "onnxscript"}


# --- errors ------------------------------------------------------------------------------------------------------


def test_every_error_is_in_the_table_of_exit_codes() -> None:
    assert set(errors.__all__) == set(EXIT_CODES)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_is_data_and_a_sentence_with_the_fix_last(name: str) -> None:
    error = getattr(errors, name)("This happened.", fix="Do that.")
    assert isinstance(error, bnfold.BnfoldError)
    assert str(error) == "This happened. Do that."
    assert (error.what, error.fix) == ("This happened.", "Do that.")
    assert error.exit_code == EXIT_CODES[name]
    with pytest.raises(TypeError):
        getattr(errors, name)("no fix")


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_pickles_whole(name: str, copied: Any) -> None:
    error = getattr(errors, name)("This happened.", fix="Do that.")
    error.node = "conv1"
    again = copied(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.node == "conv1"
    assert again.args == error.args


def test_not_equivalent_carries_its_report_across_a_pickle() -> None:
    error = bnfold.NotEquivalentError("They differ.", fix="Look.", report={"passed": False})
    assert pickle.loads(pickle.dumps(error)).report == {"passed": False}


def test_decisions_are_plain_data() -> None:
    import json

    from torch import nn

    plan = bnfold.plan(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm2d(4)).eval())
    assert len(plan) == 2
    assert [decision.batchnorm for decision in plan] == ["1", "3"]
    assert plan[0] == next(iter(plan))
    assert plan[:1] == (plan[0],)
    assert plan.summary == {"fold": 1, "affine": 1, "keep": 0}
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["summary"] == plan.summary
    assert data["capture"] == "recorded"
    assert set(data["batchnorms"][0]) >= {"batchnorm", "action", "direction", "into", "through", "reason", "detail"}
    assert pickle.loads(pickle.dumps(plan[0])) == plan[0]
