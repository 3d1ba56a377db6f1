"""The pytest fixtures, in a test run of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = 'pytest_plugins = ["bnfold.testing"]\n'
HEAD = """
import copy, torch
from torch import nn
from tests.networks import NETWORKS, built, normal

model, inputs = NETWORKS["lenet"]()
"""


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(HEAD + body)
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PYTHONPATH": str(root), "PATH": ""},
    )


def test_the_fixtures_pass_and_fail_with_what_was_found(tmp_path):
    done = run(
        tmp_path,
        """
def test_same(assert_equivalent):
    assert_equivalent(model, copy.deepcopy(model), inputs)

def test_other(assert_equivalent):
    other = copy.deepcopy(model)
    other.bn1.eps = 0.1
    assert_equivalent(model, other, inputs)

def test_folds(assert_folds):
    assert assert_folds(model, inputs).plan.summary["fold"] == 3

def test_stays(assert_folds):
    network, x = NETWORKS["seed-negative"]()
    assert_folds(network, x)

def test_kept(assert_folds):
    network, x = NETWORKS["seed-negative"]()
    assert_folds(network, x, keep="bn1")
""",
    )
    assert "2 failed, 3 passed" in done.stdout
    assert "NOT equivalent" in done.stdout
    assert "bn1 did not fold: " in done.stdout
    assert "bnfold/verify" not in done.stdout  # no traceback into bnfold


@pytest.mark.long
def test_the_export_is_compared_on_request(tmp_path):
    done = run(
        tmp_path,
        """
def test_onnx(assert_folds, assert_equivalent):
    folding = assert_folds(model, inputs, onnx=True)
    assert_equivalent(model, folding.module, inputs, onnx=True)
""",
    )
    assert "1 passed" in done.stdout
