"""Silence while torch tries something that may fail: what failed is told in bnfold's own words, if at all."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "unlogged"]


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
