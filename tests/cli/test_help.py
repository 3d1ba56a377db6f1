"""The help of each command has examples that parse; shells complete what they are told to."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bnfold.cli.commands import bnfold
from tests.cli.conftest import ROOT, Run


def examples_of(command: str) -> list[list[str]]:
    """Return the command lines under ``Examples:`` in a command's help, without the program's name."""
    lines = (bnfold.commands[command].help or "").partition("Examples:\n")[2].split("\n\n")[0].splitlines()
    return [shlex.split(line.strip().partition(" >")[0])[1:] for line in lines if line.strip()]


@pytest.mark.parametrize("command", sorted(bnfold.commands))
def test_each_command_has_examples_and_they_parse(command: str) -> None:
    examples = examples_of(command)
    assert len(examples) >= 2
    for name, *arguments in examples:
        assert name == command
        bnfold.commands[name].make_context(name, arguments)  # raises for what cannot be parsed


@pytest.mark.parametrize("command", ["", *sorted(bnfold.commands)])
def test_help_fits_a_terminal_and_keeps_its_lines(run: Run, command: str) -> None:
    out = run(*command.split(), "--help").out
    assert "\\b" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert "..." not in out.partition("Commands:")[2], "each command is told whole"


def test_no_command_gets_the_help_and_exits_2(run: Run) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert result.err == run("--help").out


def test_an_example_that_does_not_parse_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        bnfold.commands["fold"].make_context("fold", ["model.pt", "--no-such-option"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"_BNFOLD_COMPLETE={shell}_complete" in result.out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["bnfold", "fo"], {"fold"}),
        (["bnfold", ""], set(bnfold.commands)),
        (["bnfold", "fold", "m.pt", "--inp"], {"--input-shape", "--inputs"}),
        (["bnfold", "completion", "f"], {"fish"}),
        (["bnfold", "bench", "m.pt", "--target", "on"], {"onnxruntime"}),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(words: list[str], completed: set[str], tmp_path: Path) -> None:
    assert set(in_bash(words, tmp_path)) == completed


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_files_itself(tmp_path: Path) -> None:
    assert in_bash(["bnfold", "fold", "mo"], tmp_path) == ["compopt -o default"]


def in_bash(words: list[str], folder: Path) -> list[str]:
    """Return what bash, having run the script, offers for the last of the words."""
    program = folder / "bnfold"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "cli.py"}" "$@"\n')
    program.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
        compopt() {{ local IFS=' '; echo "compopt $*"; }}
        source <(bnfold completion bash)
        COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
        _bnfold_completion bnfold
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if "compopt" not in done.stdout else [done.stdout.strip()]
