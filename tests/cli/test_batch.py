"""``bnfold batch``: what goes to stdout and stderr, and the exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bnfold.batch import progress, running
from bnfold.batch.progress import OnStderr
from bnfold.cli.terminal import Terminal
from tests.cli.conftest import Run

FINE = "tests.batch.works:fine"


@pytest.fixture
def batch(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``bnfold batch`` over two models, with something quick in the place of the fold."""
    read = running.read_manifest

    def quick(*arguments: Any, work: str, **options: Any) -> Any:
        del work
        return read(*arguments, work=FINE, **options)

    monkeypatch.setattr(running, "read_manifest", quick)
    (tmp_path / "models.csv").write_text("name,source\na,a.pt\nb,b.pt\n")

    def bnfold(*arguments: object) -> Any:
        return run("batch", "models.csv", "-o", "out", *arguments)

    return bnfold


def test_all_equivalent_is_0_with_a_table_on_stdout_and_little_on_stderr(batch: Run, tmp_path: Path) -> None:
    result = batch()
    assert (result.code, result.err) == (0, "")
    assert "equivalent       2" in result.out
    assert "2 of 2 models equivalent; see out/index.html" in result.out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "results.jsonl",
        "index.html",
        "junit.xml",
        "models",
    }
    assert batch().err == "note: 2 of 2 models are done already.\n"


def test_one_that_is_not_is_1_and_told_on_stderr(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models.csv").write_text("name,source\na,none.pt\n")
    result = run("batch", "models.csv", "-o", "out")
    assert result.code == 1
    assert result.err == f"warning: a failed: There is no file {tmp_path}/none.pt. Check the path.\n"
    assert "0 of 1 model equivalent" in result.out


def test_a_report_on_stdout_is_json_and_nothing_else(batch: Run, tmp_path: Path) -> None:
    result = batch("--report", "-", "--report", "all.xml")
    data = json.loads(result.out)
    assert [model["name"] for model in data["models"]] == ["a", "b"]
    assert (tmp_path / "all.xml").is_file()
    assert batch("--report", "all.xml").code == 5
    assert batch("--report", "all.xml", "--force").code == 0


def test_options_of_the_fold_are_defaults(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("bnfold.cli.many.run_all", lambda *_arguments, **options: seen.append(options) or [])
    (tmp_path / "models.csv").write_text("name,source\na,a.pt\n")
    arguments = (
        "--merge --code net.py --input-shape 1,3,8,8 --keep a --keep b --timeout 2m --memory 3GiB --again failed"
    )
    assert run("batch", "models.csv", "-o", "out", *arguments.split()).code == 0
    (options,) = seen
    given = {name: values for name, values in options["options"].items() if values}
    assert given == {
        "merge": ["--merge"],
        "code": [str(tmp_path / "net.py")],
        "input_shape": ["1,3,8,8"],
        "keep": ["a", "b"],
    }
    assert (options["timeout"], options["memory"], options["again"]) == (120.0, 3 << 30, "FAILED")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["none.csv", "-o", "out"], 5, "The manifest none.csv cannot be read"),
        (["bad.csv", "-o", "out"], 2, "bad.csv, line 2, column seed: 'x' is not a valid integer"),
        (["models.csv"], 2, "Missing option '-o'"),
        (["models.csv", "-o", "out", "--timeout", "soon"], 2, "'soon' is no time; write 90, 15m or 1.5h."),
        (["models.csv", "-o", "out", "--memory", "much"], 2, "'much' is no size; write 3GiB or 500MB."),
        (["models.csv", "-o", "out", "--report", "a.txt"], 2, "names no format"),
        (["models.csv", "-o", "models.csv"], 5, "cannot be written to"),
    ],
)
def test_what_cannot_be_is_told(arguments: list[str], code: int, told: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("source,seed\na.pt,x\n")
    (tmp_path / "models.csv").write_text("name,source\na,a.pt\n")
    result = run("batch", *arguments)
    assert (result.code, result.out) == (code, "")
    assert told in result.err
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_line_comes_every_minute_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    terminal = Terminal()
    terminal.err = Console(file=io.StringIO(), width=160)
    with OnStderr(terminal) as told:
        told.begin(1, {"a": 1.0, "b": 1.0, "c": 2.0})
        for _ in range(130):
            told.look({"a": "folding"}, 2)
            now[0] += 1
        told.ended({"name": "a", "outcome": "equivalent"})
        now[0] += 60
        told.look({"b": "folding"}, 1)
    assert terminal.err.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "note: 1 of 4 models are done already.",
        "1 of 4 done, 1 running, 2 waiting; 1 min 0 s",
        "1 of 4 done, 1 running, 2 waiting; 2 min 0 s",
        "2 of 4 done, 1 running, 1 waiting; 3 min 10 s, about 9 min 30 s left",
    ]


def test_a_terminal_shows_what_runs_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    terminal.err = Console(file=io.StringIO(), width=100, force_terminal=True, force_interactive=True)
    with OnStderr(terminal) as told:
        told.begin(0, {"a": 1.0, "b\x1b[2J": 1.0})
        told.look({"a": "folding", "b\x1b[2J": "exporting"}, 0)
        told.ended({"name": "a", "outcome": "died", "error": "gone", "peak_bytes": 0})
    shown = terminal.err.file.getvalue()  # type: ignore[attr-defined]
    assert "folding" in shown
    assert r"b\x1b[2J" in shown
    assert "a died: gone" in shown
