"""What is compared with the oracle, and how one of them is.

    witness                              what it runs                                        its failure blames
    float64 algebra                      the plan applied to the original in float64         the fold
    weights against the plan             each weight, read (:mod:`bnfold.verify.weights`)    the fold
    rounded weights                      the candidate's weights, computed in float64        the fold
    torch                                the candidate as it is                              the fold
    torch.export                         the program that is written as .pt2                 torch.export
    ONNX Runtime, optimisations off      its export                                          the exporter
    ONNX Runtime, optimisations on       the same, as it is deployed                         ONNX Runtime's optimiser
    another runtime                      the same (:mod:`bnfold.verify.runtimes`)            that runtime

The first is held to 1e-10 of the peak, the others to multiples of the noise floor. Each stage builds on those before
it, so the first that fails is the one to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnfold.capture.nests import Leaf, nest_difference, plain_name
from bnfold.errors import OtherInputError, first_line
from bnfold.graph.torch_versions import unguarded_module
from bnfold.verify.compare import Error, Floor, Limits, Reading, beyond_rounding, judge, measure
from bnfold.verify.declared import program_refuses
from bnfold.verify.floor import ALGEBRA, Evaluated, NoiseFloor
from bnfold.verify.inputs import Case, sizes_in_words
from bnfold.verify.relax import redraw
from bnfold.verify.report import Comparison, Stage
from bnfold.verify.runtime import Optimisation, OrtModel, counted
from bnfold.verify.twins import Twins, running_as_it_is, running_in_float64

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = [
    "ONNX_LIMITS",
    "Witness",
    "compare",
    "of_algebra",
    "of_onnx",
    "of_program",
    "of_reference",
    "of_weights",
]

# Right folds of 2,000 random networks stood at 1.0 floors (median), 2.2 (99 %) and 3.4 (the largest); of 1,010 wrong
# folds the least wrong, an eps of 1e-5 in the wrong place, at 4.9. docs/verification.md shows both distributions.
TORCH_LIMITS = Limits(largest=4.0, mean=3.0)
ONNX_LIMITS = Limits(largest=5.0, mean=4.0)  # other kernels, which sum in another order


@dataclass(frozen=True)
class Witness:
    """Something to compare with the oracle.

    Attributes:
        name: in the report.
        stage: what its failure blames.
        run: from a case to the flat outputs.
        limits: in noise floors; None for the algebra, which is judged against the peak.
        in_float64: whether it computes in float64, so that dtypes are those of the oracle.
        exported: whether its outputs are an export's: tensors only, in order, under other names.
        first_case_only: whether one case is enough, since something else has proven the same.
        refuses: why it does not take a case, by what it declares (a fixed batch size), or None. One that takes the
            example inputs is compared on what else it takes.
        under: where an export of the candidate runs, as it ends a sentence; empty for the candidate itself.
    """

    name: str
    stage: Stage
    run: Callable[[Case], list[Leaf]]
    limits: Limits | None
    in_float64: bool = False
    exported: bool = False
    first_case_only: bool = False
    refuses: Callable[[Case], str | None] = lambda _case: None
    under: str = ""

    @property
    def declares(self) -> bool:
        """Whether it says which sizes it takes, so that it has to run at these, and at no others."""
        return self.exported or bool(self.under)

    def paired(self, item: Evaluated, answer: list[Leaf]) -> list[tuple[int, Leaf]] | str:
        """Return each of the answer's leaves with the position of the original's that it stands for, or what is wrong.

        An export's outputs are matched by name where the names are the same, in whatever order, and else by position.
        """
        expected = item.original
        if not self.exported:
            return nest_difference(expected, answer) or list(enumerate(answer))
        answer = [leaf for leaf in answer if leaf.is_tensor]
        positions = [position for position, leaf in enumerate(expected) if leaf.is_tensor]
        if len(positions) != len(answer):
            return f"it has {counted(len(answer), 'output')}, and the original {counted(len(positions), 'tensor')}"
        known = {plain_name(leaf.name): leaf for leaf in answer}
        wanted = [plain_name(expected[position].name) for position in positions]
        by_name = len(known) == len(answer) and known.keys() == set(wanted)
        ordered = [known[name] for name in wanted] if by_name else answer
        return [
            (p, Leaf(expected[p].name, _joined(expected[p].value, leaf.value)))
            for p, leaf in zip(positions, ordered, strict=True)
        ]


def of_algebra(exact: nn.Module) -> Witness:
    """Return the witness of a plan applied in float64."""
    run = running_in_float64(exact)
    return Witness("float64 algebra", "fold", lambda case: run(case.inputs), None, in_float64=True)


def of_weights(module: nn.Module) -> tuple[Witness, Witness]:
    """Return the witness that has the module's weights and no other rounding, and that of the module as it is.

    The first is to be run before the second: see :class:`Twins`.
    """
    twins = Twins(module)
    return (
        Witness("rounded weights", "fold", lambda case: twins.exact(case.inputs), TORCH_LIMITS, in_float64=True),
        Witness("torch", "fold", lambda case: twins.run(case.inputs), TORCH_LIMITS),
    )


def of_program(program: ExportedProgram) -> Witness:
    """Return the witness of what torch.export made of the candidate."""
    run = running_as_it_is(unguarded_module(program))  # which may write into buffers: those of the program
    return Witness(
        "torch.export",
        "program",
        lambda case: run(case.inputs),
        TORCH_LIMITS,
        refuses=lambda case: program_refuses(program, case.inputs),
        under=" in the exported program",
    )


def of_onnx(model: Any, optimisation: Optimisation, names: Sequence[str] = ()) -> Witness:
    """Return the witness of an ONNX model (a ``ModelProto`` or a path) under ONNX Runtime.

    Args:
        model: the model.
        optimisation: of ONNX Runtime.
        names: of the original's inputs, for matching by name.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        RefusedFileError: ONNX Runtime does not take the model.
    """
    session = OrtModel(model, optimisation)

    def run(case: Case) -> list[Leaf]:
        outputs = session(*case.inputs, names=names)
        return [Leaf(name, value) for name, value in zip(session.output_names, outputs, strict=True)]

    words, stage = {"off": ("off", "export"), "full": ("on", "optimizer")}[optimisation]
    return Witness(
        f"ONNX Runtime, optimisations {words}",
        stage,  # type: ignore[arg-type]
        run,
        ONNX_LIMITS,
        exported=True,
        refuses=lambda case: session.refuses(case.inputs, names),
        under=" under ONNX Runtime",
    )


def of_reference(model: Any, names: Sequence[str] = ()) -> Witness | None:
    """Return the witness of an ONNX model computed in float64 by ONNX's reference implementation; None if it cannot be.

    For precisions that ONNX Runtime has no kernels for: the weights are those of the file, as they were rounded, and
    what is computed with them is right to float64.

    Args:
        model: the ``ModelProto``, or the path of its file.
        names: of the original's inputs; see :func:`of_onnx`.
    """
    from bnfold.onnx_graph.prepare import prepared
    from bnfold.verify.onnx_double import DoubleModel, in_double

    try:
        double = DoubleModel(in_double(prepared(model, freeze=False)))
    except Exception:  # an operator that the reference implementation lacks, or computes in float32
        return None

    def run(case: Case) -> list[Leaf]:
        return [Leaf(name, value) for name, value in double(case.inputs, names)]

    name, under = "ONNX, computed in float64", " in the ONNX file"
    return Witness(
        name, "export", run, ONNX_LIMITS, in_float64=True, exported=True, refuses=double.refuses, under=under
    )


def compare(
    witness: Witness,
    evaluated: Sequence[Evaluated],
    floors: NoiseFloor,
    notes: list[str],
    skipped: set[str] | None = None,
) -> Iterator[Comparison]:
    """Run a witness on every case and yield one comparison per output, or the one that says what is wrong.

    Args:
        witness: what to run.
        evaluated: the cases, with what the oracle and the original answered.
        floors: their noise floors; those of a case that stands out are measured again.
        notes: sentences for the user are added here.
        skipped: names of cases for which the candidate was not captured are added here.
    """
    errors: dict[int, list[tuple[int, Error]]] = {}
    names: dict[int, str] = {}
    for number, item in enumerate(evaluated):
        case = item.case
        if witness.first_case_only and number > 0:
            continue
        refusal = witness.refuses(case) if number > 0 and not case.given else None
        if refusal is not None and case.resized and witness.declares:
            continue  # of a fixed size, as its declaration says
        if refusal is not None:
            notes.append(f"Not compared on {case.name}{witness.under}: {refusal}.")
            continue
        try:
            answer = witness.run(case)
        except Exception as problem:
            if isinstance(problem, OtherInputError) and not case.given:
                notes.append(f"Not compared on {case.name}: {first_line(problem, 300)}.")
                if skipped is not None:
                    skipped.add(case.name)
                continue
            if case.resized and not witness.declares:
                notes.append(f"The candidate takes no other size than the example's: {first_line(problem, 300)}.")
                continue
            yield _failure(witness, case, f"it does not run on {case.name}: {first_line(problem, 300)}")
            return
        pairs = witness.paired(item, answer)
        if isinstance(pairs, str):
            yield _failure(witness, case, f"{pairs}, on {case.name}")
            return
        for position, leaf in pairs:
            expected = (item.oracle if witness.in_float64 else item.original)[position]
            if position in item.jumps and _differ_in_shape(expected, leaf):
                continue  # how many boxes a detector keeps may hang on rounding, too
            problem_found = beyond_rounding(expected, leaf)
            if problem_found is not None:
                yield _failure(witness, case, f"{problem_found}, on {case.name}")
                return
            names[position] = expected.name
            if expected.is_tensor and position not in item.jumps:
                errors.setdefault(position, []).append((number, measure(item.oracle[position].value, leaf.value)))
    for position, found in errors.items():
        name = f"{witness.name}: {names[position]}" if len(names) > 1 else witness.name
        judged = _judged(name, witness, [(evaluated[n].case.name, n, error) for n, error in found], floors, position)
        yield replace(judged, compared_on=sizes_in_words([evaluated[n].case.inputs for n, _ in found]))
    if names and not errors:
        nan = float("nan")
        yield Comparison(witness.name, nan, nan, nan, nan, nan, passed=True, detail="equal", stage=witness.stage)


def _differ_in_shape(one: Leaf, other: Leaf) -> bool:
    return one.is_tensor and other.is_tensor and one.value.shape != other.value.shape


def _judged(
    name: str, witness: Witness, found: list[tuple[str, int, Error]], floors: NoiseFloor, position: int
) -> Comparison:
    if witness.limits is None:
        exact = [Reading(case, error, _algebra_floor(error)) for case, _, error in found]
        return judge(name, exact, Limits(1.0, 1.0), stage=witness.stage)

    def readings() -> dict[int, Reading]:
        return {number: Reading(case, error, floors.of(number, position)) for case, number, error in found}

    redraw(readings(), witness.limits, floors)
    judged = judge(name, list(readings().values()), witness.limits, stage=witness.stage)
    worst = next(number for case, number, _ in found if case == judged.case)
    return replace(judged, relaxed=floors.causes(worst, position))


def _algebra_floor(error: Error) -> Floor:
    return Floor(0.0 if error.counted else ALGEBRA * error.peak, ALGEBRA * error.peak)


def _joined(expected: Tensor, value: Tensor) -> Tensor:
    """Return an export's output as complex where the original's is: exporters write the two parts last."""
    if not expected.is_complex() or value.shape != (*expected.shape, 2) or not value.is_floating_point():
        return value
    return torch.view_as_complex(value.contiguous())


def _failure(witness: Witness, case: Case, detail: str) -> Comparison:
    nan = float("nan")
    return Comparison(
        witness.name, nan, nan, nan, nan, nan, passed=False, case=case.name, detail=detail, stage=witness.stage
    )
