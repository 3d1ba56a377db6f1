"""The command line: ``bnfold fold``, ``explain``, ``verify``, ``bench``, ``doctor`` and ``completion``.

Nothing here imports torch before a command needs it, so that ``bnfold --help`` answers at once. What a command does
stands in a module of its own; :mod:`bnfold.cli.ending` alone knows how an error becomes an exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    try:
        from bnfold.cli.ending import main as run

        code = run(arguments)
    except ModuleNotFoundError as error:  # click and rich, without which there is no command line
        print(f"error: bnfold needs the package {error.name}, which is not installed.", file=sys.stderr)
        print(f"  fix: Run `pip install {error.name}`.", file=sys.stderr)
        return 6
    except MemoryError:
        os.write(2, b"error: Memory ran out.\n  fix: Use a machine with more memory.\n")
        return 6
    except KeyboardInterrupt:
        return 130
    if arguments is None:  # all is said and done: a second Ctrl-C would only show where the interpreter ends
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code
