"""How a run ends: the one place where an error becomes a message and an exit code.

0    done and equivalent
1    not equivalent                     5    reading or writing failed
2    invalid request                    6    capture or export failed
3    the input file is refused          70   a bug in bnfold
4    --strict, and something stayed     130  interrupted
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

import click

from bnfold.cli.terminal import Terminal, silence
from bnfold.errors import BnfoldError, first_line

__all__ = ["MEMORY_RAN_OUT", "Terminated", "main"]

MEMORY_RAN_OUT = "Memory ran out."

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_NO_MEMORY_WORDS = (  # how torch, ONNX Runtime, C++ and the system's loader say it
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment",
)
_INTERRUPTED, _BUG, _INCAPABLE, _NOT_WRITTEN = 130, 70, 6, 5


class Terminated(BaseException):
    """SIGTERM: the run ends as if it had been interrupted, so that what it began is cleaned up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    from bnfold.cli.commands import bnfold as group

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's, which nobody who folds a model asked for
    given = list(sys.argv[1:] if arguments is None else arguments)
    terminal = Terminal(color="--no-color" not in given, verbose=bool({"-v", "--verbose"} & set(given)))
    code = _ended(lambda: group.main(given, prog_name="bnfold", standalone_mode=False), terminal)
    return _flushed(code, terminal)


def _ended(run: Callable[[], object], terminal: Terminal) -> int:
    """Run, and return the exit code of what came of it."""
    before = _set_handler(signal.SIGTERM, _terminate)
    try:
        with _Interrupts() as interrupts:
            try:
                code = run()
            except Exception as error:
                if interrupts.came:  # and somebody made another error of it on its way
                    raise KeyboardInterrupt from error
                raise
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        terminal.error("Interrupted. Existing files were not changed.")
        return _INTERRUPTED
    except Terminated:
        terminal.error("Ended by SIGTERM. Existing files were not changed.")
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        silence(terminal.stdout)
        return _NOT_WRITTEN
    except Exception as error:
        return _told(error, terminal)
    finally:
        _set_handler(signal.SIGTERM, before)
    return code if isinstance(code, int) else 0


def _told(error: Exception, terminal: Terminal) -> int:
    """Say what an error means to a user, and return the exit code."""
    if _is_about_memory(error):
        return _no_memory(terminal)
    if isinstance(error, BnfoldError):
        terminal.error(error.what, error.fix)
        told = error.exit_code == _INCAPABLE or error.__cause__ is not None  # a plain mistake has no inside to look at
        return _with_traceback(error.exit_code, terminal) if told else error.exit_code
    if isinstance(error, click.ClickException):
        return _usage(error, terminal)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "bnfold":
        package = error.name.partition(".")[0]
        terminal.error(
            f"bnfold needs the package {package}, which is not installed.",
            f"Run `pip install {package}`; `bnfold doctor` says what else is missing.",
        )
        return _with_traceback(_INCAPABLE, terminal)
    return _bug(error, terminal)


def _is_about_memory(error: BaseException) -> bool:
    """Whether memory ran out at the bottom of an error, and the error itself does not say so."""
    if isinstance(error, BnfoldError) and "memory" in error.what:
        return False
    one: BaseException | None = error
    for _ in range(50):
        if one is None:
            return False
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return True
        if any(words in str(one).lower() for words in _NO_MEMORY_WORDS):
            return True
        one = one.__cause__ or one.__context__
    return False


def _no_memory(terminal: Terminal) -> int:
    """Say that memory ran out, with what little there is."""
    what, fix = MEMORY_RAN_OUT, "Use a machine with more memory, or give a smaller --input-shape."
    try:
        terminal.error(what, fix)
        return _with_traceback(_INCAPABLE, terminal)
    except MemoryError:
        os.write(2, f"error: {what}\n  fix: {fix}\n".encode())
        return _INCAPABLE


def _usage(error: click.ClickException, terminal: Terminal) -> int:
    fix = "See `bnfold --help`."
    if isinstance(error, click.UsageError) and error.ctx is not None:
        fix = f"See `{error.ctx.command_path} --help`."
    terminal.error(error.format_message().rstrip(), fix)
    return 2


def _bug(error: Exception, terminal: Terminal) -> int:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        terminal.error(f"The output cannot be written: {error.strerror}.", "Make room, or send it elsewhere.")
        return _with_traceback(_NOT_WRITTEN, terminal)
    terminal.error(
        f"This is a bug in bnfold: {first_line(error, 300, typed=True)}",
        "Please report it with the command line"
        + (" and the lines below." if terminal.verbose else "; -v shows where it happened."),
    )
    return _with_traceback(_BUG, terminal)


def _with_traceback(code: int, terminal: Terminal) -> int:
    if terminal.verbose:
        terminal.err.print(traceback.format_exc(), style="dim", soft_wrap=True)
    return code


def _flushed(code: int, terminal: Terminal) -> int:
    """Flush, so that Python does not complain at exit about a reader that has gone."""
    try:
        terminal.stdout.flush()
    except BrokenPipeError:
        silence(terminal.stdout)
    except (OSError, ValueError) as error:
        silence(terminal.stdout)
        terminal.error(f"The output cannot be written: {error}.", "Make room, or send it elsewhere.")
        return code or _NOT_WRITTEN
    return code


class _Interrupts:
    """Raises KeyboardInterrupt for a SIGINT, as Python does, and remembers that one came."""

    def __init__(self) -> None:
        self.came = False
        self._before: object = None

    def __enter__(self) -> _Interrupts:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = _set_handler(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _set_handler(signal.SIGINT, self._before)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _set_handler(number: int, handler: object) -> object:
    """Set the handler of a signal and return the one before; outside of the main thread, leave it alone."""
    try:
        return signal.signal(number, handler)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None
