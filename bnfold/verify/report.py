"""What a verification found, as plain data: no tensors, no graph, nothing to import.

A :class:`Comparison` is one witness against the float64 oracle on one output, at the input where it stands worst. A
:class:`Report` is all of them and the verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Comparison", "Report", "Stage", "Verdict"]

Verdict = Literal["passed", "failed", "unverifiable"]
Stage = Literal["fold", "program", "export", "optimizer", "witness"]


@dataclass(frozen=True)
class Comparison:
    """One witness against the oracle, on one output.

    The numbers are those of the input on which the witness stands worst, in the unit of the output. NaN where there is
    nothing to measure (the structures differ, the outputs are no numbers).

    Attributes:
        name: what was compared: the witness and, where the model has several, the output.
        max_abs: largest absolute error.
        peak: largest absolute value of the oracle's output.
        rms: root mean square error.
        noise_floor: largest absolute error that the original itself makes in its own precision.
        allowed: largest absolute error that passes.
        passed: whether both the largest and the mean error are allowed, and nothing else is wrong.
        rms_floor: root mean square error that the original itself makes.
        rms_allowed: largest root mean square error that passes.
        where: index of the element with the largest error.
        case: the input on which that happened, in words.
        detail: one sentence: what is wrong, or why it proves nothing; empty where all is well.
        stage: what a failure blames: ``"fold"``; ``"program"``, what torch.export made; ``"export"``, ``"optimizer"``
            or, under another runtime, ``"witness"``.
        compared_on: the batches and the sizes of the inputs that it ran on, in words.
        proves: False where the output is the same for every input, so that agreeing proves little, and where the
            witness could not be run here, which proves nothing.
        relaxed: what relaxed its limits, in order: ``"proven"``, ``"redrawn"``, ``"undecided"``, ``"own-export"``; see
            :mod:`bnfold.verify.relax`.
    """

    name: str
    max_abs: float
    peak: float
    rms: float
    noise_floor: float
    allowed: float
    passed: bool
    rms_floor: float = math.nan
    rms_allowed: float = math.nan
    where: tuple[int, ...] | None = None
    case: str = ""
    detail: str = ""
    stage: Stage = "fold"
    proves: bool = True
    compared_on: str = ""
    relaxed: tuple[str, ...] = ()

    @property
    def floors(self) -> float:
        """How many noise floors the error is, by the largest element or by the mean, whichever is more."""
        ratios = [
            error / floor if floor > 0 else (0.0 if error == 0 else math.inf)
            for error, floor in ((self.max_abs, self.noise_floor), (self.rms, self.rms_floor))
            if not math.isnan(error) and not math.isnan(floor)
        ]
        return max(ratios, default=math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; numbers that JSON lacks (NaN, infinity) are None."""
        return {
            "name": self.name,
            "max_abs": _json_number(self.max_abs),
            "peak": _json_number(self.peak),
            "rms": _json_number(self.rms),
            "noise_floor": _json_number(self.noise_floor),
            "allowed": _json_number(self.allowed),
            "passed": self.passed,
            "rms_floor": _json_number(self.rms_floor),
            "rms_allowed": _json_number(self.rms_allowed),
            "where": None if self.where is None else list(self.where),
            "case": self.case,
            "detail": self.detail,
            "proves": self.proves,
            "compared_on": self.compared_on,
            "relaxed": list(self.relaxed),
        }

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        if math.isnan(self.max_abs):
            return f"{verdict} {self.name}: {self.detail or 'equal'}"
        numbers = f"noise floor {self.noise_floor:.3g}, allowed {self.allowed:.3g}"
        line = f"{verdict} {self.name}: error {self.max_abs:.3g} ({numbers})"
        return f"{line}; {self.detail}" if self.detail else line


@dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
        verdict: ``"passed"``; ``"failed"``: the two compute different functions; ``"unverifiable"``: nothing can be
            said, and ``reason`` says why.
        comparisons: every comparison that was made.
        reason: one or two sentences for a verdict other than passed.
        blame: the stage that a failure points at: ``"fold"``, ``"program"``, ``"export"``, ``"optimizer"``,
            ``"witness"``; None if nothing failed.
        located: name of the first BatchNorm whose site differs, where that could be found.
        notes: further sentences for the user, about nothing that is wrong.
        cases: the inputs that were compared, in words.
        seconds: how long each part took; not in the data of the report, which is the same for the same seed.
    """

    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()
    reason: str = ""
    blame: Stage | None = None
    located: str | None = None
    notes: tuple[str, ...] = ()
    cases: tuple[str, ...] = field(default=())
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the two are shown to compute the same function."""
        return self.verdict == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"passed", "verdict", "reason", "blame", "located", "comparisons", "notes", "cases"}`` for JSON."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "reason": self.reason,
            "blame": self.blame,
            "located": self.located,
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "notes": list(self.notes),
            "cases": list(self.cases),
        }

    def __str__(self) -> str:
        heading = {"passed": "equivalent", "failed": "NOT equivalent", "unverifiable": "not verifiable"}[self.verdict]
        lines = [f"{heading}: {self.reason}" if self.reason else heading]
        lines += [f"  {comparison}" for comparison in self.comparisons]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
