"""``bnfold verify ORIGINAL CANDIDATE``: do two models compute the same function?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bnfold.cli import outputs
from bnfold.cli.packages import check_witnesses
from bnfold.cli.request import ModelRequest, find_inputs, load, read_files
from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from bnfold.errors import UsageError
from bnfold.files.code import looks_like_spec
from bnfold.files.kinds import Kind, open_regular, sniff
from bnfold.files.words import shown_path
from bnfold.report.document import Document
from bnfold.report.tables import told_comparisons, told_outcome, told_outputs, told_seconds

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
    second = Path(request.candidate)
    read = [*read_files(about), *([second] if os.path.exists(second) else [])]
    outputs.check_paths([], request.reports, inputs=read, force=request.force)
    check_witnesses(request.witnesses, proof=True)
    with Stages(terminal.err, _STAGES, show=not terminal.quiet) as stages:
        original: Any = Path(about.model)
        notes: list[str] = []
        if _is_onnx(about.model):
            found = _onnx_inputs(about, terminal, stages)
        else:
            first, notes = load(about, terminal, stages)
            original, found = first.model, find_inputs(about, first, terminal, stages)
        candidate: Any = Path(request.candidate)
        if not _is_onnx(request.candidate):
            loaded, more = load(about.of(request.candidate), terminal, stages)
            candidate = loaded.model
            notes += [f"{request.candidate}: {note}" for note in more]
        with stages("verify"), terminal.foreign_code():
            from bnfold.inputs.search import shapes_in_words
            from bnfold.verify import verify

            def progress(sentence: str, done: float) -> None:
                stages.inside("verify", sentence, done)

            report = verify(
                original,
                candidate,
                found.inputs,
                onnx=False,
                seed=about.seed,
                thorough=True,
                progress=progress,
                witnesses=request.witnesses,
            )
        stages.add_parts("verify", report.seconds)
        document = Document(
            command="verify",
            model=about.model,
            candidate=request.candidate,
            inputs=(shapes_in_words(found.inputs), found.how),
            verification=report.to_dict(),
            notes=tuple(dict.fromkeys([*notes, *report.notes])),
            seconds=stages.seconds,
            exit_code=0 if report.passed else 1,
        )
        if outputs.wants_page(request.reports):
            from bnfold.report.details import Details, files_read

            document = document.with_results(details=Details(seed=about.seed, files=files_read(read)))
        with stages("write"):
            document = outputs.write([], document, request.reports, terminal, inputs=read, force=request.force)
        stages.finish()
    for note in document.notes:
        terminal.note(note)
    terminal.result(*told_comparisons(document), Text(), told_outcome(document), *told_outputs(document))
    if terminal.verbose:
        terminal.result(Text(), *told_seconds(document))
    return document.exit_code


def _onnx_inputs(about: ModelRequest, terminal: Terminal, stages: Stages) -> FoundInputs:
    """Return example inputs for an ONNX original: given, or of the shapes that it declares."""
    path = Path(about.model)
    with stages("import"):
        import torch  # noqa: F401

        from bnfold.inputs.search import FoundInputs
        from bnfold.verify.runtime import require_onnxruntime
    require_onnxruntime()
    with stages("inputs"), terminal.foreign_code():
        from bnfold.inputs.from_file import read_tensors
        from bnfold.verify.onnx_inputs import given_inputs, onnx_inputs
        from bnfold.verify.runtime import OrtModel

        if about.inputs is not None and about.shapes:
            raise UsageError(
                "--inputs and --input-shape were both given.", fix="Leave one out: real inputs have a shape."
            )
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
