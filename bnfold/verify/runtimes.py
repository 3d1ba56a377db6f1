"""Other runtimes than ONNX Runtime, compared with the oracle as it is.

What is far from the oracle under a runtime may be the runtime's own doing. So the original's own export, folded by
nobody, runs under the same one: where it rounds more than torch that is allowed for, and where it is as far off itself
the comparison proves nothing of the fold. A runtime that gives no outputs proves nothing either; it says why.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bnfold.capture.nests import Leaf
from bnfold.errors import BnfoldError, WitnessError, first_line
from bnfold.verify.floor import Evaluated, NoiseFloor
from bnfold.verify.inputs import Case
from bnfold.verify.relax import allow_for_export, once_proven
from bnfold.verify.report import Comparison
from bnfold.verify.runtime import OrtModel
from bnfold.verify.witness import ONNX_LIMITS, Witness, compare
from bnfold.witness.session import SECONDS, Session, as_file

__all__ = ["compare_under"]


def compare_under(
    runtime: str,
    exports: tuple[Any, Callable[[], Any]],
    names: Sequence[str],
    exactly: Callable[[], Witness | None],
    evaluated: Sequence[Evaluated],
    floors: NoiseFloor,
    notes: list[str],
    *,
    proven: bool,
    thorough: bool = False,
    seconds: float = SECONDS,
) -> list[Comparison]:
    """Return the comparisons of an ONNX model under a runtime.

    Args:
        runtime: name of the witness.
        exports: the candidate's, a ``ModelProto`` or a path; and what returns the original's own, folded by nobody, or
            None where there is none.
        names: of the original's inputs, for matching by name.
        exactly: returns the witness that computes the original's own in float64; None where it cannot be had.
        evaluated: the cases.
        floors: their noise floors; not changed.
        notes: sentences for the user are added here.
        proven: whether the fold's algebra and its weights have been proven.
        thorough: whether to compare the original's own export even where nothing fails.
        seconds: how long the runtime may take to load, and for each answer.
    """
    apart = floors.apart()
    with ExitStack() as stack:
        try:
            witness = _witness(runtime, exports[0], names, seconds, stack)
        except BnfoldError as error:
            return [_not_run(runtime, first_line(error, 300))]
        if proven:
            witness = once_proven(witness)
        made = _ran(witness, evaluated, apart, notes)
        if all(comparison.passed for comparison in made) and not thorough:
            return made
        unfolded, export = None, exports[1]()
        with contextlib.suppress(BnfoldError):
            unfolded = None if export is None else _witness(runtime, export, (), seconds, stack)
        if unfolded is None:
            return made
        unfolded = replace(unfolded, name=f"the original's own export under {runtime}")
        if not all(comparison.passed for comparison in made):
            made = _allowing(witness, made, unfolded, exactly(), evaluated, apart, notes)
        beside = list(compare(unfolded, evaluated, apart, []))
        if not all(comparison.passed for comparison in beside):  # of the runtime, and nothing of the candidate
            beside = []
            made = [_in_doubt(comparison, runtime) for comparison in made]
        return made + (beside if thorough else [])


def _witness(runtime: str, model: Any, names: Sequence[str], seconds: float, stack: ExitStack) -> Witness:
    path: Path = stack.enter_context(as_file(model))
    declared = OrtModel(path, "off", threads=1)  # says what the file takes, and in which order
    session = Session(runtime, path, seconds=seconds)
    stack.callback(session.close)

    def run(case: Case) -> list[Leaf]:
        outputs = session(declared.feed(case.inputs, names))
        return [Leaf(name, torch.as_tensor(value)) for name, value in zip(declared.output_names, outputs, strict=True)]

    return Witness(
        runtime,
        "witness",
        run,
        ONNX_LIMITS,
        exported=True,
        refuses=lambda case: declared.refuses(case.inputs, names),
        under=f" under {runtime}",
    )


def _ran(witness: Witness, evaluated: Sequence[Evaluated], floors: NoiseFloor, notes: list[str]) -> list[Comparison]:
    """Compare; a runtime that fails while it runs has proven nothing."""
    failure: list[WitnessError] = []

    def run(case: Case) -> list[Leaf]:
        try:
            return witness.run(case)
        except WitnessError as error:
            failure.append(error)
            raise

    made = list(compare(replace(witness, run=run), evaluated, floors, notes))
    return [_not_run(witness.name, first_line(failure[0], 300))] if failure else made


def _allowing(
    witness: Witness,
    first: list[Comparison],
    unfolded: Witness,
    exactly: Witness | None,
    evaluated: Sequence[Evaluated],
    floors: NoiseFloor,
    notes: list[str],
) -> list[Comparison]:
    """Compare once more, with floors that know how the runtime rounds the original itself."""
    if exactly is None or not all(math.isfinite(comparison.max_abs) for comparison in first):
        return first
    raised = allow_for_export(unfolded, exactly, evaluated, floors)
    if not raised:
        return first
    notes.append(
        f"{witness.name} rounds more than torch on {', '.join(raised)}: the original's own export, folded by nobody, "
        "is as far off there, and what it makes is allowed for."
    )
    return _ran(witness, evaluated, floors, [])


def _in_doubt(comparison: Comparison, runtime: str) -> Comparison:
    if comparison.passed:
        return comparison
    words = f"{comparison.detail}; the original's own export, folded by nobody, fails under {runtime} as well"
    return replace(comparison, detail=words, proves=False)


def _not_run(runtime: str, why: str) -> Comparison:
    nan = math.nan
    return Comparison(runtime, nan, nan, nan, nan, nan, passed=False, detail=why, stage="witness", proves=False)
