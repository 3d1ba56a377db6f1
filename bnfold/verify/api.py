"""The verification itself: inputs, oracle, witnesses, verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnfold.batch import as_tuple
from bnfold.errors import RefusedFileError, UsageError
from bnfold.export import onnx_of
from bnfold.mode import require_eval
from bnfold.verify.blame import blame_of_export, culprit, unfolded_export
from bnfold.verify.compare import measure
from bnfold.verify.exercise import unreached
from bnfold.verify.floor import ALGEBRA, Evaluated, NoiseFloor
from bnfold.verify.inputs import Case, given_case, other_size, seeded_cases
from bnfold.verify.locate import site_errors
from bnfold.verify.outputs import Leaf, flatten, structure_difference
from bnfold.verify.reference import (
    copied,
    copied_in_float64,
    everything_in_float64,
    exact_arithmetic,
    fresh,
    in_float64,
)
from bnfold.verify.report import Comparison, Report
from bnfold.verify.runtime import require_onnxruntime
from bnfold.verify.weights import WEIGHTS, compare_weights
from bnfold.verify.witness import Witness, compare, in_words, of_algebra, of_module, of_onnx, of_weights, once_proven

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Model", "Progress", "verify"]

Model = Any
"""An ``nn.Module``, an ``ExportedProgram``, an ``onnx.ModelProto``, or the path of an .onnx file."""

Progress = Callable[[str, float], None]
"""Called with a sentence and the fraction done."""


def verify(
    original: Model,
    candidate: Model,
    example_inputs: Any,
    *,
    onnx: Any,
    seed: int,
    folding: Any,
    inputs: Sequence[Any],
    thorough: bool,
    progress: Progress | None,
) -> Report:
    """See :func:`bnfold.verify.verify`."""
    say = progress or (lambda _sentence, _done: None)
    example = as_tuple(example_inputs)
    if onnx is not False or _is_onnx(candidate):
        require_onnxruntime()
    for role, model in (("original", original), ("candidate", candidate)):
        _check(role, model)
    notes: list[str] = []
    if _is_onnx(original):
        if _is_onnx(candidate):
            return Report("unverifiable", reason="Of two ONNX models neither has a float64 form to measure against.")
        original, candidate, folding = candidate, original, None
        notes.append("The original is an ONNX model: it is measured against the candidate, in float64, instead.")
    with exact_arithmetic():
        evaluated: list[Evaluated] = []
        cases = _cases(example, inputs, seed=seed, thorough=thorough)
        reason = _evaluate(_module(original), cases, evaluated, notes, say)
        if all(item.case.resized for item in evaluated):
            reason = reason or "None of the inputs could be used, which proves nothing."
        if reason is not None:
            return Report("unverifiable", reason=reason, notes=tuple(notes))
        floors = NoiseFloor(evaluated, lambda: copied(_module(original)), seed=seed)
        comparisons: list[Comparison] = []
        for done, witness in _witnesses(original, candidate, example, onnx, folding, notes, say):
            if isinstance(witness, Comparison):
                comparisons.append(witness)
                continue
            say(f"comparing: {witness.name}", done)
            held = once_proven(witness) if _proven(comparisons) else witness
            comparisons += compare(held, evaluated, floors, notes)
        report = _verdict(comparisons, evaluated, notes)
        if report.verdict == "failed":
            say("finding the cause", 0.95)
            report = _with_cause(report, original, candidate, example, folding, evaluated, floors)
        elif report.passed:
            report = _with_reach(report, original, folding, evaluated)
    say("compared", 1.0)
    return report


def _cases(example: tuple[Any, ...], inputs: Sequence[Any], *, seed: int, thorough: bool) -> list[Case]:
    cases = [given_case("the example inputs", example)]
    cases += [given_case(f"given inputs {number}", values) for number, values in enumerate(inputs, 1)]
    cases += seeded_cases(example, seed=seed, thorough=thorough)
    resized = other_size(example, seed=seed)
    return cases if resized is None else [*cases, resized]


def _evaluate(
    original: nn.Module, cases: Sequence[Case], evaluated: list[Evaluated], notes: list[str], say: Progress
) -> str | None:
    """Run the oracle and the original on every case; return why nothing can be verified, or None."""
    plain, exact = copied(original), copied_in_float64(original)
    for number, case in enumerate(cases):
        say(f"running the original: {case.name}", 0.4 * number / len(cases))
        try:
            own = flatten(plain(*fresh(case.inputs)))
        except Exception as error:
            if case.given:
                raise UsageError(
                    f"The original model does not run on {case.name}: {in_words(error)}.",
                    fix="Give inputs of the shapes and dtypes that the model takes.",
                ) from error
            if not case.resized:
                notes.append(f"The original does not run on {case.name}, which is left out: {in_words(error)}.")
            continue
        if not evaluated and not _same(own, flatten(plain(*fresh(case.inputs)))):
            return "The original is not deterministic: two runs on the same inputs differ."
        if not case.given and not all(_finite(leaf) for leaf in own):
            notes.append(f"The original answers NaN or infinity on {case.name}, which is left out.")
            continue
        try:
            with everything_in_float64():
                oracle = flatten(exact(*(in_float64(value) for value in fresh(case.inputs))))
        except Exception as error:
            return f"The original does not run in float64: {in_words(error)}."
        difference = _oracle_difference(own, oracle)
        if difference is not None:
            return f"The original answers otherwise in float64: {difference}."
        item = Evaluated.of(case, oracle, own)
        notes += [
            f"On {case.name} the original's own rounding moves {own[position].name} by {jump:.2g} of its peak; "
            "that output is not compared there."
            for position, jump in item.jumps.items()
        ]
        evaluated.append(item)
    return None


def _oracle_difference(own: list[Leaf], oracle: list[Leaf]) -> str | None:
    """Return why the oracle's answer is none for the original's, or None."""
    if [leaf.name for leaf in own] != [leaf.name for leaf in oracle]:
        return structure_difference(own, oracle)
    for left, right in zip(own, oracle, strict=True):
        if left.is_tensor != right.is_tensor:
            return f"{left.name} is a {type(right.value).__name__}"
        if left.is_tensor and left.value.shape != right.value.shape:
            return f"{left.name} has shape {tuple(right.value.shape)} instead of {tuple(left.value.shape)}"
    return None


def _witnesses(
    original: Model,
    candidate: Model,
    example: tuple[Any, ...],
    onnx: Any,
    folding: Any,
    notes: list[str],
    say: Progress,
) -> Iterator[tuple[float, Witness | Comparison]]:
    """Yield the witnesses, each with how much is done when it begins; or at once why one could not be made."""
    if folding is not None:
        exact = folding.in_float64()[1]
        yield 0.4, of_algebra(exact)
        if not _is_onnx(candidate):
            weights = compare_weights(_module(original), exact, _module(candidate))
            if weights is not None:
                yield 0.45, weights
    exported: Any = candidate
    if not _is_onnx(candidate):
        yield 0.5, of_weights(_module(candidate))
        yield 0.6, of_module(_module(candidate))
        if onnx is False:
            return
        exported = onnx
        if onnx is True:
            say("exporting to ONNX", 0.7)
            made = onnx_of(candidate, example)
            exported = made.model
            notes += made.notes
    model = Path(exported) if isinstance(exported, str) else exported
    try:
        yield 0.85, of_onnx(model, "off")
        yield 0.9, of_onnx(model, "full")
    except RefusedFileError as error:
        nan = float("nan")
        yield (
            0.9,
            Comparison("ONNX Runtime", nan, nan, nan, nan, nan, passed=False, detail=in_words(error), stage="export"),
        )


def _proven(comparisons: Sequence[Comparison]) -> bool:
    """Return whether the fold's algebra and the weights that came of it have been compared and are right."""
    return any(c.name == WEIGHTS for c in comparisons) and all(c.passed for c in comparisons)


def _verdict(comparisons: Sequence[Comparison], evaluated: Sequence[Evaluated], notes: Sequence[str]) -> Report:
    cases = tuple(item.case.name for item in evaluated)
    failed = [comparison for comparison in comparisons if not comparison.passed]
    if failed:
        first = failed[0]
        reason = f"{first.name}: {first.detail}."
        return Report("failed", tuple(comparisons), reason, blame=first.stage, notes=tuple(notes), cases=cases)
    empty = _proves_nothing(evaluated)
    if empty is not None:
        return Report("unverifiable", tuple(comparisons), empty, notes=tuple(notes), cases=cases)
    return Report("passed", tuple(comparisons), notes=tuple(notes), cases=cases)


def _with_cause(
    report: Report,
    original: Model,
    candidate: Model,
    example: tuple[Any, ...],
    folding: Any,
    evaluated: Sequence[Evaluated],
    floors: NoiseFloor,
) -> Report:
    """Return the report of a failure with what it points at."""
    failed = next(comparison for comparison in report.comparisons if not comparison.passed)
    if failed.stage == "fold" or _is_onnx(candidate):
        module = None if _is_onnx(candidate) else _module(candidate)
        findings = culprit(failed, _module(original), module, folding, evaluated)
    else:
        unfolded = unfolded_export(_module(original), example) if failed.stage == "export" else None
        findings = blame_of_export(failed, unfolded, evaluated, floors)
    reason = f"{report.reason} {findings.sentence}".strip()
    return replace(report, reason=reason, located=findings.located)


def _with_reach(report: Report, original: Model, folding: Any, evaluated: Sequence[Evaluated]) -> Report:
    """Return a passed report, or one that proves nothing, by whether the BatchNorms reach the output at all.

    One that does not is compared where it stands, if the plan is known; its weights have been compared already.
    """
    silent: list[str] = []
    fair = [item for item in evaluated if not item.case.resized]
    for number, item in enumerate(reversed(fair)):
        exact = copied_in_float64(_module(original))
        with everything_in_float64():
            names = unreached(exact, tuple(in_float64(value) for value in fresh(item.case.inputs)))
        silent = names if number == 0 else [name for name in silent if name in names]
        if not silent:
            return report
    known = any(comparison.name == WEIGHTS for comparison in report.comparisons)
    right = _right_at_their_sites(folding, fair[0].case) if known else set()
    unproved = [name for name in silent if name not in right]
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
            errors = site_errors(graph, exact, folding.plan, tuple(in_float64(value) for value in fresh(case.inputs)))
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
        [item.oracle[position].value for item in fair if position not in item.jumps]
        for position, leaf in enumerate(fair[0].oracle)
        if leaf.is_tensor and leaf.value.numel() > 0
    ]
    if not values:
        return "The outputs hold no numbers, which proves nothing."
    if not any(values):
        return "The original's own rounding moves its outputs beyond all proportion, so no comparison proves anything."
    if not any(_varies(found) for found in values if found):
        return "The outputs are the same for every input, which proves nothing."
    return None


def _varies(values: Sequence[Tensor]) -> bool:
    """Return whether an output depends on the input at all: whether its samples, over all inputs, are not all alike."""
    samples = [sample for value in values for sample in (value if value.ndim > 0 else value[None])]
    first = samples[0]
    return any(sample.shape == first.shape and not torch.equal(sample, first) for sample in samples[1:])


def _same(left: list[Leaf], right: list[Leaf]) -> bool:
    """Return whether two runs gave the same answer, up to what an unordered sum on a GPU may change."""
    if [leaf.name for leaf in left] != [leaf.name for leaf in right]:
        return False
    for one, other in zip(left, right, strict=True):
        if one.is_tensor and other.is_tensor and one.value.is_floating_point() and one.value.shape == other.value.shape:
            error = measure(one.value, other.value)
            if error.largest > 1000 * torch.finfo(one.value.dtype).eps * error.peak:
                return False
        elif structure_difference([one], [other]) is not None or (
            one.is_tensor and not torch.equal(one.value, other.value)
        ):
            return False
    return True


def _finite(leaf: Leaf) -> bool:
    return not leaf.is_tensor or bool(torch.isfinite(leaf.value).all())


def _is_program(model: Model) -> bool:
    return type(model).__name__ == "ExportedProgram"


def _is_onnx(model: Model) -> bool:
    return isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto"


def _module(model: nn.Module | ExportedProgram) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.module(check_guards=False)


def _check(role: str, model: Model) -> None:
    if isinstance(model, nn.Module):
        require_eval(f"The {role} model", model)
    elif not _is_program(model) and not _is_onnx(model):
        raise UsageError(
            f"The {role} is a {type(model).__name__}, which is no model that can be compared.",
            fix="Give an nn.Module, an ExportedProgram, an onnx.ModelProto or the path of an .onnx file.",
        )
