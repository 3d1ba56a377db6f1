"""Another runtime judges a fold as ONNX Runtime does; what it does wrong by itself is not the fold's."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import UsageError
from bnfold.fold.api import Folding
from bnfold.verify import runtimes
from bnfold.verify.report import Report
from tests.networks import NETWORKS
from tests.witness.test_session import FAKES

Made = tuple[nn.Module, tuple[Tensor, ...], Folding]
BEFORE = "float64 algebra, weights against the plan, rounded weights, torch, ONNX Runtime, optimisations off"


@pytest.fixture(scope="module")
def made() -> Made:
    model, inputs = NETWORKS["seed-negative"]()
    return model, inputs, bnfold.fold(model, inputs)


def verified(made: Made, witness: str, **changes: Any) -> Report:
    model, inputs, folding = made
    options = {"folding": folding, "witnesses": [f"{FAKES}:{witness}"]} | changes
    return bnfold.verify(model, folding.module, inputs, **options)


def test_a_right_fold_passes_under_a_right_runtime_and_each_stage_is_told(made: Made) -> None:
    report = verified(made, "right")
    assert report.passed
    assert report.comparisons[-1].name == f"{FAKES}:right"
    assert 0 < report.comparisons[-1].floors < 4
    assert ", ".join(c.name for c in report.comparisons).startswith(BEFORE)


def test_a_wrong_candidate_fails_under_a_right_runtime(made: Made) -> None:
    model, inputs, folding = made
    wrong = bnfold.export.to_onnx(folding.module, inputs)  # type: ignore[attr-defined]
    weight = next(i for i in wrong.graph.initializer if len(i.dims) == 4)
    values = torch.frombuffer(bytearray(weight.raw_data), dtype=torch.float32)
    values[:9] *= 1.05
    weight.raw_data = values.numpy().tobytes()
    report = bnfold.verify(model, wrong, inputs, witnesses=[f"{FAKES}:right"])
    failed = [c.name for c in report.comparisons if not c.passed]
    assert report.verdict == "failed"
    assert f"{FAKES}:right" in failed


def test_a_runtime_that_is_wrong_by_itself_proves_nothing_and_says_so(made: Made) -> None:
    report = verified(made, "bends")
    assert report.verdict == "unverifiable"
    (last,) = [c for c in report.comparisons if not c.passed]
    assert not last.proves
    assert "the original's own export, folded by nobody, fails under" in last.detail


CANNOT = {
    f"{FAKES}:crashes": "ended with SIGSEGV",
    f"{FAKES}:crashes_on_load": "ended with SIGABRT",
    f"{FAKES}:refuses": "no kernel for this",
    f"{FAKES}:hangs": "gave no answer within",
    "no_such_package:load": "not installed",
}


def test_those_that_cannot_run_leave_the_other_comparisons_and_the_report_intact(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.compare_under, "__kwdefaults__", {"thorough": False, "seconds": 10.0})
    report = verified(made, "", witnesses=[*CANNOT, f"{FAKES}:right"])
    assert report.verdict == "unverifiable"
    assert ", ".join(c.name for c in report.comparisons).startswith(BEFORE)
    told = {c.name: c for c in report.comparisons}
    for name, says in CANNOT.items():
        assert says in told[name].detail
        assert (told[name].passed, told[name].proves) == (False, False)
        assert math.isnan(told[name].max_abs)
    assert all(c.passed for c in report.comparisons if c.name not in CANNOT)
    assert f"{FAKES}:right" in told


def test_the_unfolded_export_stands_beside_it_where_all_is_asked_for(made: Made) -> None:
    report = verified(made, "right", thorough=True)
    assert report.comparisons[-1].name == f"the original's own export under {FAKES}:right"
    assert report.comparisons[-1].passed


def test_a_witness_that_is_unknown_is_said_before_any_work() -> None:
    with pytest.raises(UsageError, match="no witness called `nothing`"):
        bnfold.verify(nn.ReLU().eval(), nn.ReLU().eval(), torch.zeros(2, 3), witnesses=["nothing"])


def test_assert_equivalent_takes_witnesses(made: Made) -> None:
    model, inputs, folding = made
    bnfold.assert_equivalent(model, folding.module, inputs, witnesses=[f"{FAKES}:right"])
    with pytest.raises(bnfold.NotEquivalentError, match="no kernel for this"):
        bnfold.assert_equivalent(model, folding.module, inputs, witnesses=[f"{FAKES}:refuses"])


@pytest.mark.parametrize("witness", ["mnn", "openvino"])
@pytest.mark.parametrize("name", ["seed", "vgg-mixed-signs"])
def test_folds_are_right_under_another_runtime(witness: str, name: str) -> None:
    package = {"mnn": "MNN"}.get(witness, witness)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    report = bnfold.verify(model, folding.module, inputs, folding=folding, witnesses=[witness], thorough=True)
    assert report.passed, str(report)
    assert [c.name for c in report.comparisons][-2:] == [witness, f"the original's own export under {witness}"]
