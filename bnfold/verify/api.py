"""The verification itself: the oracle, the witnesses, the verdict.

witness      what it runs                                           what its failure blames
algebra      the plan applied in float64, to 1e-10 of the peak      the fold
weights      the candidate's own weights, computed in float64       the fold
torch        the candidate as it is                                 the fold
onnx         its export under ONNX Runtime, optimiser off           the exporter, or whoever failed before
onnx full    the same with every optimisation: what is deployed     ONNX Runtime's optimiser, or as before
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnfold.batch import as_tuple
from bnfold.errors import BnfoldError, TrainingModeError, UsageError
from bnfold.export import onnx_of
from bnfold.verify.compare import (
    ALGEBRA,
    Error,
    Limits,
    Reading,
    difference_of_values,
    floors_of,
    judge,
    measure,
)
from bnfold.verify.inputs import Case, given_case, other_size, seeded_cases
from bnfold.verify.outputs import Leaf, flatten, structure_difference
from bnfold.verify.reference import copied, copied_in_float64, everything_in_float64, exact_arithmetic, in_float64
from bnfold.verify.report import Comparison, Report
from bnfold.verify.runtime import OrtModel, require_onnxruntime

if TYPE_CHECKING:
    import onnx as onnx_package
    from torch.export import ExportedProgram

__all__ = ["Model", "Progress", "verify"]

Model = Any
"""An ``nn.Module``, an ``ExportedProgram``, an ``onnx.ModelProto``, or the path of an .onnx file."""
Progress = Callable[[str, float], None]

LIMITS = Limits(largest=8.0, mean=3.0)
LIMITS_OF_WEIGHTS = Limits(largest=4.0, mean=2.0)
LIMITS_OF_ONNX = Limits(largest=8.0, mean=4.0)


@dataclass(frozen=True)
class Evaluated:
    """One case with what the oracle and the original answered."""

    case: Case
    oracle: list[Leaf]
    original: list[Leaf]


@dataclass(frozen=True)
class Witness:
    """Something to compare with the oracle.

    Attributes:
        name: in the report.
        stage: what its failure blames.
        run: from a case's inputs to flat outputs.
        limits: in noise floors; None for the algebra, which is judged against the peak.
        of_onnx: whether its outputs are an export's: tensors only, in order, without names.
    """

    name: str
    stage: str
    run: Callable[[Case], list[Leaf]]
    limits: Limits | None
    of_onnx: bool = False
    keeps_dtype: bool = True


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
    if onnx is not False:
        require_onnxruntime()
    original, candidate = _loaded(original), _loaded(candidate)
    _check_eval("original", original)
    _check_eval("candidate", candidate)
    cases = [given_case("the example inputs", example)]
    cases += [given_case(f"given inputs {number}", values) for number, values in enumerate(inputs, 1)]
    cases += seeded_cases(example, seed=seed, thorough=thorough)
    resized = other_size(example, seed=seed)
    if resized is not None:
        cases.append(resized)
    notes: list[str] = []
    with exact_arithmetic():
        evaluated: list[Evaluated] = []
        reason = yield_evaluated(original, cases, evaluated, notes, say)
        if reason is not None:
            return Report("unverifiable", reason=reason, notes=tuple(notes))
        floors = _floors(evaluated)
        comparisons: list[Comparison] = []
        witnesses = list(_torch_witnesses(candidate, folding))
        for number, witness in enumerate(witnesses):
            say(f"comparing: {witness.name}", 0.4 + 0.3 * number / len(witnesses))
            comparisons += _compare(witness, evaluated, floors, notes)
        if not isinstance(candidate, OrtModelPair) and onnx is not False:
            say("exporting to ONNX", 0.7)
            proto: Any = onnx
            if onnx is True:
                exported = onnx_of(candidate, example)
                proto = exported.model
                notes += exported.notes
            for witness in _onnx_witnesses(OrtModelPair(proto)):
                say(f"comparing: {witness.name}", 0.9)
                comparisons += _compare(witness, evaluated, floors, notes)
    say("compared", 1.0)
    return _verdict(comparisons, evaluated, notes)


class OrtModelPair:
    """An ONNX model under ONNX Runtime with the optimiser off and at full."""

    def __init__(self, model: onnx_package.ModelProto | Path) -> None:
        self.off = OrtModel(model, "off")
        self.full = OrtModel(model, "full")


def yield_evaluated(
    original: Model, cases: Sequence[Case], evaluated: list[Evaluated], notes: list[str], say: Progress
) -> str | None:
    """Run the oracle and the original on every case; return why nothing can be verified, or None."""
    if isinstance(original, OrtModelPair):
        return "the original is an ONNX model, which has no float64 form to compare with"
    plain, exact = copied(_module(original)), copied_in_float64(_module(original))
    for number, case in enumerate(cases):
        say(f"running the original: {case.name}", 0.4 * number / len(cases))
        try:
            own = flatten(plain(*case.inputs))
        except Exception as error:
            if case.given:
                raise UsageError(
                    f"The original model does not run on {case.name}: {_one_line(error)}.",
                    fix="Give inputs of the shapes and dtypes that the model takes.",
                ) from error
            if not case.resized:
                notes.append(f"The original does not run on {case.name}: {_one_line(error)}")
            continue
        if not evaluated:
            again = flatten(plain(*case.inputs))
            if not _same(own, again):
                return "the original is not deterministic: two runs on the same inputs differ"
        if not case.given and not all(_finite(leaf) for leaf in own):
            notes.append(f"The original answers NaN or infinity on {case.name}; that input is left out.")
            continue
        try:
            with everything_in_float64():
                oracle = flatten(exact(*(in_float64(value) for value in case.inputs)))
        except Exception as error:
            return f"the original does not run in float64: {_one_line(error)}"
        evaluated.append(Evaluated(case, oracle, own))
    return None


def _torch_witnesses(candidate: Model, folding: Any) -> Iterator[Witness]:
    if folding is not None:
        _, exact = folding.in_float64()
        yield Witness("algebra", "fold", _in_float64(exact), None, keeps_dtype=False)
    if isinstance(candidate, OrtModelPair):
        yield from _onnx_witnesses(candidate)
        return
    module = _module(candidate)
    yield Witness("weights", "fold", _in_float64(copied_in_float64(module)), LIMITS_OF_WEIGHTS, keeps_dtype=False)
    plain = copied(module)
    yield Witness("torch", "fold", lambda case: flatten(plain(*case.inputs)), LIMITS)


def _onnx_witnesses(pair: OrtModelPair) -> Iterator[Witness]:
    for name, stage, model in (("onnx", "export", pair.off), ("onnx full", "optimizer", pair.full)):
        yield Witness(name, stage, _from_onnx(model), LIMITS_OF_ONNX, of_onnx=True)


def _in_float64(module: nn.Module) -> Callable[[Case], list[Leaf]]:
    def run(case: Case) -> list[Leaf]:
        with everything_in_float64():
            return flatten(module(*(in_float64(value) for value in case.inputs)))

    return run


def _from_onnx(model: OrtModel) -> Callable[[Case], list[Leaf]]:
    def run(case: Case) -> list[Leaf]:
        outputs = model(*case.inputs)
        return [Leaf(name, value) for name, value in zip(model.output_names, outputs, strict=True)]

    return run


def _compare(
    witness: Witness, evaluated: Sequence[Evaluated], floors: list[list[tuple[float, float]]], notes: list[str]
) -> Iterator[Comparison]:
    readings: dict[int, list[Reading]] = {}
    names: dict[int, str] = {}
    for number, item in enumerate(evaluated):
        if witness.of_onnx and item.case.resized:
            continue
        try:
            answer = witness.run(item.case)
        except Exception as error:
            if item.case.resized:
                notes.append(f"The candidate does not take another size than the example's ({item.case.name}).")
                continue
            yield _failed(witness, item.case, f"it does not run on {item.case.name}: {_one_line(error)}")
            return
        expected = [leaf for leaf in item.original if leaf.is_tensor] if witness.of_onnx else item.original
        if witness.of_onnx:
            answer = (
                [Leaf(left.name, right.value) for left, right in zip(expected, answer, strict=False)]
                if len(expected) == len(answer)
                else answer
            )
        if [leaf.name for leaf in expected] != [leaf.name for leaf in answer]:
            yield _failed(witness, item.case, structure_difference(expected, answer) or "")
            return
        kept = [position for position, leaf in enumerate(item.original) if leaf in expected]
        for position, left, right in zip(kept, expected, answer, strict=True):
            names[position] = left.name
            told = left if witness.keeps_dtype else Leaf(left.name, item.oracle[position].value)
            difference = difference_of_values(told, right)
            if difference is not None:
                yield _failed(witness, item.case, f"{difference} ({item.case.name})")
                return
            if not left.is_tensor:
                continue
            distance = measure(item.oracle[position].value, right.value)
            floor, mean_floor = floors[number][position]
            readings.setdefault(position, []).append(Reading(item.case.name, distance, floor, mean_floor))
    several = len(names) > 1
    for position, found in readings.items():
        name = f"{witness.name}: {names[position]}" if several else witness.name
        if witness.limits is None:
            judged = [Reading(r.case, r.error, ALGEBRA * r.error.peak, ALGEBRA * r.error.peak) for r in found]
        else:
            judged = found
        yield judge(name, judged, witness.limits or Limits(1.0, 1.0), stage=witness.stage)


def _floors(evaluated: Sequence[Evaluated]) -> list[list[tuple[float, float]]]:
    """Return ``(floor, rms floor)`` for every case and every output."""
    table: list[list[tuple[float, float]]] = [[] for _ in evaluated]
    for position in range(len(evaluated[0].original)) if evaluated else ():
        errors: list[Error] = []
        ulp = 0.0
        for item in evaluated:
            own, exact = item.original[position], item.oracle[position]
            if own.is_tensor and exact.is_tensor and own.value.shape == exact.value.shape:
                errors.append(measure(exact.value, own.value))
                if own.value.is_floating_point():
                    ulp = torch.finfo(own.value.dtype).eps
            else:
                errors.append(Error(0.0, 0.0, 0.0, 0, None))
        for row, pair in zip(table, floors_of(errors, ulp), strict=True):
            row.append(pair)
    return table


def _verdict(comparisons: Sequence[Comparison], evaluated: Sequence[Evaluated], notes: Sequence[str]) -> Report:
    cases = tuple(item.case.name for item in evaluated)
    failed = [comparison for comparison in comparisons if not comparison.passed]
    if failed:
        first = failed[0]
        return Report(
            "failed",
            tuple(comparisons),
            reason=f"{first.name}: {first.detail}.",
            blame=first.stage,
            notes=tuple(notes),
            cases=cases,
        )
    empty = _proves_nothing(evaluated)
    if empty is not None:
        return Report("unverifiable", tuple(comparisons), reason=empty, notes=tuple(notes), cases=cases)
    return Report("passed", tuple(comparisons), notes=tuple(notes), cases=cases)


def _proves_nothing(evaluated: Sequence[Evaluated]) -> str | None:
    """Return why the comparisons could not have failed, or None if they could."""
    if not evaluated:
        return "the original gives finite numbers on none of the inputs, which proves nothing"
    values = [leaf.value for item in evaluated for leaf in item.oracle if leaf.is_tensor and leaf.value.numel() > 0]
    if not values:
        return "the outputs hold no numbers, which proves nothing"
    if all(bool((value == value.flatten()[0]).all()) for value in values):
        return "the outputs are constant on every input, which proves nothing"
    return None


def _failed(witness: Witness, case: Case, detail: str) -> Comparison:
    nan = float("nan")
    return Comparison(
        witness.name, nan, nan, nan, nan, nan, passed=False, case=case.name, detail=detail, stage=witness.stage
    )


def _same(left: list[Leaf], right: list[Leaf]) -> bool:
    """Return whether two runs gave the same answer, up to what an unordered sum on a GPU may change."""
    if structure_difference(left, right) is not None:
        return False
    for one, other in zip(left, right, strict=True):
        if one.is_tensor and one.value.is_floating_point():
            error = measure(one.value, other.value)
            if error.largest > 1000 * torch.finfo(one.value.dtype).eps * error.peak:
                return False
        elif one.is_tensor and not torch.equal(one.value, other.value):
            return False
    return True


def _finite(leaf: Leaf) -> bool:
    return not isinstance(leaf.value, Tensor) or bool(torch.isfinite(leaf.value).all())


def _loaded(model: Model) -> Any:
    """Return a module, a program or an ONNX pair for whatever the caller gave."""
    if isinstance(model, nn.Module) or type(model).__name__ == "ExportedProgram":
        return model
    if isinstance(model, (str, Path)):
        return OrtModelPair(Path(model))
    if type(model).__name__ == "ModelProto":
        return OrtModelPair(model)
    raise UsageError(
        f"A {type(model).__name__} is no model that can be compared.",
        fix="Pass an nn.Module, an ExportedProgram, an onnx.ModelProto or the path of an .onnx file.",
    )


def _module(model: nn.Module | ExportedProgram) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.module(check_guards=False)


def _check_eval(role: str, model: Any) -> None:
    if isinstance(model, nn.Module) and (model.training or any(_needs_eval(part) for part in model.modules())):
        raise TrainingModeError(
            f"The {role} model ({type(model).__name__}) is in training mode.", fix="Call .eval() on it first."
        )


def _needs_eval(part: nn.Module) -> bool:
    """Return whether the part's mode matters and it is in training mode."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return part.training and isinstance(part, kinds)


def _one_line(error: BaseException) -> str:
    if isinstance(error, BnfoldError):
        return error.what
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
