"""The cases, and what the oracle and the original answer on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from bnfold.capture.nests import Leaf, structure_difference
from bnfold.errors import UsageError, first_line
from bnfold.verify.compare import measure
from bnfold.verify.floor import Evaluated
from bnfold.verify.inputs import Batches, Case, given_case, other_size, seeded_cases
from bnfold.verify.original import Original

if TYPE_CHECKING:
    from bnfold.export.axes import Axis

__all__ = ["cases_of", "evaluate"]


def cases_of(
    example: tuple[Any, ...],
    inputs: Sequence[Any],
    *,
    seed: int,
    thorough: bool,
    batches: Batches = "usual",
    axes: Sequence[Axis] = (),
) -> list[Case]:
    """Return the example inputs, the user's own, seeded ones of several kinds, and some of another spatial size."""
    cases = [given_case("the example inputs", example)]
    cases += [given_case(f"given inputs {number}", values) for number, values in enumerate(inputs, 1)]
    cases += seeded_cases(example, seed=seed, thorough=thorough, batches=batches)
    resized = other_size(example, seed=seed, batches=batches, axes=axes)
    return cases if resized is None else [*cases, resized]


def evaluate(
    original: Original,
    cases: Sequence[Case],
    evaluated: list[Evaluated],
    notes: list[str],
    say: Callable[[str, float], None],
) -> str | None:
    """Run the oracle and the original on every case; return why nothing can be verified, or None.

    Args:
        original: the original and its oracle.
        cases: the inputs; those evaluated already are passed over.
        evaluated: what they answered is added here, but for cases that the original does not take.
        notes: sentences for the user are added here.
        say: called with a sentence and how much is done, 0 to 1.

    Raises:
        UsageError: the original does not run on the user's own inputs.
    """
    known = {item.case.name for item in evaluated}
    for number, case in enumerate(cases):
        if case.name in known:
            continue
        say(f"running the original: {case.name}", number / len(cases))
        try:
            own = original.run(case.inputs)
        except Exception as error:
            if case.given:
                raise UsageError(
                    f"The original model does not run on {case.name}: {first_line(error, 300)}.",
                    fix="Give inputs of the shapes and dtypes that the model takes.",
                ) from error
            if not case.resized:
                notes.append(f"The original does not run on {case.name}, which is left out: {first_line(error, 300)}.")
            continue
        if not evaluated and not _same(own, original.run(case.inputs), original.eps):
            return "The original is not deterministic: two runs on the same inputs differ."
        if not case.given and not all(_finite(leaf) for leaf in own):
            notes.append(f"The original answers NaN or infinity on {case.name}, which is left out.")
            continue
        if case.given and not any(_holds_a_number(leaf) for leaf in own):
            return f"The original answers nothing but NaN or infinity on {case.name}: there is nothing to compare."
        try:
            oracle = original.exact(case.inputs)
        except Exception as error:
            problem = f"The original does not run in float64: {first_line(error, 300)}"
            if not case.resized:
                return f"{problem}."
            notes.append(f"{problem}, on {case.name}, which is left out.")  # a size too small for a pool, say
            continue
        difference = _oracle_difference(own, oracle)
        if difference is not None and case.given:
            return f"The original answers otherwise in float64: {difference}."
        if difference is not None:
            notes.append(f"The original answers otherwise in float64 on {case.name}, which is left out: {difference}.")
            continue
        item = Evaluated.of(case, oracle, own, original.eps)
        notes += [
            f"On {case.name} the original's own rounding moves {own[position].name} by {jump:.2g} of its peak; "
            "that output is not compared there."
            for position, jump in item.jumps.items()
        ]
        evaluated.append(item)
    return None


def _holds_a_number(leaf: Leaf) -> bool:
    """Whether something of an output can be compared: one finite number, or what is no floating tensor."""
    value = leaf.value
    return not leaf.is_tensor or not value.dtype.is_floating_point or not value.numel() or bool(value.isfinite().any())


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


def _same(left: list[Leaf], right: list[Leaf], eps: float) -> bool:
    """Return whether two runs gave the same answer, up to what an unordered sum on a GPU may change."""
    if [leaf.name for leaf in left] != [leaf.name for leaf in right]:
        return False
    for one, other in zip(left, right, strict=True):
        if one.is_tensor and other.is_tensor and one.value.is_floating_point() and one.value.shape == other.value.shape:
            error = measure(one.value, other.value)
            if error.largest > 1000 * max(eps, torch.finfo(one.dtype).eps) * error.peak:
                return False
        elif structure_difference([one], [other]) is not None or (
            one.is_tensor and not torch.equal(one.value, other.value)
        ):
            return False
    return True


def _finite(leaf: Leaf) -> bool:
    return not leaf.is_tensor or bool(torch.isfinite(leaf.value).all())
