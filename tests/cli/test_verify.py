"""``bnfold verify``: two models are the same function, or they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
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
    assert "wrote r.json" in result.out
    data = json.loads(Path("r.json").read_text())
    assert data["candidate"] == "other.pt"
    assert data["verification"]["passed"] is False


def test_a_model_is_equivalent_to_itself(run: Run, seed_file: Path) -> None:
    assert run("verify", seed_file, seed_file, *CODE).code == 0


def test_an_onnx_model_can_be_the_original(run: Run, seed_file: Path, folded: Path) -> None:
    for candidate in (seed_file, folded):
        result = run("verify", folded, candidate, *CODE)
        assert result.code == 0, result.err
        assert "equivalent in" in result.out
    other = seed_network()
    with torch.no_grad():
        other.fc1.weight[3, 7] += 1e-2
    torch.save(other, "other.pt")
    result = run("verify", folded, "other.pt", *CODE, "--report", "r.json")
    assert result.code == 1
    assert "not equivalent" in result.out
    assert json.loads(Path("r.json").read_text())["inputs"]["how"] == "as the ONNX model declares them"


def test_inputs_of_an_onnx_original_are_declared_or_given(run: Run, folded: Path) -> None:
    assert run("verify", folded, folded, "--input-shape", "4,1,28,28").code == 0
    np.savez("real.npz", x=np.random.default_rng(0).normal(size=(3, 1, 28, 28)))
    result = run("verify", folded, folded, "--inputs", "real.npz")
    assert result.code == 0, result.err
    both = run("verify", folded, folded, "--inputs", "real.npz", "--input-shape", "4,1,28,28")
    assert (both.code, "both given" in both.err) == (2, True)
    result = run("verify", folded, folded, "--input-shape", "4,1,28,28", "--input-shape", "1")
    assert (result.code, "takes 1 input (x), and 2" in result.err) == (2, True)
    result = run("verify", folded, folded, "--input-shape", "4,3,28,28")
    assert (result.code, "is declared as batchx1x28x28, and 4x3x28x28 is given" in result.err) == (2, True)


def test_sizes_that_an_onnx_original_leaves_open_are_those_of_the_candidate(run: Run, folded: Path) -> None:
    model = onnx.load(folded)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, "open.onnx")
    result = run("verify", "open.onnx", folded)
    assert result.code == 0, result.err
    assert "equivalent in" in result.out


def test_a_file_that_only_begins_like_onnx_is_refused(run: Run, folded: Path) -> None:
    Path("cut.onnx").write_bytes(folded.read_bytes()[:2000])
    for arguments in (("cut.onnx", folded), (folded, "cut.onnx")):
        result = run("verify", *arguments)
        assert result.code in (1, 3), result.err
        assert "Traceback" not in result.err


def test_a_missing_candidate_is_said_to_be_missing(run: Run, seed_file: Path) -> None:
    result = run("verify", seed_file, "missing.onnx", *CODE)
    assert result.code == 5
    assert "There is no file missing.onnx" in result.err


def test_verbose_says_where_the_time_of_the_comparisons_goes(run: Run, seed_file: Path, folded: Path) -> None:
    out = run("verify", seed_file, folded, *CODE, "-v").out
    stages = out[out.index("stage") :]
    assert "  the original and the oracle" in stages
    assert "  ONNX Runtime, optimisations on" in stages


def test_another_runtime_witnesses_and_is_told_in_the_table(run: Run, seed_file: Path, folded: Path) -> None:
    names = [option for name in ("right", "crashes") for option in ("--witness", f"tests.witness.fakes:{name}")]
    result = run("verify", seed_file, folded, *CODE, *names[:2], "--report", "-")
    assert result.code == 0, result.err
    told = [comparison["name"] for comparison in json.loads(result.out)["verification"]["comparisons"]]
    assert told[-2:] == ["tests.witness.fakes:right", "the original's own export under tests.witness.fakes:right"]
    result = run("verify", seed_file, folded, *CODE, *names)
    assert result.code == 1
    assert "its process ended with SIGSEGV" in result.out
    assert "not verifiable" in result.out


def test_a_witness_that_is_unknown_is_said_at_once(run: Run, seed_file: Path) -> None:
    for command in (("verify", seed_file, seed_file), ("fold", seed_file)):
        result = run(*command, *CODE, "--witness", "openvno")
        assert (result.code, "Did you mean `openvino`?" in result.err) == (2, True)


def test_a_witness_without_a_proof_cannot_be_meant_so(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "--witness", "openvino", "--no-verify")
    assert (result.code, "Leave one out" in result.err) == (2, True)
