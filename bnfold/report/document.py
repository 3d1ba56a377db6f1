"""The one document that every format of report is made from: plain data, gathered in one place."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from bnfold._version import __version__
from bnfold.fold.decision import Decision, MergeDecision
from bnfold.printable import bytes_in_words
from bnfold.report.details import Details

if TYPE_CHECKING:
    from bnfold.export.refusals import FixedBatch

__all__ = ["SCHEMA", "Document", "OutputFile", "versions"]

SCHEMA = 1


@dataclass(frozen=True)
class OutputFile:
    """A file that was written.

    Attributes:
        path: as the user would name it.
        sha256: of its content, hexadecimal.
        size: in bytes.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Document:
    """What one run of the command line did.

    Attributes:
        command: ``"fold"``, ``"explain"``, ``"verify"`` or ``"bench"``.
        model: the model as the user named it; for verify, the original.
        candidate: for verify, the other model; else None.
        inputs: shapes of the example inputs as ``"2x1x28x28"``, and how they were obtained; None if there were none.
        capture: how the graph was obtained; None for verify.
        batchnorms: one decision per BatchNorm call.
        merges: what became of convolutions that could be one; None where merging was not asked for.
        verification: what ``Report.to_dict()`` gave; None if nothing was verified.
        counts: what the original and the folded model cost to run, as ``Counts.to_dict()`` gave; None if not counted.
        bench: what ``Bench.to_dict()`` gave; None if nothing was timed.
        outputs: the model files written.
        reports: the reports written; known when they are, so no report tells of it.
        fixed_batch: the one batch size that the models written take, and why; None where they take others.
        free: by suffix, the shapes that the models written take, the dimensions that are free by their names.
        notes: sentences about nothing that is wrong.
        strict: whether everything had to fold.
        seconds: where the time went, by stage; a part of a stage stands there as ``"stage.part"`` too.
        exit_code: of the run.
        details: what the HTML page shows beyond the other reports; None where no page was asked for.
    """

    command: str
    model: str
    candidate: str | None = None
    inputs: tuple[str, str] | None = None
    capture: str | None = None
    batchnorms: tuple[Decision, ...] = ()
    merges: tuple[MergeDecision, ...] | None = None
    verification: dict[str, Any] | None = None
    counts: tuple[dict[str, Any], dict[str, Any]] | None = None
    bench: dict[str, Any] | None = None
    outputs: tuple[OutputFile, ...] = ()
    reports: tuple[OutputFile, ...] = ()
    fixed_batch: FixedBatch | None = None
    free: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    strict: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    exit_code: int = 0
    details: Details | None = None

    @property
    def summary(self) -> dict[str, int]:
        """How many BatchNorm calls folded, became an affine, and stayed."""
        count = Counter(decision.action for decision in self.batchnorms)
        return {"fold": count["fold"], "affine": count["affine"], "keep": count["keep"]}

    @property
    def unfolded(self) -> tuple[Decision, ...]:
        """The BatchNorms that did not fold; affines by constants are no such."""
        return tuple(each for each in self.batchnorms if each.kind == "batchnorm" and each.action != "fold")

    @property
    def outcome(self) -> str:
        """The result in a few words."""
        if self.verification is not None and not self.verification["passed"]:
            return "not verifiable" if self.verification.get("verdict") == "unverifiable" else "not equivalent"
        if self.exit_code == 4:
            return "not everything folded"
        if self.bench is not None:
            return "measured"
        return "equivalent" if self.verification is not None else "not verified"

    @property
    def comparisons(self) -> Sequence[dict[str, Any]]:
        """The comparisons of the verification, as plain data."""
        return [] if self.verification is None else self.verification["comparisons"]

    def size_of(self, file: OutputFile) -> str:
        """Return a file's size in words and, for a program, the shapes that it takes."""
        fixed = self.fixed_batch is not None and file in self.outputs and file.path.endswith((".onnx", ".pt2"))
        only = f", for batch {self.fixed_batch.size} only" if fixed and self.fixed_batch is not None else ""
        shapes = self.free.get(PurePath(file.path).suffix) if file in self.outputs else None
        return (f"{shapes}  " if shapes else "") + bytes_in_words(file.size) + only

    def _described(self, file: OutputFile) -> dict[str, Any]:
        shapes = self.free.get(PurePath(file.path).suffix)
        told = {} if shapes is None else {"inputs": shapes}
        return {"path": file.path, "sha256": file.sha256, "size": file.size, **told}

    def with_results(self, **changes: Any) -> Document:
        """Return the document with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON report: the contract's keys, and a few more."""
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "command": self.command,
            "model": self.model,
            "capture": self.capture,
            "batchnorms": [decision.to_dict() for decision in self.batchnorms],
            "summary": self.summary,
            "verification": self.verification,
            "outputs": [self._described(file) for file in self.outputs],
            "versions": versions(),
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "notes": list(self.notes),
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
        }
        if self.merges is not None:
            data["merges"] = [merge.to_dict() for merge in self.merges]
        if self.counts is not None:
            data["counts"] = {"before": self.counts[0], "after": self.counts[1]}
        if self.bench is not None:
            data["bench"] = self.bench
        if self.fixed_batch is not None:
            data["fixed_batch"] = {"size": self.fixed_batch.size, "why": self.fixed_batch.why}
        if self.candidate is not None:
            data["candidate"] = self.candidate
        if self.inputs is not None:
            data["inputs"] = {"shapes": self.inputs[0], "how": self.inputs[1]}
        return data


def versions() -> dict[str, str]:
    """Return the versions of what the result depends on, without importing any of it."""
    packages = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")
    return {"bnfold": __version__, "python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
