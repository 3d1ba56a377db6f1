"""What the README shows is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bnfold.cli.commands import bnfold as group
from tests.networks import seed_network

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names = {"model": seed_network(), "example_inputs": torch.randn(2, 1, 28, 28)}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "model.onnx").exists()


def test_every_option_and_command_that_the_readme_names_exists() -> None:
    options = {
        option for command in group.commands.values() for parameter in command.params for option in parameter.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named
    assert named <= options
    assert set(re.findall(r"bnfold (\w+) \S+\.\w+", README)) <= set(group.commands)


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_both_commands_stand_on_the_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_the_files_that_the_readme_points_to_exist() -> None:
    for path in re.findall(r"[`(]((?:bnfold|examples|docs|\.ci)/[\w./]*)[`)]", README):
        assert (ROOT / path).exists(), path
