"""Which witnesses there are, and how one is found by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

from bnfold.errors import UsageError
from bnfold.printable import listed, shown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GROUP", "Load", "Run", "extra_of", "find", "known", "require"]

GROUP = "bnfold.witnesses"
"""The group of entry points."""

Run = Callable[[dict[str, "np.ndarray[Any, Any]"]], Sequence["np.ndarray[Any, Any]"]]

_OWN = {name: f"bnfold.witness.{name}:load" for name in ("mnn", "openvino")}


class Load(Protocol):
    """What a witness is."""

    def __call__(self, path: str, *, threads: int | None = None) -> Run:
        """Return what runs the ONNX file at ``path``: from arrays by input name to arrays in the outputs' order."""


def known() -> dict[str, metadata.EntryPoint]:
    """Return the witnesses by name: bnfold's own, and those that installed packages register."""
    own = {name: metadata.EntryPoint(name, value, GROUP) for name, value in _OWN.items()}
    return {point.name: point for point in metadata.entry_points(group=GROUP)} | own


def find(name: str) -> metadata.EntryPoint:
    """Return where a witness is found; nothing is imported.

    Args:
        name: as it is registered, or ``package.module:function``.

    Raises:
        UsageError: there is none of this name.
    """
    if ":" in name:
        return metadata.EntryPoint(name, name, GROUP)
    every = known()
    if name not in every:
        close = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
        fix = f"Did you mean {listed(close)}?" if close else f"There are {listed(sorted(every), 10)}."
        raise UsageError(f"There is no witness called `{shown(name)}`.", fix=fix)
    return every[name]


def require(names: Iterable[str]) -> None:
    """Raise unless each of these witnesses is known.

    Raises:
        UsageError: there is none of a name.
    """
    for name in names:
        find(name)


def extra_of(name: str) -> str:
    """Return what ``pip install`` is to be given for a witness: of bnfold's own, an extra of bnfold."""
    return f"bnfold[{name}]" if name in _OWN else name
