"""Many models: each folded and proved in a process of its own, on this machine or on a cluster.

The way of a model: a row of the :mod:`manifest <bnfold.batch.manifest>` becomes a :mod:`job <bnfold.batch.job>`; the
:mod:`policy <bnfold.batch.policy>` says when it starts; a :mod:`watcher <bnfold.batch.watch>` holds its
:mod:`process <bnfold.batch.child>` to its limits, :mod:`here <bnfold.batch.local>` or on a
:mod:`cluster <bnfold.batch.cluster>`; how it went becomes a line of the :mod:`records <bnfold.batch.records>`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    if name == "run":  # loaded when first used: `bnfold --help` needs one module of this package alone
        from bnfold.batch.running import run

        return run
    raise AttributeError(f"module 'bnfold.batch' has no attribute {name!r}")
