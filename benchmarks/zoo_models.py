"""Every model of the zoo as a SPEC of ``bnfold``: ``benchmarks/zoo_models.py:timm_resnet18``."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

from torch import nn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.zoo_list import Entry, read_list  # noqa: E402

__all__ = ["spec"]


def spec(entry: Entry) -> str:
    """Return the SPEC of a model."""
    return f"{Path(__file__).resolve()}:{_identifier(entry)}"


def _identifier(entry: Entry) -> str:
    return re.sub(r"\W", "_", entry.key)


@cache
def _entries() -> dict[str, Entry]:
    return {_identifier(entry): entry for entry in read_list()}


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """Return the factory of a model, with numbers that no wrong fold can hide in."""
    if name not in _entries():
        raise AttributeError(name)

    def make() -> nn.Module:
        from benchmarks.zoo_build import build

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(_entries()[name]).model

    return make
