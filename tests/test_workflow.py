"""The example of a GitHub Actions workflow: it parses, and its steps run as far as a machine without GitHub can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "examples" / "github-actions.yml"


def workflow() -> dict[Any, Any]:
    return yaml.safe_load(WORKFLOW.read_text())


def job() -> dict[str, Any]:
    return workflow()["jobs"]["equivalence"]


def commands() -> list[tuple[str, str]]:
    """The steps that need no network: name and command."""
    return [(step["name"], step["run"]) for step in job()["steps"] if "run" in step and step["name"] != "Install"]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | job()["env"]
    environment |= {"PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    return subprocess.run(  # as GitHub runs a step
        ["bash", "-e", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with the examples, and the two programs that a step calls."""
    folder = tmp_path
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bin").mkdir()
    for name, module in (("bnfold", "-m bnfold"), ("python", "")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(0o755)
    return folder


def test_the_workflow_has_what_github_asks_for() -> None:
    assert workflow()[True] == ["push", "pull_request"]  # yaml reads a bare `on` as true
    assert job()["runs-on"] == "ubuntu-latest"
    for step in job()["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert "${{" not in step.get("run", "")  # nothing that GitHub would put into a command
    assert all(step["uses"].count("@v") == 1 for step in job()["steps"] if "uses" in step)
    assert len(commands()) == 5


@pytest.mark.long
@pytest.mark.timeout(900)
def test_its_steps_run_leave_the_reports_and_stop_at_a_file_of_another_model(folder: Path) -> None:
    for name, command in commands():
        done = run(command, folder)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    build = folder / "build"
    assert json.loads((build / "verify.json").read_text())["verification"]["passed"] is True
    for report in ("fold.xml", "verify.xml", "pytest.xml"):
        suites = list(ElementTree.parse(build / report).iter("testsuite"))
        assert sum(int(suite.get("tests", "0")) for suite in suites) > 0
        assert sum(int(suite.get("failures", "0")) for suite in suites) == 0
    assert (folder / "summary.md").read_text().count("✅") == 2
    deployed = onnx.load(build / "model.onnx")
    weight = max(deployed.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.001, weight.name))
    onnx.save(deployed, build / "model.onnx")
    steps = dict(commands())
    done = run(steps["Verify the deployed file"], folder)
    assert done.returncode == 1
    assert "not equivalent" in done.stdout
    assert ElementTree.parse(build / "verify.xml").find(".//failure") is not None
    assert run(steps["Tell"], folder).returncode == 0
    assert "❌" in (folder / "summary.md").read_text()
