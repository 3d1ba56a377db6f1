"""``bnfold verify ORIGINAL CANDIDATE``: do two models compute the same function?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from bnfold.cli.onnx_models import is_onnx, onnx_found_inputs
from bnfold.cli.packages import check_witnesses
from bnfold.cli.request import ModelRequest
from bnfold.cli.run import Run
from bnfold.cli.terminal import Terminal
from bnfold.report.console import render_comparisons, render_outcome
from bnfold.report.document import Document

__all__ = ["VerifyRequest", "run"]

_STAGES = (
    ("import", "importing torch"),
    ("load", "loading the models"),
    ("inputs", "finding inputs"),
    ("verify", "verifying"),
    ("write", "writing"),
)


@dataclass(frozen=True)
class VerifyRequest:
    """The options of ``bnfold verify``; see its ``--help``."""

    about: ModelRequest
    candidate: str = ""
    reports: tuple[str, ...] = ()
    force: bool = False
    witnesses: tuple[str, ...] = ()


def run(request: VerifyRequest, terminal: Terminal) -> int:
    """Do it, and return the exit code."""
    about = request.about
    with Run(request, terminal, _STAGES, candidate=request.candidate) as run:
        check_witnesses(request.witnesses, proof=True)
        original: Any = Path(about.model)
        if is_onnx(about.model):
            found = onnx_found_inputs(about, run, Path(request.candidate) if is_onnx(request.candidate) else None)
        else:
            first = run.load()
            original, found = first.model, run.find_inputs(first)
        candidate: Any = Path(request.candidate)
        if not is_onnx(request.candidate):
            candidate = run.load(about.of(request.candidate)).model
        with run.stage("verify"):
            from bnfold.inputs.search import shapes_in_words
            from bnfold.verify import verify

            report = verify(
                original,
                candidate,
                found.inputs,
                onnx=False,
                seed=about.seed,
                thorough=True,
                progress=run.progress("verify"),
                witnesses=request.witnesses,
            )
        run.stages.add_parts("verify", report.seconds)
        document = Document(
            command="verify",
            model=about.model,
            candidate=request.candidate,
            inputs=(shapes_in_words(found.inputs), found.how),
            verification=report.to_dict(),
            notes=tuple(dict.fromkeys([*run.notes, *report.notes])),
            exit_code=0 if report.passed else 1,
        )
        if run.wants_page:
            from bnfold.report.details import Details, files_read

            document = document.with_results(details=Details(seed=about.seed, files=files_read(run.files_read)))
        document = run.write(document)
    return run.tell(document, *render_comparisons(document), Text(), render_outcome(document))
