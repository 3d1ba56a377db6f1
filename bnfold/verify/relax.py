"""What relaxes a limit: all of it, in the order in which it is tried. Each comparison records what was.

    proven       the algebra and the weights have passed, so only rounding is left    the limits are doubled
    redrawn      an error stands above its limit, by less than a million floors       the floor is measured again
    undecided    the algebra fails where the oracle hangs on the last bit of float64  those outputs are not compared
    own-export   an export fails, and so does the original's own, by rounding alone   the floor is raised to that

Nothing here can make a wrong fold pass that the algebra or the weights show to be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bnfold.verify.compare import Error, Floor, Limits, Reading, beyond_rounding, measure
from bnfold.verify.floor import Evaluated, NoiseFloor
from bnfold.verify.original import Original, TorchOriginal
from bnfold.verify.report import Comparison
from bnfold.verify.steadiness import mark_unsteady
from bnfold.verify.weights import WEIGHTS

if TYPE_CHECKING:
    from bnfold.verify.blame import OwnExport
    from bnfold.verify.witness import Witness

__all__ = ["Comparing", "allow_for_export", "held", "once_proven", "proven", "redraw"]

PROVEN = 2.0  # times the limits
HOPELESS = 1e6  # noise floors beyond which measuring the floor again cannot change the verdict
MISTAKE = 4096  # units in the last place of the peak: an export further off is not rounded, but wrongly computed
SHARE = 0.4  # of the own export's error: with the limit of 5 floors, twice that error is allowed


@dataclass(frozen=True)
class Comparing:
    """What it takes to compare a witness, and to compare it again.

    Attributes:
        compare: compares a witness; the notes that it makes are kept where the second argument says so.
        original: the original.
        own_export: the original's own export, folded by nobody.
        evaluated: what the oracle and the original answered.
        floors: the noise floors.
        notes: sentences for the user.
        seed: of the draws.
    """

    compare: Callable[[Witness, bool], list[Comparison]]
    original: Original
    own_export: OwnExport
    evaluated: list[Evaluated]
    floors: NoiseFloor
    notes: list[str]
    seed: int


def held(witness: Witness, comparing: Comparing, *, proven: bool) -> list[Comparison]:
    """Compare a witness with the oracle, with its limits relaxed where there is cause."""
    proven = proven and witness.limits is not None
    witness = once_proven(witness) if proven else witness
    made = comparing.compare(witness, True)
    if witness.limits is None and not _all_pass(made) and _mark_undecided(witness, comparing):
        made = [replace(one, relaxed=("undecided",)) for one in comparing.compare(witness, False)]
    if witness.exported and not _all_pass(made) and _allow_for_own_export(made, comparing):
        made = comparing.compare(witness, False)
    return [replace(one, relaxed=("proven", *one.relaxed)) for one in made] if proven else made


def proven(comparisons: Sequence[Comparison]) -> bool:
    """Return whether the fold's algebra and the weights that came of it have been compared and are right."""
    return any(c.name == WEIGHTS for c in comparisons) and _all_pass(comparisons)


def once_proven(witness: Witness) -> Witness:
    """Return the witness with the wider limits for a candidate whose algebra and weights have been proven."""
    if witness.limits is None:
        return witness
    return replace(witness, limits=Limits(witness.limits.largest * PROVEN, witness.limits.mean * PROVEN))


def redraw(readings: Mapping[int, Reading], limits: Limits, floors: NoiseFloor) -> None:
    """Measure the floors again, in place, of the cases on which an error stands above its limit.

    Some networks amplify a single rounding, and then the ratio of two errors has no meaning.

    Args:
        readings: of one output, by the number of the case.
        limits: in floors.
        floors: of all cases.
    """
    strains = {number: reading.strain(limits) for number, reading in readings.items()}
    if all(strain < HOPELESS for strain in strains.values()):
        floors.redraw([number for number, strain in strains.items() if strain > 1])


def _mark_undecided(witness: Witness, comparing: Comparing) -> bool:
    """Mark the outputs that hang on the last bit of float64 in the original itself; return whether there are any."""
    if not isinstance(comparing.original, TorchOriginal):
        return False
    found = mark_unsteady(comparing.original, witness.run, comparing.evaluated, seed=comparing.seed)
    comparing.notes.extend(found)
    return bool(found)


def _allow_for_own_export(made: Sequence[Comparison], comparing: Comparing) -> bool:
    """Raise the floors to how ONNX Runtime rounds the original itself; return whether that is more anywhere."""
    if not all(math.isfinite(comparison.max_abs) for comparison in made):
        return False
    own, exactly = comparing.own_export.under_runtime, comparing.own_export.in_float64
    if own is None or exactly is None:
        return False
    raised = allow_for_export(own, exactly, comparing.evaluated, comparing.floors)
    if raised:
        comparing.notes.append(
            f"ONNX Runtime rounds more than torch on {', '.join(raised)}: the export of the unfolded original is as "
            "far off there, so twice its error is allowed."
        )
    return bool(raised)


def allow_for_export(own: Witness, exactly: Witness, evaluated: Sequence[Evaluated], floors: NoiseFloor) -> list[str]:
    """Raise the floors to the rounding that ONNX Runtime makes in the original; return the cases where that is more.

    ONNX Runtime adds up in another order than torch, and where a sum has tens of thousands of terms (the mean of a
    large map) that alone may be hundreds of torch's floors.

    Args:
        own: the original's own export, folded by nobody, under ONNX Runtime.
        exactly: the same computed in float64. Where it disagrees with the oracle the export is wrong, which is no
            rounding, and nothing is allowed for.
        evaluated: the cases.
        floors: their noise floors.
    """
    raised = []
    for number, item in enumerate(evaluated):
        if own.refuses(item.case) is not None:
            continue
        try:
            rounded, exact = (witness.paired(item, witness.run(item.case)) for witness in (own, exactly))
        except Exception:
            continue  # says nothing of rounding
        if isinstance(rounded, str) or isinstance(exact, str):
            continue
        for (position, leaf), (_, wide) in zip(rounded, exact, strict=True):
            expected, oracle = item.original[position], item.oracle[position].value
            if position in item.jumps or beyond_rounding(expected, leaf) or not expected.value.is_floating_point():
                continue
            right = measure(oracle, wide.value)
            constants = item.unit(position) * right.peak  # the exporter computes some, and rounds
            if right.largest <= constants and _raised(floors, number, position, measure(oracle, leaf.value), item):
                raised.append(item.case.name)
    return list(dict.fromkeys(raised))


def _raised(floors: NoiseFloor, number: int, position: int, error: Error, item: Evaluated) -> bool:
    if error.counted or error.largest > MISTAKE * item.unit(position) * error.peak:
        return False
    return floors.raise_to(number, position, Floor(SHARE * error.largest, SHARE * error.mean), "own-export")


def _all_pass(comparisons: Sequence[Comparison]) -> bool:
    return all(comparison.passed for comparison in comparisons)
