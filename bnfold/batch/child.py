"""Inside of a model's own process: one ``bnfold fold``, its words in a log, and what it is at in a small file."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnfold.batch.job import Job

__all__ = ["STATE", "State", "fold", "read_state", "work"]

STATE = "state.json"
"""In a model's folder while it runs: the stage, what was said last, and at the end the result."""

OUTCOMES = {0: "equivalent", 1: "not-equivalent", 3: "refused"}
"""By exit code; any other is ``failed``."""


class State:
    """The small file by which a process says what it is at; whoever reads it sees all of one state or of another."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder, STATE)
        self.now: dict[str, Any] = {}

    def stage(self, sentence: str) -> None:
        """Hear of a stage, from the command."""
        self.set(stage=sentence)

    def error(self, what: str, fix: str) -> None:
        """Hear of an error, from the command."""
        from bnfold.cli.ending import MEMORY_RAN_OUT

        self.set(error=f"{what} {fix}".strip(), no_memory=what == MEMORY_RAN_OUT)

    def set(self, **values: Any) -> None:
        """Change some of the state."""
        if all(key in self.now and self.now[key] == value for key, value in values.items()):
            return
        self.now |= values
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.now), encoding="utf-8")
        os.replace(beside, self.path)


def read_state(folder: str) -> dict[str, Any]:
    """Return the state that stands in a model's folder; nothing where there is none."""
    try:
        state = json.loads(Path(folder, STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def work(job: Job, threads: int | None) -> int:
    """Do the job's work in this process, which ends after it; return the exit code.

    What the work returns stands in the state then, as ``result``.
    """
    state = State(job.folder)
    state.set(stage="starting")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    module, _, name = job.work.partition(":")
    try:
        function: Callable[[Job, State], dict[str, Any]] = getattr(importlib.import_module(module), name)
        result = function(job, state)
    except MemoryError:
        state.set(no_memory=True)
        raise
    except Exception as error:
        traceback.print_exc()
        state.set(error=f"{type(error).__name__}: {error}"[:500])
        return 70
    state.set(result=result)
    return int(result.get("exit_code", 0))


def fold(job: Job, state: State) -> dict[str, Any]:
    """Run ``bnfold fold`` with the job's arguments; return the record's part of what it reports."""
    from bnfold.cli.ending import main
    from bnfold.cli.listener import listen

    listen(state)
    code = main(["fold", *job.arguments])
    report = _report(job.folder)
    outcome = OUTCOMES.get(code, "failed")
    if code == 0 and report.get("verification") is None:
        outcome = "not-verified"
    outputs = [file | {"path": os.path.relpath(file["path"], job.folder)} for file in report.get("outputs", [])]
    return {"exit_code": code, "outcome": outcome, "summary": report.get("summary"), "outputs": outputs}


def _report(folder: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
