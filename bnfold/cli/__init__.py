"""The command line: ``bnfold fold``, ``explain``, ``verify`` and ``bench``.

Nothing here imports torch before a command needs it, so that ``bnfold --help`` answers at once. What a command does
stands in a module of its own; :mod:`bnfold.cli.ending` alone knows how an error becomes an exit code.
"""

from __future__ import annotations

from bnfold.cli.ending import main

__all__ = ["main"]
