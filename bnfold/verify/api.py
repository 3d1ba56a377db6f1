"""The verification itself: inputs, oracle, witnesses, verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bnfold.errors import RefusedFileError, UsageError, first_line
from bnfold.export import onnx_of
from bnfold.export.refusals import FixedBatch, fixed_batch
from bnfold.graph.batch_dimension import as_tuple
from bnfold.graph.mode import require_eval
from bnfold.graph.torch_versions import unguarded_module
from bnfold.verify.blame import UNFOLDED, OwnExport, blame_of_export, culprit
from bnfold.verify.declared import declared_axes, declared_batch, is_exported, program_refuses
from bnfold.verify.evaluate import cases_of, evaluate
from bnfold.verify.floor import Evaluated, NoiseFloor
from bnfold.verify.heap import give_back
from bnfold.verify.inputs import Batches, Case, has_other_batch
from bnfold.verify.original import Original, TorchOriginal
from bnfold.verify.reference import exact_arithmetic
from bnfold.verify.relax import Comparing, held, proven
from bnfold.verify.report import Comparison, Report
from bnfold.verify.runtime import NoKernelError, require_onnxruntime
from bnfold.verify.runtimes import compare_under
from bnfold.verify.verdict import verdict, with_reach
from bnfold.verify.weights import WEIGHTS, compare_weights
from bnfold.verify.witness import (
    ONNX_LIMITS,
    Witness,
    compare,
    of_algebra,
    of_onnx,
    of_program,
    of_reference,
    of_weights,
)
from bnfold.witness.registry import require

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from bnfold.export.axes import Axis

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
    axes: Sequence[Axis],
    progress: Progress | None,
    witnesses: Sequence[str] = (),
    program: ExportedProgram | None = None,
) -> Report:
    """See :func:`bnfold.verify.verify`."""
    require(witnesses)
    onnx = onnx if onnx is not False or not witnesses else True
    clock = _Clock(progress or (lambda _sentence, _done: None))
    example = as_tuple(example_inputs)
    if onnx is not False or _is_onnx(candidate) or _is_onnx(original):
        require_onnxruntime()
    for role, model in (("original", original), ("candidate", candidate)):
        _check(role, model)
    notes: list[str] = []
    axes = axes or declared_axes(candidate if _is_onnx(candidate) else onnx, example)
    with exact_arithmetic():
        measured = _original(original, example)
        notes += measured.notes
        evaluated: list[Evaluated] = []
        clock("the original and the oracle")

        def run(batches: Batches) -> str | None:
            cases = cases_of(example, inputs, seed=seed, thorough=thorough, batches=batches, axes=axes)
            return evaluate(measured, cases, evaluated, notes, lambda sentence, done: clock.say(sentence, 0.4 * done))

        batches = _batches(original, candidate, (onnx, program), example, notes)
        reason = _run_all(run, evaluated, example, batches)
        if reason is not None:
            return Report("unverifiable", reason=reason, notes=tuple(notes), seconds=clock.stopped())
        floors = NoiseFloor(evaluated, measured.moved, seed=seed)
        own_export = OwnExport(measured.module, example, ("batch", "size") if axes else ("batch",))
        comparisons: list[Comparison] = []
        skipped: set[str] = set()

        def compared(witness: Witness, first: bool) -> list[Comparison]:
            said = (notes, skipped) if first else ([], set())
            return list(compare(witness, evaluated, floors, *said))

        comparing = Comparing(compared, measured, own_export, evaluated, floors, notes, seed)
        others: list[Any] = []
        for done, witness in _witnesses(measured, candidate, example, onnx, program, folding, notes, clock, others):
            if isinstance(witness, Comparison):
                comparisons.append(witness)
                continue
            clock(witness.name, f"comparing: {witness.name}", done)
            comparisons += held(witness, comparing, proven=proven(comparisons))
            del witness  # a session of ONNX Runtime ends before the next begins
        if thorough and onnx is not False and own_export.under_runtime is not None:
            clock(UNFOLDED, f"comparing: {UNFOLDED}", 0.92)
            comparisons += _unfolded(own_export.under_runtime, evaluated, floors, notes)
        for name in dict.fromkeys(witnesses if others else ()):
            clock(name, f"comparing: {name}", 0.93)
            sides = others[0], (lambda: original if _is_onnx(original) else own_export.model)
            comparisons += compare_under(
                name,
                sides,
                measured.input_names,
                lambda: own_export.in_float64,
                evaluated,
                floors,
                notes,
                proven=proven(comparisons),
                thorough=thorough,
            )
        seen = [item for item in evaluated if item.case.name not in skipped]
        report = verdict(comparisons, seen, list(dict.fromkeys(notes)))
        if report.verdict == "failed":
            clock("the cause", "finding the cause", 0.95)
            report = _with_cause(report, measured, candidate, own_export, folding, evaluated, floors)
        elif report.passed and isinstance(measured, TorchOriginal):
            clock("reach", "looking whether every BatchNorm reaches the output", 0.95)
            report = with_reach(report, measured, folding, seen)
    clock.say("compared", 1.0)
    return replace(report, seconds=clock.stopped())


def _run_all(
    run: Callable[[Batches], str | None], evaluated: list[Evaluated], example: tuple[Any, ...], batches: Batches
) -> str | None:
    """Run the original on all cases; where it takes no other batch than the example's, on more of that."""
    reason = run(batches)
    if reason is None and not has_other_batch(example, [item.case for item in evaluated]):
        reason = run("own")
    if all(item.case.resized for item in evaluated):
        reason = reason or "None of the inputs could be used, which proves nothing."
    return reason


def _batches(
    original: Model, candidate: Model, exports: Sequence[Any], example: tuple[Any, ...], notes: list[str]
) -> Batches:
    """Return which batch sizes to draw, and note what fixes the batch of one of the models.

    Where an export of the candidate is of one batch, some of the cases have to be of that.
    """
    for role, model in (("original", original), ("candidate", candidate)):
        declared = declared_batch(model)
        folded = isinstance(model, nn.Module) and not is_exported(model)
        fixed = fixed_batch(model, example) if folded else None
        if declared is not None:
            fixed = FixedBatch(declared, f"the {role} is an export that declares it")
        if fixed is not None:
            notes.append(str(fixed))
            return "own"
    return "usual" if all(declared_batch(made) is None for made in exports) else "some"


class _Clock:
    """Says how far the verification is, keeps how long each part takes, and gives back the memory that it freed."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._part, self._begin = "", 0.0

    def say(self, sentence: str, done: float) -> None:
        """Say how much is done, from 0 to 1."""
        give_back()
        self._progress(sentence, done)

    def __call__(self, part: str, sentence: str = "", done: float = 0.0) -> None:
        """Begin a part, and say so."""
        self.stopped()
        self._part, self._begin = part, time.perf_counter()
        if sentence:
            self.say(sentence, done)

    def stopped(self) -> dict[str, float]:
        """End the part that runs, and return the seconds of each."""
        if self._part:
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + time.perf_counter() - self._begin
            self._part = ""
        return self._seconds


def _original(model: Model, example: tuple[Any, ...]) -> Original:
    if not _is_onnx(model):
        return TorchOriginal(_module(model))
    from bnfold.verify.onnx_original import OnnxOriginal

    return OnnxOriginal(Path(model) if isinstance(model, str) else model, example)


def _onnx_algebra(original: Original, folding: Any, clock: _Clock) -> Iterator[tuple[float, Witness]]:
    """Yield the witness of a plan applied to an ONNX original in float64, where that has such a form."""
    from bnfold.verify.onnx_original import OnnxOriginal, of_onnx_algebra

    if isinstance(original, OnnxOriginal) and original.has_float64:
        clock("float64 algebra", "applying the plan in float64", 0.4)
        yield 0.4, of_onnx_algebra(folding)


def _witnesses(
    original: Original,
    candidate: Model,
    example: tuple[Any, ...],
    onnx: Any,
    program: ExportedProgram | None,
    folding: Any,
    notes: list[str],
    clock: _Clock,
    exports: list[Any],
) -> Iterator[tuple[float, Witness | Comparison]]:
    """Yield the witnesses, each with how much is done when it begins; or at once why one could not be made.

    The ONNX model that ONNX Runtime was given, if any, is added to ``exports``.
    """
    proven = False
    if folding is not None and original.module is not None:
        clock("float64 algebra", "applying the plan in float64", 0.4)
        exact = folding.in_float64()[1]
        weights = None  # compared before anything runs, which may write into buffers
        if not _is_onnx(candidate):
            clock(WEIGHTS, f"comparing: {WEIGHTS}", 0.4)
            weights = compare_weights(original.module, exact, _module(candidate))
        yield 0.4, of_algebra(exact)
        del exact
        if weights is not None:
            proven = weights.passed
            yield 0.45, weights
    elif folding is not None:
        yield from _onnx_algebra(original, folding, clock)
    exported: Any = candidate
    if not _is_onnx(candidate):
        weights_alone, plain = of_weights(_module(candidate))
        if is_exported(candidate):
            refuses = partial(_refuses, candidate)
            weights_alone, plain = replace(weights_alone, refuses=refuses), replace(plain, refuses=refuses)
        if original.module is None:
            weights_alone = replace(weights_alone, exported=True)
            plain = replace(plain, exported=True, limits=ONNX_LIMITS)
        yield 0.5, replace(weights_alone, first_case_only=proven)
        yield 0.6, plain
        if program is not None:
            yield 0.65, of_program(program)
        if onnx is False:
            return
        exported = onnx
        if onnx is True:
            clock("export to ONNX", "exporting to ONNX", 0.7)
            made = onnx_of(candidate, example)
            exported = made.model
            notes += made.notes
    model = Path(exported) if isinstance(exported, str) else exported
    exports.append(model)
    clock("ONNX Runtime")
    try:
        yield 0.85, of_onnx(model, "off", original.input_names)
        yield 0.9, of_onnx(model, "full", original.input_names)
    except RefusedFileError as error:
        reference = of_reference(model, original.input_names) if isinstance(error, NoKernelError) else None
        if reference is not None:
            notes.append(f"{first_line(error, 300).rstrip('.')}. The file was computed in float64 instead.")
            yield 0.9, reference
            return
        nan, words = float("nan"), first_line(error, 300)
        lacks = isinstance(error, NoKernelError)  # says nothing about the fold, nor about the export
        yield (
            0.9,
            Comparison(
                "ONNX Runtime", nan, nan, nan, nan, nan, passed=False, detail=words, stage="export", proves=not lacks
            ),
        )


def _unfolded(own: Witness, evaluated: Sequence[Evaluated], floors: NoiseFloor, notes: list[str]) -> list[Comparison]:
    """Compare the original's own export; where that is wrong it tells of the exporter, not of the candidate."""
    made = list(compare(own, evaluated, floors, []))
    wrong = next((comparison for comparison in made if not comparison.passed), None)
    if wrong is None:
        return made
    notes.append(f"Exporting the original itself goes wrong: {wrong.detail}.")
    return []


def _with_cause(
    report: Report,
    original: Original,
    candidate: Model,
    own_export: OwnExport,
    folding: Any,
    evaluated: Sequence[Evaluated],
    floors: NoiseFloor,
) -> Report:
    """Return the report of a failure with what it points at."""
    failed = next(comparison for comparison in report.comparisons if not comparison.passed)
    if original.module is None or failed.stage == "witness":
        return report
    alone = _is_onnx(candidate)
    if failed.stage == "program":
        return replace(report, reason=f"{report.reason} The torch module agrees: torch.export is to blame.")
    if failed.stage == "fold":
        module = None if alone else _module(candidate)
        findings = culprit(failed, original.module, module, folding, evaluated)
    else:
        unfolded = own_export.under_runtime if failed.stage == "export" else None
        findings = blame_of_export(failed, unfolded, evaluated, floors, alone=alone)
    reason = f"{report.reason} {findings.sentence}".strip()
    comparisons = (*report.comparisons, *findings.comparisons)
    return replace(report, comparisons=comparisons, reason=reason, located=findings.located)


def _refuses(program: ExportedProgram, case: Case) -> str | None:
    return program_refuses(program, case.inputs)


def _is_program(model: Model) -> bool:
    return type(model).__name__ == "ExportedProgram"


def _is_onnx(model: Model) -> bool:
    return isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto"


def _module(model: nn.Module | ExportedProgram) -> nn.Module:
    return model if isinstance(model, nn.Module) else unguarded_module(model)


def _check(role: str, model: Model) -> None:
    if isinstance(model, nn.Module):
        require_eval(f"The {role} model", model)
    elif not _is_program(model) and not _is_onnx(model):
        raise UsageError(
            f"The {role} is a {type(model).__name__}, which is no model that can be compared.",
            fix="Give an nn.Module, an ExportedProgram, an onnx.ModelProto or the path of an .onnx file.",
        )
