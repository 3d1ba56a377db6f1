"""The core works with torch and numpy alone; what needs more says which package, and how to get it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[str], subprocess.CompletedProcess[str]]
HEAD = """
import torch
from torch import nn
import bnfold

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
model.append(nn.BatchNorm2d(5))
model(torch.randn(8, 3, 9, 9))
model.eval()
x = torch.randn(2, 3, 9, 9)
"""


def needed_by(*names: str) -> dict[str, metadata.Distribution]:
    """Return distributions and those that they need, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system, or for an extra
            continue
        needs = [need for need in found[name].requires or () if "extra ==" not in need]
        waiting += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs]
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torch, numpy and what these need, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for distribution in needed_by("torch", "numpy").values():
        for top in {file.parts[0] for file in distribution.files or () if not file.parts[0].startswith("..")}:
            if not (folder / top).exists() and top != "__pycache__":
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


@pytest.fixture
def run(packages: Path) -> Run:
    """Run a script in a process that sees the package in this checkout and that folder."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}", "OMP_NUM_THREADS": "1"}

    def python(body: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-c", body]  # -S: without the environment's own packages
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return python


def test_what_needs_nothing_else_works_and_what_needs_more_names_the_package_and_the_command(run: Run) -> None:
    done = run(f"""{HEAD}
plan = bnfold.plan(model, x)
assert plan.summary == {{"fold": 2, "affine": 0, "keep": 0}}, plan
for way in ("auto", "symbolic", "export"):
    folding = bnfold.fold(model, x, capture=way)
    assert torch.allclose(folding.module(x), model(x), atol=1e-5)
assert bnfold.affine_of(model[2]).scale.shape == (4,)
assert bnfold.verify(model, folding.module, x, onnx=False, folding=folding).passed
bnfold.assert_equivalent(model, folding.module, x)
try:
    bnfold.verify(model, model[0], x, onnx=False)
except bnfold.BnfoldError:
    pass
print("done")
calls = (
    lambda: bnfold.export_onnx(model, "model.onnx", x),
    lambda: bnfold.verify(model, model, x),
    lambda: bnfold.assert_equivalent(model, "model.onnx", x),
)
for call in calls:
    try:
        call()
    except bnfold.MissingPackageError as error:
        print(error)
""")
    assert done.returncode == 0, done.stderr
    first, *said = done.stdout.splitlines()
    assert first == "done", "what needs nothing else printed something"
    for line, package in zip(said, ("onnx", "onnxruntime", "onnxruntime"), strict=True):
        assert f"package {package}" in line
        assert f"pip install {package}" in line


def test_the_command_line_names_the_first_package_that_it_needs(run: Run) -> None:
    done = run("""
import sys
from bnfold.cli import main
sys.exit(main(["--help"]))
""")
    assert done.returncode == 6
    assert "needs the package click" in done.stderr
    assert "Run `pip install click`" in done.stderr
