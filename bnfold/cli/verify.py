"""``bnfold verify ORIGINAL CANDIDATE``: do two models compute the same function?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bnfold.cli.packages import check_witnesses
from bnfold.cli.request import ModelRequest
from bnfold.cli.run import Run, refuse_two_sources
from bnfold.cli.terminal import Terminal
from bnfold.files.code import looks_like_spec
from bnfold.files.kinds import Kind, open_regular, sniff
from bnfold.printable import shown_path
from bnfold.report.console import render_comparisons, render_outcome
from bnfold.report.document import Document

if TYPE_CHECKING:
    from bnfold.inputs.search import FoundInputs

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
        if _is_onnx(about.model):
            found = _onnx_inputs(about, run)
        else:
            first = run.load()
            original, found = first.model, run.find_inputs(first)
        candidate: Any = Path(request.candidate)
        if not _is_onnx(request.candidate):
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


def _onnx_inputs(about: ModelRequest, run: Run) -> FoundInputs:
    """Return example inputs for an ONNX original: given, or of the shapes that it declares."""
    path = Path(about.model)
    with run.stages("import"):
        import torch  # noqa: F401

        from bnfold.inputs.search import FoundInputs
        from bnfold.verify.runtime import require_onnxruntime
    require_onnxruntime()
    refuse_two_sources(about)
    with run.stage("inputs"):
        from bnfold.inputs.from_file import read_tensors
        from bnfold.verify.onnx_inputs import given_inputs, onnx_inputs
        from bnfold.verify.runtime import OrtModel

        if about.inputs is not None:
            names = OrtModel(path, "off").input_names
            return FoundInputs(
                given_inputs(path, read_tensors(names, about.inputs)), f"from {shown_path(str(about.inputs))}"
            )
        how = "given with --input-shape" if about.shapes else "as the ONNX model declares them"
        return FoundInputs(onnx_inputs(path, about.shapes, seed=about.seed), how)


def _is_onnx(model: str) -> bool:
    """Whether a model is an ONNX file, by its content.

    Raises:
        FileAccessError: there is no such file.
    """
    if looks_like_spec(model):
        return False
    with open_regular(model) as file:
        return sniff(file) is Kind.ONNX
