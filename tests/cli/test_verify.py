"""``bnfold verify``: two models are the same function, or they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import CODE, Run
from tests.networks import seed_network


@pytest.fixture
def folded(run: Run, seed_file: Path) -> Path:
    assert run("fold", seed_file, *CODE, "--no-verify").code == 0
    return seed_file.with_name("model.folded.onnx")


def test_a_torch_model_and_its_folded_onnx_are_equivalent(run: Run, seed_file: Path, folded: Path) -> None:
    result = run("verify", seed_file, folded, *CODE)
    assert result.code == 0, result.err
    assert "equivalent in" in result.out


def test_an_exported_program_is_compared_with_trust(run: Run, seed_file: Path, folded: Path) -> None:
    program = folded.with_suffix(".pt2")
    refused = run("verify", seed_file, program, *CODE)
    assert refused.code == 3
    assert "--trust" in refused.err
    result = run("verify", seed_file, program, *CODE, "--trust")
    assert result.code == 0, result.err
    assert "warning: --trust" in result.err


def test_two_torch_models_that_differ_in_one_weight_are_not(run: Run, seed_file: Path) -> None:
    other = seed_network()
    with torch.no_grad():
        other.bn1.running_mean[5] += 1e-3
    torch.save(other, "other.pt")
    result = run("verify", seed_file, "other.pt", *CODE, "--report", "r.json")
    assert result.code == 1
    assert "not equivalent" in result.out
    data = json.loads(Path("r.json").read_text())
    assert data["candidate"] == "other.pt"
    assert data["verification"]["passed"] is False


def test_a_model_is_equivalent_to_itself(run: Run, seed_file: Path) -> None:
    assert run("verify", seed_file, seed_file, *CODE).code == 0


def test_an_onnx_original_is_said_to_have_no_float64_form(run: Run, seed_file: Path, folded: Path) -> None:
    result = run("verify", folded, seed_file, *CODE)
    assert result.code == 2
    assert "Give the torch model first" in result.err


def test_a_missing_candidate_is_said_to_be_missing(run: Run, seed_file: Path) -> None:
    result = run("verify", seed_file, "missing.onnx", *CODE)
    assert result.code == 5
    assert "There is no file missing.onnx" in result.err
