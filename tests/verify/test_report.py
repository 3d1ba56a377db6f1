"""The report as data: the contract's keys, valid JSON whatever the numbers, and words."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys

from bnfold.verify import Comparison, Report


def comparison(**changes) -> Comparison:
    values = {
        "name": "torch",
        "max_abs": 2e-7,
        "peak": 1.5,
        "rms": 1e-7,
        "noise_floor": 1e-7,
        "allowed": 3e-7,
        "passed": True,
        "rms_floor": 8e-8,
    }
    return Comparison(**{**values, **changes})


def test_a_comparison_has_the_keys_of_the_contract():
    keys = ["name", "max_abs", "peak", "rms", "noise_floor", "allowed", "passed"]
    assert list(comparison().to_dict())[: len(keys)] == keys


def test_numbers_that_json_lacks_are_null():
    told = comparison(max_abs=math.nan, allowed=math.inf, where=(1, 2)).to_dict()
    assert told["max_abs"] is None
    assert told["allowed"] is None
    assert json.loads(json.dumps(told, allow_nan=False))["where"] == [1, 2]


def test_the_error_in_floors_is_the_larger_of_the_two():
    assert comparison().floors == 2.0
    assert comparison(rms=8e-7).floors == 10.0
    assert comparison(noise_floor=0.0).floors == math.inf
    assert math.isnan(comparison(max_abs=math.nan, rms=math.nan).floors)


def test_a_report_passes_only_with_that_verdict():
    assert Report("passed").passed
    assert not Report("failed").passed
    assert not Report("unverifiable").passed


def test_a_report_is_json_and_pickles():
    report = Report(
        "failed", (comparison(), comparison(passed=False, max_abs=math.nan, detail="why")), "why.", blame="fold"
    )
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["passed"] is False
    assert [c["passed"] for c in told["comparisons"]] == [True, False]
    assert told["blame"] == "fold"
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


def test_the_words_name_the_verdict_each_comparison_and_the_notes():
    report = Report(
        "failed", (comparison(), comparison(name="onnx", passed=False, detail="no")), "onnx: no.", notes=("so",)
    )
    lines = str(report).splitlines()
    assert lines[0] == "NOT equivalent: onnx: no."
    assert lines[1].split() == "ok torch: error 2e-07 (noise floor 1e-07, allowed 3e-07)".split()
    assert lines[2].strip().startswith("FAIL onnx: error")
    assert lines[3].strip() == "note: so"


def test_importing_the_package_imports_neither_torch_nor_onnx():
    code = (
        "import sys, bnfold.verify; print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
