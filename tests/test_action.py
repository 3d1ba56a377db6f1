"""The GitHub Action and the pre-commit hooks: their steps run as far as a machine without GitHub can."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

import bnfold
from bnfold.cli.commands import bnfold as group

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net(torch.randn(8, 1, 9, 9))
    return net.eval()
"""


def step(name: str, folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does, with the inputs given and the defaults of the others."""
    inputs = {key: value.get("default", "") for key, value in ACTION["inputs"].items()} | given
    environment = {
        key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], value)
        for key, value in STEPS[name]["env"].items()
    }
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", STEPS[name]["run"]],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ
        | environment
        | {"PATH": path, "PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": str(folder / "summary.md")},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my net.py").write_text(NETWORK)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "bnfold"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bnfold "$@"\n')
    program.chmod(0o755)
    return tmp_path


def test_the_action_puts_no_input_into_a_command_and_pins_what_it_uses() -> None:
    for name, one in STEPS.items():
        assert "${{" not in one.get("run", ""), name
        if "uses" in one:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one["uses"]), name
    assert set(ACTION["inputs"]) == {"command", "model", "candidate", "arguments", "reports", "requirement"}


def test_the_action_folds_tells_and_keeps_reports(folder: Path) -> None:
    arguments = "--input-shape 2,1,9,9 -o 'the file.pt2' --strict"
    done = step("Run", folder, model="my net.py:make", arguments=arguments)
    assert done.returncode == 0, done.stderr
    assert (folder / "the file.pt2").exists()
    reports = folder / "bnfold-reports"
    assert sorted(path.name for path in reports.iterdir()) == ["report.html", "report.md", "report.xml"]
    assert ElementTree.parse(reports / "report.xml").find(".//failure") is None
    assert step("Tell", folder).returncode == 0
    assert "✅ equivalent" in (folder / "summary.md").read_text(encoding="utf-8")


def test_the_action_fails_with_the_exit_code_and_runs_nothing_that_an_argument_holds(folder: Path) -> None:
    done = step("Run", folder, model="my net.py:nothing", arguments="$(touch pwned) `touch pwned` ; touch pwned")
    assert done.returncode == 2
    assert not (folder / "pwned").exists()
    assert step("Tell", folder).returncode == 0, "there is no report to tell"


def test_the_hooks_have_what_pre_commit_asks_for_and_their_commands_exist() -> None:
    assert [hook["id"] for hook in HOOKS] == ["bnfold-verify", "bnfold-fold"]
    for hook in HOOKS:
        assert hook.keys() >= {"id", "name", "entry", "language", "files"}
        assert hook["language"] == "python"
        program, command, *options = hook["entry"].split()
        assert program == "bnfold"
        known = {name for parameter in group.commands[command].params for name in parameter.opts}
        assert set(options) <= known
        re.compile(hook["files"])


@pytest.mark.long
def test_a_hook_passes_and_fails_as_its_command_does(folder: Path) -> None:
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    bnfold.export_onnx(bnfold.fold(made["make"]()).module, folder / "model.onnx", torch.randn(2, 1, 9, 9))
    hook = HOOKS[0]["entry"].split()

    def run(shape: str) -> int:
        command = [str(folder / "bin" / hook[0]), *hook[1:], "my net.py:make", "model.onnx", "--input-shape", shape]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode

    assert run("2,1,9,9") == 0
    (folder / "my net.py").write_text(NETWORK.replace("manual_seed(0)", "manual_seed(1)"))
    assert run("2,1,9,9") == 1
