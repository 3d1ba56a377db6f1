"""``docs/howto/add-a-rule.md`` is a walk: what it adds to a copy of bnfold, in one file and one row, folds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold
from tests.docs.test_code_blocks import blocks
from tests.fold.support import double

ROOT = Path(bnfold.__file__).parents[1]
STEPS = [block for block in blocks("howto/add-a-rule.md") if block.saved_as is not None and "/" in block.saved_as]
FOLDED = "import torch, bnfold; model = torch.load('model.pt', weights_only=False); print(bnfold.plan(model)[0].detail)"


def python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.long
def test_the_walk_adds_an_operation_in_one_file_and_one_row_and_it_folds(tmp_path: Path) -> None:
    families = [step.saved_as for step in STEPS if str(step.saved_as).startswith("bnfold/")]
    assert families == ["bnfold/ops/pooling.py", "bnfold/ops/elementwise.py"]
    assert [step.saved_as for step in STEPS if step.saved_as not in families] == ["tests/fold/test_rules.py"] * 2
    model = double(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.LPPool2d(2.0, 2), nn.BatchNorm2d(4, affine=False)), negative=0.0
    )
    model[2].running_mean.zero_()
    assert bnfold.plan(model)[0].reason == "unknown-op"  # before the walk

    for part in ("bnfold", "tests", "examples", "pyproject.toml"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / part)
    for step in STEPS:
        with (tmp_path / str(step.saved_as)).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{step.text}")
    torch.save(model, tmp_path / "model.pt")
    assert python(tmp_path, "-c", FOLDED).stdout == "2 folded into 0 through 1.\n"

    tests = ["tests/fold/test_rules.py", "tests/fold/test_rules_forward.py", "tests/ops/test_declared.py"]
    ran = python(tmp_path, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "PowerPool or Absolute or every_rule", *tests)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout
