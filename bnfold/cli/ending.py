"""How a run ends: the one place where an error becomes a message and an exit code.

0    done and equivalent
1    not equivalent                     5    reading or writing failed
2    the request cannot be meant so     6    capture or export failed
3    the input file is refused          70   a bug in bnfold
4    --strict, and something stayed     130  interrupted
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

import click

from bnfold.cli.terminal import Terminal, silence
from bnfold.errors import BnfoldError

__all__ = ["Terminated", "main"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_INTERRUPTED, _BUG, _NO_MEMORY, _NOT_WRITTEN = 130, 70, 6, 5


class Terminated(BaseException):
    """SIGTERM: the run ends as if it had been interrupted, so that what it began is cleaned up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    from bnfold.cli.commands import bnfold as group

    given = list(sys.argv[1:] if arguments is None else arguments)
    terminal = Terminal(color="--no-color" not in given, verbose=bool({"-v", "--verbose"} & set(given)))
    code = _ended(lambda: group.main(given, prog_name="bnfold", standalone_mode=False), terminal)
    return _flushed(code, terminal)


def _ended(run: Callable[[], object], terminal: Terminal) -> int:
    """Run, and return the exit code of what came of it."""
    before = _on_sigterm(_terminate)
    try:
        code = run()
    except BnfoldError as error:
        terminal.error(error.what, error.fix)
        return _with_traceback(error.exit_code, terminal)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        terminal.error("Interrupted. Files that were there are as they were.")
        return _INTERRUPTED
    except Terminated:
        terminal.error("Ended by SIGTERM. Files that were there are as they were.")
        return 128 + signal.SIGTERM
    except click.ClickException as error:
        return _usage(error, terminal)
    except BrokenPipeError:
        silence(terminal.stdout)
        return _NOT_WRITTEN
    except MemoryError:
        terminal.error("Memory ran out.", "Run on a machine with more, or give a smaller --input-shape.")
        return _with_traceback(_NO_MEMORY, terminal)
    except Exception as error:
        return _bug(error, terminal)
    finally:
        _on_sigterm(before)
    return code if isinstance(code, int) else 0


def _usage(error: click.ClickException, terminal: Terminal) -> int:
    fix = "See `bnfold --help`."
    if isinstance(error, click.UsageError) and error.ctx is not None:
        fix = f"See `{error.ctx.command_path} --help`."
    terminal.error(error.format_message().rstrip(), fix)
    return 2


def _bug(error: Exception, terminal: Terminal) -> int:
    if "can't allocate memory" in str(error) or "not enough memory" in str(error):
        terminal.error("Memory ran out.", "Run on a machine with more, or give a smaller --input-shape.")
        return _with_traceback(_NO_MEMORY, terminal)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        terminal.error(f"The output cannot be written: {error.strerror}.", "Make room, or send it elsewhere.")
        return _with_traceback(_NOT_WRITTEN, terminal)
    first = next(iter(str(error).splitlines()), "")
    terminal.error(
        f"This is a bug in bnfold: {type(error).__name__}: {first[:300]}",
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


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _on_sigterm(handler: object) -> object:
    """Set the handler of SIGTERM and return the one before; outside of the main thread, leave it alone."""
    try:
        return signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None
