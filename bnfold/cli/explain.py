"""``bnfold explain MODEL [NAME]``: what would become of each BatchNorm; what one of them computes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from bnfold.cli.onnx_models import explain_onnx, is_onnx
from bnfold.cli.request import ModelRequest
from bnfold.cli.run import Run
from bnfold.cli.terminal import Terminal
from bnfold.errors import NeedsInputsError, UnknownNameError, UsageError
from bnfold.printable import listed, shown
from bnfold.report.console import render_decisions, render_merges
from bnfold.report.details import Details
from bnfold.report.document import Document

__all__ = ["ExplainRequest", "run"]

_STAGES = (
    ("import", "importing torch"),
    ("load", "loading the model"),
    ("inputs", "finding inputs"),
    ("plan", "planning"),
    ("report", "gathering what the report shows"),
    ("write", "writing"),
)


@dataclass(frozen=True)
class ExplainRequest:
    """The options of ``bnfold explain``; see its ``--help``."""

    about: ModelRequest
    name: str | None = None
    keep: tuple[str, ...] = ()
    merge: bool = False
    affines: bool = False
    reports: tuple[str, ...] = ()
    force: bool = False


def run(request: ExplainRequest, terminal: Terminal) -> int:
    """Do it, and return the exit code."""
    with Run(request, terminal, _STAGES) as run:
        if is_onnx(request.about.model):
            document, parts = explain_onnx(request, run, plain=terminal.out.options.ascii_only)
            return run.tell(run.write(document), *parts)
        model = run.load()
        plan, inputs = _plan(request, model, run)
        document = Document(
            command="explain",
            model=request.about.model,
            capture=plan.capture,
            batchnorms=plan.decisions,
            merges=plan.merges if request.merge else None,
            notes=(*run.notes, *plan.notes) if plan else (*plan.notes, *run.notes),
        )
        if run.wants_page:
            document = document.with_results(details=_details(request, model.model, inputs, plan.capture, run))
        plain = terminal.out.options.ascii_only
        if request.name is not None:
            parts = _explained(request, model.model, document, inputs, plain=plain)
        else:
            parts = [*render_decisions(document, every=terminal.verbose or len(document.batchnorms) <= 24)]
            parts += _merges(document)
        document = run.write(document)
    return run.tell(document, *parts)


def _merges(document: Document) -> list[Any]:
    """Return the parts that tell of merges, where these were asked for."""
    return [] if document.merges is None else [Text(), *render_merges(document, every=True)]


def _details(request: ExplainRequest, model: Any, inputs: Any, way: str, run: Run) -> Details:
    """Return what an HTML page shows: the graph before and after the fold that would be made, and the affines."""
    from bnfold.fold.api import fold
    from bnfold.report.gather import details_of

    with run.stages("report"):
        options: dict[str, Any] = {"keep": request.keep, "merge": request.merge, "affines": request.affines}
        folding = fold(model, inputs, capture=way, check=False, **options)
        return details_of(folding, None, seed=request.about.seed, files=run.files_read)


def _plan(request: ExplainRequest, loaded: Any, run: Run) -> tuple[Any, Any]:
    """Return the plan that ``fold`` would follow, and the inputs it was made with; None where there are none.

    Raises:
        UsageError: no inputs were found, and the plan cannot be made without.
    """
    from bnfold.fold.api import plan as make_plan

    about, inputs, missing = request.about, None, None
    try:
        inputs = run.find_inputs(loaded).inputs
    except UsageError as error:
        if about.inputs is not None or about.shapes:
            raise
        missing = error
    with run.stage("plan"):
        way = "auto" if inputs is not None else "symbolic"  # not searched for a second time
        try:
            options: dict[str, Any] = {"keep": request.keep, "merge": request.merge, "affines": request.affines}
            return make_plan(loaded.model, inputs, capture=way, **options), inputs
        except NeedsInputsError as error:
            raise missing or error from None


def _explained(request: ExplainRequest, model: Any, document: Document, inputs: Any, *, plain: bool) -> list[Any]:
    """Return the parts to print about the one layer that was named.

    Raises:
        UnknownNameError: no BatchNorm has this name; close ones are named.
    """
    from bnfold.report.equation import explain
    from bnfold.report.explained import render_explanation

    name = request.name or ""
    decisions = tuple(d for d in document.batchnorms if name in (d.batchnorm, d.site))
    layers = {path: part for path, part in model.named_modules() if _is_batchnorm(part)}
    layer = layers.get(decisions[0].batchnorm if decisions else name)
    if layer is not None:
        found = explain(layer, name, seed=request.about.seed)
        return list(
            render_explanation(
                found, decisions, _chains(request, model, inputs, document.capture or "auto", decisions), plain=plain
            )
        )
    if decisions:  # a call of a function: there is no layer whose numbers could be read
        return list(render_decisions(document.with_results(batchnorms=decisions), every=True))
    known = list(dict.fromkeys([*layers, *(decision.batchnorm for decision in document.batchnorms)]))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    fix = f"Did you mean {listed(close)}?" if close else f"There are {listed(known, 5)}." if known else "It has none."
    raise UnknownNameError(f"No BatchNorm of the model is called `{shown(name)}`.", fix=fix)


def _chains(request: ExplainRequest, model: Any, inputs: Any, way: str, decisions: tuple[Any, ...]) -> list[Any]:
    """Return for each decision the calls that its affine moves along."""
    from bnfold.fold.api import fold
    from bnfold.report.gather import chain_of

    folding = fold(model, inputs, keep=request.keep, affines=request.affines, capture=way, check=False)
    numbers = {decision.site: number for number, decision in enumerate(folding.plan)}
    return [chain_of(folding, numbers[d.site]) if d.site in numbers else () for d in decisions]


def _is_batchnorm(part: Any) -> bool:
    return hasattr(part, "running_var") and hasattr(part, "eps")
