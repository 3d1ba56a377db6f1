"""The pytest fixtures, in a test run of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnfold.fold.plan import Plan
from bnfold.testing.lock import Lock
from tests.report.samples import decision

CONFTEST = 'pytest_plugins = ["bnfold.testing"]\n'
HEAD = """
import copy, pytest, torch
from torch import nn
from tests.networks import NETWORKS, built, normal

model, inputs = NETWORKS["lenet"]()
"""


def run(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "test_it.py").write_text(HEAD + body)
    root = Path(__file__).parents[1]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
            *arguments,
        ],
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

@pytest.mark.bnfold(onyx=True)
def test_marked(assert_folds):
    pass
""",
    )
    assert "2 failed, 3 passed, 1 error" in done.stdout
    assert "The marker bnfold takes keep, merge, onnx, seed, witnesses; not onyx." in done.stdout
    assert "NOT equivalent" in done.stdout
    assert "bn1 did not fold: " in done.stdout
    assert "`pytest --bnfold-update` records it in bnfold.lock" in done.stdout
    assert not (tmp_path / "bnfold.lock").exists()
    assert "bnfold/verify" not in done.stdout  # no traceback into bnfold


LOCKED = """
@pytest.mark.bnfold(seed=3)
def test_stays(assert_folds):
    network, x = NETWORKS["seed-negative"]()
    assert_folds(network, x)

@pytest.mark.parametrize("case", ["a"])
def test_two(assert_folds, case):
    network, x = NETWORKS["seed-negative"]()
    assert_folds(network, x, name="negative")
    assert_folds(model, inputs, name="lenet")
"""
RECORDED = {
    "test_it.py::test_stays": {"folded": 0, "stay": {"bn1": "negative-scale"}},
    "test_it.py::test_two[a] negative": {"folded": 0, "stay": {"bn1": "negative-scale"}},
}


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.long)])
def test_the_lock_file_allows_what_it_records_and_no_more(workers, tmp_path):
    done = run(tmp_path, LOCKED, "--bnfold-update", "-n", workers)  # each worker sends what its tests found
    assert "2 passed" in done.stdout, done.stdout
    assert json.loads((tmp_path / "bnfold.lock").read_text()) == RECORDED
    assert (tmp_path / "bnfold.lock").read_text().count("\n") > 8  # a line for each
    lock = Lock.read(tmp_path / "bnfold.lock", update=False)
    assert lock.check("test_it.py::test_stays", plan(bn1="negative-scale"), ()) == ""
    assert "bn2 did not fold: " in lock.check("test_it.py::test_stays", plan(bn1="negative-scale", bn2="hooks"), ())
    assert "bn1 did not fold: " in lock.check("another test", plan(bn1="negative-scale"), ())


def plan(**stay: str) -> Any:
    decisions = [decision(name, "affine", reason=reason) for name, reason in stay.items()]
    return Plan((decision("folds"), *decisions), "recorded", ())


def test_what_got_better_is_told_and_recorded_and_what_did_not_run_is_kept(tmp_path):
    path = tmp_path / "bnfold.lock"
    path.write_text(
        json.dumps({"a": {"folded": 0, "stay": {"x": "hooks", "y": "hooks"}}, "b": {"stay": {"z": "hooks"}}})
    )
    lock = Lock.read(path, update=False)
    assert lock.check("a", plan(x="hooks"), ()) == ""
    (line,) = lock.told()
    assert "fewer BatchNorms stay than bnfold.lock allows in a" in line
    updated = Lock.read(path, update=True)
    assert updated.check("a", plan(x="several-readers", w="hooks"), ()) == ""
    updated.write()
    found = json.loads(path.read_text())
    assert found["a"] == {"folded": 1, "stay": {"x": "several-readers", "w": "hooks"}}
    assert found["b"] == {"stay": {"z": "hooks"}}
    gone = Lock.read(path, update=True)
    gone.check("a", plan(), ())
    gone.write()
    assert json.loads(path.read_text()).keys() == {"b"}


def test_one_that_is_kept_need_not_be_recorded(tmp_path):
    assert Lock.read(tmp_path / "none", update=False).check("a", plan(x="kept"), ["x"]) == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"stay": []}}'])
def test_what_is_no_lock_file_is_said(content, tmp_path):
    (tmp_path / "bnfold.lock").write_text(content)
    done = run(tmp_path, "def test_nothing(): pass")
    assert "bnfold.lock is not a lock file of bnfold" in done.stderr
    assert "Traceback" not in done.stderr


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
