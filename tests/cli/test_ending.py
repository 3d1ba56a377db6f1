"""Every way in which a run can end has its exit code, and no user's mistake shows a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import click
import pytest

from bnfold import errors
from bnfold.cli import ending, main
from bnfold.cli.commands import bnfold
from tests.cli.conftest import Run


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    def arrange(error: BaseException) -> None:
        def work(*_: object) -> int:
            raise error

        monkeypatch.setattr("bnfold.cli.explain.run", work)

    return arrange


CODES = [
    (errors.NotEquivalentError("a", fix="b"), 1),
    (errors.UsageError("a", fix="b"), 2),
    (errors.TrainingModeError("a", fix="b"), 2),
    (errors.UnknownNameError("a", fix="b"), 2),
    (errors.RefusedFileError("a", fix="b"), 3),
    (errors.NotFoldedError("a", fix="b"), 4),
    (errors.FileAccessError("a", fix="b"), 5),
    (errors.CaptureError("a", fix="b"), 6),
    (errors.NeedsInputsError("a", fix="b"), 6),
    (errors.ExportError("a", fix="b"), 6),
    (errors.MissingPackageError("a", fix="b"), 6),
    (errors.NotFiniteError("a", fix="b"), 6),
    (MemoryError(), 6),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 6),
    (KeyboardInterrupt(), 130),
    (click.Abort(), 130),
    (ending.Terminated(), 143),
    (ZeroDivisionError("oh"), 70),
    (AssertionError(), 70),
    (OSError(28, "No space left on device"), 5),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_each_error_has_its_exit_code_and_no_traceback(
    run: Run, ends_with: Callable[[BaseException], None], error: BaseException, code: int
) -> None:
    ends_with(error)
    result = run("explain", "model.pt")
    assert result.code == code
    assert result.err.lstrip("\n").startswith("error: ")
    assert "Traceback" not in result.err
    assert result.out == ""


def test_an_error_says_what_and_how_to_mend_it(run: Run, ends_with: Callable[[BaseException], None]) -> None:
    ends_with(errors.CaptureError("It stopped there.", fix="Do this."))
    assert run("explain", "model.pt").err == "error: It stopped there.\n  fix: Do this.\n"


def test_a_bug_asks_for_a_report_and_shows_its_traceback_only_when_verbose(
    run: Run, ends_with: Callable[[BaseException], None]
) -> None:
    ends_with(ZeroDivisionError("division by zero"))
    quiet = run("explain", "model.pt")
    assert "bug in bnfold: ZeroDivisionError: division by zero" in quiet.err
    assert "Please report it" in quiet.err
    assert "Traceback" not in quiet.err
    assert "Traceback (most recent call last)" in run("explain", "model.pt", "-v").err


def test_a_hostile_error_message_is_shown_as_text(run: Run, ends_with: Callable[[BaseException], None]) -> None:
    ends_with(errors.RefusedFileError("\x1b[2J\n::error::x", fix="[bold]\r"))
    err = run("explain", "model.pt").err
    assert err == "error: \\x1b[2J\\x0a\\x3a:error\\x3a:x\n  fix: [bold]\\x0d\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["fold", "--help"], ["explain", "-h"], ["verify", "-h"]])
def test_help_exits_0(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 0
    assert result.out.startswith("Usage: bnfold")


def test_the_version_is_told(run: Run) -> None:
    result = run("--version")
    assert (result.code, result.out.split()[0]) == (0, "bnfold")


@pytest.mark.parametrize("arguments", [["fould"], ["fold", "a", "b"], ["explain", "--seed", "x", "a"]])
def test_what_cannot_be_parsed_exits_2_and_points_to_help(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert "--help" in result.err


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_is_told_to_report_to_nobody_unless_the_user_said_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if before is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before)
    run("--version")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == after


def test_an_interrupt_that_others_made_an_error_of_is_still_an_interrupt(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("the exporter failed") from None
        return 0

    monkeypatch.setattr("bnfold.cli.explain.run", work)
    result = run("explain", "model.pt")
    assert result.code == 130
    assert "Interrupted" in result.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (errors.ExportError("The exporter failed.", fix="b"), MemoryError(), 6),
        (errors.UsageError("The factory failed.", fix="b"), RuntimeError("std::bad_alloc"), 6),
        (errors.RefusedFileError("a claims more memory than there is.", fix="b"), MemoryError(), 3),
        (errors.UsageError("The factory failed.", fix="b"), RuntimeError("other"), 2),
        (ModuleNotFoundError("No module named 'bnfold.nothing'", name="bnfold.nothing"), None, 70),
    ],
)
def test_memory_that_ran_out_at_the_bottom_of_an_error_is_what_is_said(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    cause: BaseException | None,
    code: int,
) -> None:
    def work(*_: object) -> int:
        raise error from cause

    monkeypatch.setattr("bnfold.cli.explain.run", work)
    result = run("explain", "model.pt")
    assert result.code == code
    assert ("Memory ran out." in result.err) == (code == 6)


def test_sigterm_is_handled_as_before_after_a_run(run: Run) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run("--version")
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_exit_codes_of_the_contract_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fold", "--help"])
    assert "Exit codes: 0 done and equivalent" in capsys.readouterr().out


def test_the_options_of_the_contract_exist() -> None:
    wanted = {
        "fold": "-o --output --code --model --input-shape --inputs --keep --strict --trust --report "
        "--no-verify --seed -q -v --force --no-color",
        "explain": "--code --model --trust --report -q -v --no-color",
        "verify": "--code --model --trust --report --inputs --input-shape -q -v --no-color",
    }
    for name, options in wanted.items():
        known = {option for parameter in bnfold.commands[name].params for option in parameter.opts}
        assert set(options.split()) <= known


def test_a_second_interrupt_while_the_program_ends_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is the program: whoever calls it with arguments keeps the handler."""
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["--version"]) == 0
        assert signal.getsignal(signal.SIGINT) is before
        monkeypatch.setattr(sys, "argv", ["bnfold", "--version"])
        assert main() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
