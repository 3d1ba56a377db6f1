"""What the comparisons come to: passed, failed, or nothing that could be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnfold.on_demand import RefusingWrites
from bnfold.verify.exercise import unreached
from bnfold.verify.floor import ALGEBRA, Evaluated
from bnfold.verify.inputs import Case
from bnfold.verify.locate import site_errors
from bnfold.verify.original import TorchOriginal
from bnfold.verify.reference import everything_in_float64, fresh, fresh_in_float64
from bnfold.verify.report import Comparison, Report
from bnfold.verify.weights import WEIGHTS

__all__ = ["verdict", "with_reach"]


def verdict(comparisons: Sequence[Comparison], evaluated: Sequence[Evaluated], notes: Sequence[str]) -> Report:
    """Return the report: what failed first is the reason."""
    cases = tuple(item.case.name for item in evaluated)
    failed = [comparison for comparison in comparisons if not comparison.passed]
    if _are_float8(evaluated):
        failed = [comparison for comparison in failed if comparison.stage == "fold"]  # ONNX Runtime gives them as bits
    if failed:
        first = failed[0]
        reason = f"{first.name}: {first.detail}."
        if not any(comparison.proves for comparison in failed):
            return Report("unverifiable", tuple(comparisons), reason, notes=tuple(notes), cases=cases)
        return Report("failed", tuple(comparisons), reason, blame=first.stage, notes=tuple(notes), cases=cases)
    empty = _proves_nothing(evaluated)
    if empty is not None:
        return Report("unverifiable", tuple(comparisons), empty, notes=tuple(notes), cases=cases)
    constant = _constant_outputs(evaluated)
    told = [f"{name} is the same for every input, so that comparing it proves little." for name in constant]
    marked = tuple(
        replace(comparison, proves=not any(comparison.name.endswith(f": {name}") for name in constant))
        for comparison in comparisons
    )
    return Report("passed", marked, notes=(*notes, *told), cases=cases)


def with_reach(report: Report, original: TorchOriginal, folding: Any, evaluated: Sequence[Evaluated]) -> Report:
    """Return a passed report, or one that proves nothing, by whether the BatchNorms reach the output at all.

    One that does not is compared where it stands, if the plan is known; its weights have been compared already.
    """
    silent: list[str] = []
    fair = [item for item in evaluated if not item.case.resized]
    for number, item in enumerate(reversed(fair)):
        with RefusingWrites():  # type: ignore[no-untyped-call]
            names = unreached(original.plain, fresh(item.case.inputs))  # half the memory of the oracle, and less time
        if names is None or names:  # a gradient may be too small for the model's own precision
            with everything_in_float64():
                names = unreached(original.in_float64, fresh_in_float64(item.case.inputs)) or []
        silent = names if number == 0 else [name for name in silent if name in names]
        if not silent:
            return report
    known = any(comparison.name == WEIGHTS for comparison in report.comparisons)
    right = _right_at_their_sites(folding, fair[0].case) if known else set()
    everything = known and right == {decision.batchnorm for decision in folding.plan}
    unproved = [] if everything else [name for name in silent if name not in right]
    if not unproved:
        note = f"{_listed(silent)} not reach the output on any input: compared where it stands, and by its weights."
        return replace(report, notes=(*report.notes, note))
    reason = f"{_listed(unproved)} not reach the output on any input, so its fold is not proved. Give real inputs."
    return replace(report, verdict="unverifiable", reason=reason)


def _right_at_their_sites(folding: Any, case: Case) -> set[str]:
    """Return the BatchNorms whose values at every one of their sites agree in float64."""
    graph, exact = folding.in_float64()
    with everything_in_float64():
        try:
            errors = site_errors(graph, exact, folding.plan, fresh_in_float64(case.inputs))
        except Exception:
            return set()  # a graph that cannot be run node by node proves nothing
    compared = {decision.site for decision, _ in errors}
    wrong = {decision.batchnorm for decision, error in errors if error > ALGEBRA}
    wrong |= {decision.batchnorm for decision in folding.plan if decision.site not in compared}
    return {decision.batchnorm for decision in folding.plan} - wrong


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{listed} {'does' if len(names) == 1 else 'do'}"


def _proves_nothing(evaluated: Sequence[Evaluated]) -> str | None:
    """Return why the comparisons could not have failed, or None if they could."""
    fair = [item for item in evaluated if not item.case.resized]
    values = [
        [item.oracle[position].value for item in _answering(fair, position) if position not in item.jumps]
        for position, leaf in enumerate(fair[0].oracle)
        if leaf.is_tensor and leaf.value.numel() > 0
    ]
    if not values:
        return "The outputs hold no numbers, which proves nothing."
    if not any(values):
        return "The original's own rounding moves its outputs beyond all proportion, so no comparison proves anything."
    if _are_float8(evaluated):
        return "The outputs are float8, too coarse to tell a wrong fold by. Compare the model without its last cast."
    if not any(_varies(found) for found in values if found):
        return "The outputs are the same for every input, which proves nothing."
    return None


def _are_float8(evaluated: Sequence[Evaluated]) -> bool:
    """Whether torch could not even subtract one output from another."""
    tensors = [leaf for leaf in evaluated[0].original if leaf.is_tensor]
    return bool(tensors) and all(leaf.held_as is not None for leaf in tensors)


def _constant_outputs(evaluated: Sequence[Evaluated]) -> list[str]:
    """Return the names of the floating outputs that do not depend on the input."""
    fair = [item for item in evaluated if not item.case.resized]
    return [
        leaf.name
        for position, leaf in enumerate(fair[0].oracle)
        if leaf.is_tensor
        and leaf.value.is_floating_point()
        and leaf.value.numel() > 0
        and not _varies([item.oracle[position].value for item in _answering(fair, position)])
    ]


def _answering(evaluated: Sequence[Evaluated], position: int) -> list[Evaluated]:
    """Return the cases on which there is a tensor at a position: an answer for each image of a list, say."""
    return [item for item in evaluated if position < len(item.oracle) and item.oracle[position].is_tensor]


def _varies(values: Sequence[Tensor]) -> bool:
    """Return whether an output depends on the input at all, by what several inputs made of it.

    Where they are of different batch sizes, the rows that both have are compared; of a single input, its own rows.
    """
    whole = [value if value.ndim > 0 else value[None] for value in values]
    if len(whole) == 1:
        return any(not torch.equal(row, whole[0][0]) for row in whole[0])
    first = whole[0]
    return any(
        first.shape[1:] != other.shape[1:] or not torch.equal(first[: len(other)], other[: len(first)])
        for other in whole[1:]
    )
