"""Where the command line speaks: results to stdout, messages and progress to stderr, whatever these are.

Either may be closed, a pipe that nobody reads, a file, a terminal of any width, or a place that takes ASCII only.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from bnfold.cli.listener import listener
from bnfold.errors import FileAccessError
from bnfold.report.escape import visible

__all__ = ["Terminal"]

_WIDTH_ELSEWHERE = 160  # columns, where the output is no terminal and says nothing of its width


class _Console(Console):
    """A console that goes silent when its reader has gone, and lets the work go on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(self.file)


class Terminal:
    """Both streams of one run.

    Args:
        quiet: no results and no messages but errors and warnings.
        verbose: more of both.
        color: False for none at all; otherwise the terminal and ``NO_COLOR`` decide.
        results_to_stderr: stdout is wanted for something else.

    Raises:
        FileAccessError: it is, and it is closed.
    """

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, color: bool = True, results_to_stderr: bool = False
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        if results_to_stderr and (sys.stdout is None or sys.stdout.closed):
            raise FileAccessError("stdout is closed, so the report cannot go there.", fix="Give --report FILE.json.")
        self.stdout: TextIO = _usable(sys.stdout)
        self.stderr: TextIO = _usable(sys.stderr)
        self.err = _console(self.stderr, color=color)
        self.out = self.err if results_to_stderr else _console(self.stdout, color=color)

    def result(self, *parts: Any) -> None:
        """Print a result: strings and rich tables, as they stand; names in them are escaped before."""
        if not self.quiet:
            for part in parts:
                self.out.print(part)

    def note(self, sentence: str) -> None:
        """Tell the user something that is not wrong."""
        if not self.quiet:
            self.err.print(Text("note: ", style="cyan") + Text(visible(sentence)), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Tell the user something that may be wrong; not silenced by ``quiet``."""
        self.err.print(Text("warning: ", style="yellow") + Text(visible(sentence)), soft_wrap=True)

    def error(self, what: str, fix: str = "") -> None:
        """Say what went wrong and what to do."""
        listener().error(what, fix)
        self.err.print(Text("error: ", style="bold red") + Text(visible(what)), soft_wrap=True)
        if fix:
            self.err.print(Text("  fix: ", style="bold") + Text(visible(fix)), soft_wrap=True)

    def write_raw(self, text: str) -> None:
        """Write to stdout, whatever results are printed to."""
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            silence(self.stdout)

    @contextlib.contextmanager
    def foreign_code(self) -> Iterator[None]:
        """While code of others runs, what it prints goes to stderr, so that stdout holds results alone."""
        with contextlib.redirect_stdout(self.stderr):
            yield


def _console(file: TextIO, *, color: bool) -> Console:
    console = _Console(file=file, no_color=None if color else True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_ELSEWHERE
    return console


def _usable(stream: TextIO | None) -> TextIO:
    """Return the stream, able to print any character in some way; a null device where it is closed."""
    if stream is None or stream.closed:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def silence(stream: Any) -> None:
    """Let a stream whose reader has gone write into nothing, so that no later flush fails either."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
