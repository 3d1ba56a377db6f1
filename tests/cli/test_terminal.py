"""Results and messages in odd surroundings: no terminal, no reader, no stdout, ASCII only, no colours wanted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from tests.cli.conftest import CODE, ROOT

COMMAND = [sys.executable, str(ROOT / "cli.py")]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return kept | changes


def bnfold(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment(**changes), check=False
    )


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_help_imports_neither_torch_nor_numpy_nor_onnx() -> None:
    loaded = modules_after(
        "from bnfold.cli import main\nimport contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['fold', '--help'])"
    )
    assert not {"torch", "numpy", "onnx", "onnxruntime"} & loaded
    assert "bnfold.cli.commands" in loaded


@pytest.mark.parametrize("command", [COMMAND, [sys.executable, "-m", "bnfold"]])
def test_both_launchers_work(command: list[str]) -> None:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "bnfold")


def test_a_reader_that_goes_away_does_not_stop_the_work(seed_file: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "explain", seed_file, *CODE, "--report", seed_file.with_name("r.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert seed_file.with_name("r.json").exists()


def test_a_closed_stdout_does_not_stop_the_work(seed_file: Path) -> None:
    report = seed_file.with_name("r.json")
    line = " ".join(map(str, [*COMMAND, "explain", seed_file, *CODE, "--report", report]))
    done = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert report.exists()


def test_a_report_that_is_to_go_to_a_closed_stdout_is_not_lost_in_silence(seed_file: Path) -> None:
    line = " ".join(map(str, [*COMMAND, "explain", seed_file, *CODE, "--report", "-"]))
    done = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 5
    assert "stdout is closed, so the report cannot go there" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_stdout_exits_5() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 5
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_ascii_gets_every_character_in_some_way(seed_file: Path) -> None:
    done = bnfold("explain", seed_file, "bn1", *CODE, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "fma(x, alpha, beta)" in done.stdout


def test_a_missing_model_is_said_before_torch_is_imported() -> None:
    loaded = modules_after(
        "from bnfold.cli import main\nimport contextlib, io\n"
        "with contextlib.redirect_stderr(io.StringIO()): assert main(['fold', 'missing.pt']) == 5"
    )
    assert "torch" not in loaded


def test_what_is_no_terminal_gets_no_colours() -> None:
    assert "\x1b" not in bnfold("fold", "missing.pt").stderr


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Tty:
    """Make stderr a terminal, until the test ends."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Tty())
    return sys.stderr  # type: ignore[return-value]


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = as_terminal(monkeypatch)
    Terminal().error("a", "b")
    assert "\x1b[1;31merror: " in stream.getvalue()


@pytest.mark.parametrize(("color", "variables"), [(False, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"})])
def test_a_terminal_gets_none_where_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch, color: bool, variables: dict[str, str]
) -> None:
    stream = as_terminal(monkeypatch, **variables)
    Terminal(color=color).error("a", "b")
    assert "31m" not in stream.getvalue()
    assert "error: " in stream.getvalue()


def test_quiet_keeps_errors_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    tty = as_terminal(monkeypatch)
    terminal = Terminal(quiet=True, color=False)
    terminal.note("a note")
    terminal.warn("a warning")
    terminal.error("an error")
    assert "a note" not in tty.getvalue()
    assert "a warning" in tty.getvalue()
    assert "an error" in tty.getvalue()


def test_a_bar_appears_only_after_a_while_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.cli.stages._PATIENCE", 0.05)
    stream = Tty()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with Stages(console, (("work", "working hard"),), show=True) as stages, stages("work"):
        assert stream.getvalue() == ""
        deadline = time.monotonic() + 20
        while "working hard" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "working hard" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the last thing it does is to clear its line


def test_no_bar_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.cli.stages._PATIENCE", 0.0)
    stream = io.StringIO()
    with Stages(Console(file=stream), (("work", "working hard"),), show=True) as stages, stages("work"):
        time.sleep(0.05)
    assert stream.getvalue() == ""


def test_stages_add_up_what_they_are_entered_for_again() -> None:
    with Stages(Console(file=io.StringIO()), (("a", "a"), ("b", "b")), show=False) as stages:
        for _ in range(2):
            with stages("a"):
                time.sleep(0.01)
        with stages("b"):
            pass
    assert stages.seconds["a"] >= 0.02
    assert list(stages.seconds) == ["a", "b"]


def test_parts_of_a_stage_stand_beside_it_and_add_up_too() -> None:
    with Stages(Console(file=io.StringIO()), (("a", "a"),), show=False) as stages:
        with stages("a"):
            stages.add_parts("a", {"first": 0.5, "second": 0.25})
        stages.add_parts("a", {"first": 0.5})
    assert stages.seconds.keys() == {"a", "a.first", "a.second"}
    assert (stages.seconds["a.first"], stages.seconds["a.second"]) == (1.0, 0.25)
