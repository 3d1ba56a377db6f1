"""Documents for tests, with names that try to break out of every format."""

from __future__ import annotations

from typing import Any

from bnfold.fold.decision import Decision
from bnfold.report.document import Document, OutputFile

NASTY = "bn\x1b[31m|<b>&\"'`*_[x](http://e.vil)\n::error::gone\r\u202e\u200b@someone##[error]\x00"


def decision(name: str = "bn1", action: str = "fold", **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "batchnorm": name,
        "action": action,
        "direction": "backward" if action == "fold" else None,
        "into": ("conv1",) if action == "fold" else (),
        "through": ("pool",) if action == "fold" else (),
        "reason": None if action == "fold" else "negative-scale",
        "detail": f"{name} folded into conv1 through pool."
        if action == "fold"
        else f"{name} became an explicit affine: 1 of 32 scales is negative.",
        "site": name,
        "because": "" if action == "fold" else "1 of 32 scales is negative",
    }
    return Decision(**(fields | changes))


def comparison(name: str = "torch", *, passed: bool = True, **changes: Any) -> dict[str, Any]:
    fields = {
        "name": name,
        "max_abs": 1.5e-7,
        "peak": 12.0,
        "rms": 1e-8,
        "noise_floor": 2.5e-7,
        "allowed": 1e-6,
        "passed": passed,
        "detail": "" if passed else "the error is 40 times what rounding makes",
    }
    return fields | changes


def document(**changes: Any) -> Document:
    fields: dict[str, Any] = {
        "command": "fold",
        "model": "model.pt",
        "inputs": ("2x1x28x28", "found"),
        "capture": "symbolic",
        "batchnorms": (decision(), decision("bn2", "affine")),
        "verification": {"passed": True, "verdict": "passed", "comparisons": [comparison()], "reason": ""},
        "counts": (
            {"macs": 2_500_000, "parameters": 64, "parameter_bytes": 300, "ops": {"convolution": 3, "batch_norm": 2}},
            {"macs": 1_250_000, "parameters": 32, "parameter_bytes": 128, "ops": {"convolution": 1}},
        ),
        "outputs": (OutputFile("model.folded.onnx", "ab" * 32, 254_000),),
    }
    return Document(**(fields | changes))


def failing() -> Document:
    return document(
        verification={
            "passed": False,
            "verdict": "failed",
            "reason": "torch: the error is 40 times what rounding makes.",
            "located": "bn1",
            "comparisons": [comparison("algebra"), comparison(passed=False)],
        },
        outputs=(),
        exit_code=1,
    )


def nasty() -> Document:
    """Return a document in which every string that could come from a model is hostile."""
    return document(
        model=NASTY,
        batchnorms=(
            decision(NASTY, into=(NASTY,), through=(NASTY,), detail=NASTY),
            decision(NASTY, "affine", detail=NASTY, site=NASTY, source=NASTY),
        ),
        verification={
            "passed": False,
            "verdict": "failed",
            "reason": NASTY,
            "located": NASTY,
            "comparisons": [comparison(NASTY, passed=False, detail=NASTY)],
        },
        outputs=(OutputFile(NASTY, "ab" * 32, 1),),
        notes=(NASTY,),
        exit_code=1,
    )
