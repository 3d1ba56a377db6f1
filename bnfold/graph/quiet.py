"""Silence while torch tries something that may fail, and while a graph is made.

What failed is told in bnfold's own words, if at all.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["collecting_later", "quiet", "unlogged"]


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Let Python not look for unreachable cycles.

    A graph makes none, and one look through all that torch holds takes as long as a small network's fold.
    """
    if not gc.isenabled():  # by the caller, or by another thread that is in here
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Let no warning and no log record come through."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let no warning, no log record and nothing printed to stdout or stderr come through."""
    with unlogged(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
