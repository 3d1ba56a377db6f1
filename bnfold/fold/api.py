"""``bnfold.plan`` and ``bnfold.fold``: capture, plan, rewrite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from torch import nn

from bnfold.capture.ways import capture
from bnfold.errors import NotFiniteError
from bnfold.fold.counts import Counts, counts
from bnfold.fold.denormals import denormal_sentences, denormals_made, flush
from bnfold.fold.overflow import require_finite
from bnfold.fold.plan import Plan
from bnfold.fold.whole import plan_model, rewrite_model, unfolded_model
from bnfold.graph.captured import Capture
from bnfold.graph.doubled import capture_in_double
from bnfold.graph.quiet import collecting_later
from bnfold.ops.refusal import Refusal

__all__ = ["Folding", "fold", "plan"]

# The public functions take a parameter called `capture`; the function is needed under another name.
_capture = capture
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Folding:
    """What :func:`fold` returns.

    Attributes:
        module: the folded model, in eval mode, called like the original.
        plan: one decision per BatchNorm call.
        captured: the graph of the original, for proofs.
        seconds: how long each step took: ``"capture"``, ``"check"``, ``"plan"`` and ``"rewrite"``, in wall time.
    """

    module: nn.Module
    plan: Plan
    captured: Capture = field(repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)

    def in_float64(self) -> tuple[nn.Module, nn.Module]:
        """Return the original's graph and the folded one, both computed in float64 throughout.

        The same plan is applied to a float64 copy of the model, so that the two differ by nothing but the fold: what
        remains between them is float64 rounding.
        """
        double = capture_in_double(self.captured, {})
        return unfolded_model(double), rewrite_model(double, self.plan)

    def denormals(self) -> dict[str, int]:
        """Return how many denormal weights the fold made, by the name of the parameter; see :mod:`.denormals`."""
        return denormals_made(self.module, self.captured)

    def counts(self) -> tuple[Counts, Counts]:
        """Return what the original's graph costs to run on the example inputs, and what the folded one costs."""
        inputs = self.captured.example_inputs
        return counts(unfolded_model(self.captured), inputs), counts(self.module, inputs)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Iterable[str] = (),
    capture: str = "auto",
    merge: bool = False,
    affines: bool = False,
    share: Literal["clone", "keep"] = "clone",
    check: bool = True,
) -> Plan:
    """Decide what becomes of each BatchNorm, and change nothing.

    Arguments and errors are those of :func:`fold`.
    """
    captured = _capture(model, example_inputs, capture, check=check)
    captured = captured.with_affines() if affines else captured
    with collecting_later():
        decided, _ = _decided(captured, _names(keep), share, merge, require_finite)
    return decided


def fold(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Iterable[str] = (),
    capture: str = "auto",
    merge: bool = False,
    affines: bool = False,
    share: Literal["clone", "keep"] = "clone",
    flush_denormals: bool = False,
    check: bool = True,
) -> Folding:
    """Fold the BatchNorms of a model into its convolutions and linear layers, wherever that is exact.

    Args:
        model: in eval mode; not changed. The result shares with it the memory of all weights that no fold touches.
        example_inputs: a tensor, or a tuple of positional inputs. Where none are given, they are searched for.
        keep: names of BatchNorms to leave as they are; with ``merge``, also of convolutions to leave apart.
        capture: how to obtain the graph: ``"auto"``, ``"recorded"``, ``"export"``, ``"piecewise"``, or ``"symbolic"``,
            which records the calls without running them.
        merge: also merge convolutions of one input whose outputs are only added, and a convolution with a 1x1 one right
            before or after it, where that saves multiplications.
        affines: also fold affines by constants, as if they were BatchNorms: a multiplication, a division or a sum by
            one constant for each channel, such as a layer scale, or a frozen BatchNorm written by hand.
        share: whether a layer called at several sites is cloned where one of them folds, or kept.
        flush_denormals: set the weights to zero that the fold made denormal, and say in the plan's notes which. They
            slow some processors down. See :meth:`Folding.denormals` for their number.
        check: compare what was captured with the model on the example inputs, in one run of each, before anything is
            decided.

    Returns:
        The folded module, and the plan: for each BatchNorm call what became of it, and why.

    Raises:
        TrainingModeError: part of the model is in training mode.
        CaptureError: the model's graph cannot be captured.
        UnknownNameError: ``keep`` names no BatchNorm that the model calls.
    """
    begin = time.perf_counter()
    captured = _capture(model, example_inputs, capture, check=check)
    captured = captured.with_affines() if affines else captured
    seconds = {"capture": time.perf_counter() - begin - captured.check_seconds}
    if check:
        seconds["check"] = captured.check_seconds
    seconds |= {"plan": 0.0, "rewrite": 0.0}

    def timed(captured: Capture, decided: Plan) -> nn.Module:
        start = time.perf_counter()
        try:
            return rewrite_model(captured, decided)
        finally:
            seconds["rewrite"] += time.perf_counter() - start

    with collecting_later():
        decided, module = _decided(captured, _names(keep), share, merge, timed)
    seconds["plan"] = time.perf_counter() - begin - sum(seconds.values())
    if flush_denormals:
        flushed = denormal_sentences(flush(module, captured), flushed=True)
        decided = replace(decided, notes=(*decided.notes, *flushed))
    return Folding(module, decided, captured, seconds)


def _decided(
    captured: Capture,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
    merge: bool,
    attempt: Callable[[Capture, Plan], _Result],
) -> tuple[Plan, _Result]:
    """Plan; where an attempt to carry it out finds a weight that overflows, plan again without that fold."""
    refused = dict[str, Refusal]()
    while True:
        decided = plan_model(captured, keep, share, refused, merge=merge)
        try:
            return decided, attempt(captured, decided)
        except NotFiniteError as error:
            node = error.node  # type: ignore[attr-defined]
            detail = error.what.rstrip(".")
            new = _sites_at(decided, node) - refused.keys()
            if not new:
                raise
            refused.update(
                {site: Refusal("weight-not-finite", "{what}", what=detail[0].lower() + detail[1:]) for site in new}
            )


def _sites_at(decided: Plan, node: str) -> set[str]:
    """The BatchNorm calls whose affines go into a call, in a plan or in its pieces; or the merge that it stands for."""
    if any(step.root == node for step in decided.steps.merges):
        return {node}
    sites = {decided[absorption.batchnorm].site for absorption in decided.steps.absorbed.get(node, ())}
    for path, piece in decided.pieces.items():
        sites |= {f"{path}.{site}" for site in _sites_at(piece, node)}
    return sites


def _names(keep: Iterable[str]) -> frozenset[str]:
    return frozenset((keep,) if isinstance(keep, str) else keep)
