"""``bnfold fold``, ``explain`` and ``bench`` of an .onnx file: no code to load, no export; names and opset stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.cli import outputs as files
from bnfold.cli.request import ModelRequest
from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from bnfold.errors import UsageError
from bnfold.files.code import looks_like_spec
from bnfold.files.kinds import Kind, open_regular, sniff
from bnfold.files.words import shown_path
from bnfold.report.document import Document, OutputFile

if TYPE_CHECKING:
    from bnfold.inputs.search import FoundInputs
    from bnfold.onnx_graph.api import OnnxFolding

__all__ = ["bench_onnx", "explain_onnx", "fold_onnx_file", "is_onnx", "only_for_torch", "onnx_found_inputs"]


def is_onnx(model: str) -> bool:
    """Whether a model is an ONNX file, by its content.

    Raises:
        FileAccessError: there is no such file.
    """
    if looks_like_spec(model):
        return False
    with open_regular(model) as file:
        return sniff(file) is Kind.ONNX


def only_for_torch(about: ModelRequest, **options: Any) -> None:
    """Refuse options that say something of a torch model.

    Raises:
        UsageError: one of them was given.
    """
    given = {"--code": about.code, "--model": about.spec, "--key": about.key, "--trust": about.trust, **options}
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} about torch models, and "
            f"{shown_path(about.model)} is an ONNX model.",
            fix="Leave it out: names, opset and free dimensions stay as they are.",
        )


def onnx_found_inputs(about: ModelRequest, terminal: Terminal, stages: Stages) -> FoundInputs:
    """Return example inputs for an ONNX model: given, or of the shapes that it declares."""
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


# --- fold --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fold:
    """What ``bnfold fold`` is asked of an ONNX file; the names are those of ``FoldRequest``."""

    about: ModelRequest
    path: Path
    keep: tuple[str, ...]
    merge: bool
    freeze_inputs: bool
    strict: bool
    reports: tuple[str, ...]
    no_verify: bool
    force: bool


def fold_onnx_file(request: Any, terminal: Terminal, stages: Stages) -> Document:
    """Fold an ONNX file, prove it, write it; return what is to be told."""
    asked = _asked(request)
    about = asked.about
    source = Path(about.model)
    read = [source, *([about.inputs] if about.inputs is not None else [])]
    files.check_paths([asked.path], asked.reports, inputs=read, force=asked.force)
    with stages("load"), terminal.foreign_code():
        from bnfold.onnx_graph.api import fold_onnx
    with stages("fold"), terminal.foreign_code():
        folding = fold_onnx(source, keep=asked.keep, merge=asked.merge, freeze_inputs=asked.freeze_inputs)
        stages.add_parts("fold", folding.seconds)
    notes = list(folding.plan.notes)
    document = Document(
        command="fold",
        model=about.model,
        capture=folding.plan.capture,
        batchnorms=folding.plan.decisions,
        merges=folding.plan.merges if asked.merge else None,
        notes=tuple(notes),
        strict=asked.strict,
    )
    stayed = [d for d in folding.plan if d.kind == "batchnorm" and d.action != "fold"]
    if asked.strict and stayed:
        return _written(None, folding, document.with_results(exit_code=4), asked, terminal, stages, read)
    if not asked.no_verify:
        report = _proven(folding, asked, terminal, stages)
        shapes, how, told = report
        notes += told.notes
        document = document.with_results(
            inputs=(shapes, how), verification=told.to_dict(), notes=tuple(dict.fromkeys(notes))
        )
        if not told.passed:
            return _written(None, folding, document.with_results(exit_code=1), asked, terminal, stages, read)
    return _written(asked.path, folding, document, asked, terminal, stages, read)


def _asked(request: Any) -> _Fold:
    about: ModelRequest = request.about
    only_for_torch(
        about,
        **{"--dynamic": request.dynamic, "--opset": request.opset, "--flush-denormals": request.flush_denormals},
    )
    others = [path for path in request.outputs if path.suffix != ".onnx"]
    if others or len(request.outputs) > 1:
        raise UsageError(
            "Of an ONNX model one .onnx file is written.",
            fix="Give one -o PATH.onnx, or none: it is MODEL.folded.onnx.",
        )
    stem = Path(about.model).with_suffix("")
    path = request.outputs[0] if request.outputs else stem.with_name(f"{stem.name}.folded.onnx")
    return _Fold(
        about,
        path,
        request.keep,
        request.merge,
        request.freeze_inputs,
        request.strict,
        request.reports,
        request.no_verify,
        request.force,
    )


def _proven(folding: OnnxFolding, asked: _Fold, terminal: Terminal, stages: Stages) -> tuple[str, str, Any]:
    """Return the shapes of the inputs, how they were found, and the report of the proof."""
    about = asked.about
    found = onnx_found_inputs(about, terminal, stages)
    with stages("verify"), terminal.foreign_code():
        import tempfile

        from bnfold.files.onnx_file import keeps_weights_apart, write_onnx
        from bnfold.inputs.search import shapes_in_words
        from bnfold.verify import verify

        def progress(sentence: str, done: float) -> None:
            stages.inside("verify", sentence, done)

        def compared(candidate: Any) -> Any:
            return verify(
                Path(about.model),
                candidate,
                found.inputs,
                onnx=False,
                seed=about.seed,
                folding=folding,
                progress=progress,
            )

        if keeps_weights_apart(folding.model):
            with tempfile.TemporaryDirectory(prefix="bnfold-", dir=asked.path.resolve().parent) as folder:
                write_onnx(folding.model, Path(folder) / asked.path.name)
                report = compared(Path(folder) / asked.path.name)
        else:
            import onnx_ir

            report = compared(onnx_ir.to_proto(folding.model))
        stages.add_parts("verify", report.seconds)
        return shapes_in_words(found.inputs), found.how, report


def _written(
    path: Path | None,
    folding: OnnxFolding,
    document: Document,
    asked: _Fold,
    terminal: Terminal,
    stages: Stages,
    read: Sequence[Path],
) -> Document:
    """Write the model, if it is to be written, and the reports."""
    with stages("write"):
        from bnfold.files.onnx_file import write_onnx

        told: tuple[OutputFile, ...] = ()
        if path is not None:
            made = write_onnx(folding.model, path, inputs=list(read), force=asked.force)
            told = tuple(OutputFile(str(each.path), each.sha256, each.size) for each in made)
        document = document.with_results(seconds=dict(stages.seconds))
        document = files.write([], document, asked.reports, terminal, inputs=list(read), force=asked.force, made=told)
    return document.with_results(seconds=stages.seconds)


# --- explain and bench -------------------------------------------------------------------------------------------


def explain_onnx(request: Any, terminal: Terminal, stages: Stages) -> Document:
    """Say what would become of each BatchNormalization and affine."""
    about: ModelRequest = request.about
    only_for_torch(about)
    with stages("plan"), terminal.foreign_code():
        from bnfold.onnx_graph.api import plan_onnx

        plan = plan_onnx(Path(about.model), keep=request.keep, merge=request.merge)
    decisions = plan.decisions
    if request.name is not None:
        decisions = tuple(d for d in decisions if request.name in (d.batchnorm, d.site))
        if not decisions:
            from bnfold.onnx_graph.api import unknown_name

            raise unknown_name(request.name, plan)
    return Document(
        command="explain",
        model=about.model,
        capture=plan.capture,
        batchnorms=decisions,
        notes=plan.notes,
        seconds=stages.seconds,
    )


def bench_onnx(request: Any, terminal: Terminal, stages: Stages) -> Document:
    """Time an ONNX file and its fold under ONNX Runtime."""
    about: ModelRequest = request.about
    only_for_torch(about, **{"--dynamic": request.dynamic})
    if any(target != "onnxruntime" for target in request.targets):
        raise UsageError("An ONNX model is timed under ONNX Runtime.", fix="Leave the other targets out.")
    found = onnx_found_inputs(about, terminal, stages)
    with stages("fold"), terminal.foreign_code():
        import onnx_ir

        from bnfold.inputs.search import shapes_in_words
        from bnfold.onnx_graph.api import fold_onnx

        folding = fold_onnx(Path(about.model), keep=request.keep, merge=request.merge)
        stages.add_parts("fold", folding.seconds)
        folded = onnx_ir.to_proto(folding.model)
    with stages("measure"), terminal.foreign_code():
        from bnfold.bench.onnx_files import bench_onnx_files

        measured = bench_onnx_files(
            Path(about.model),
            folded,
            found.inputs,
            batches=request.batches or (1,),
            threads=request.threads,
            seconds=request.seconds,
            clock="cpu" if request.cpu_time else "wall",
            seed=about.seed,
            progress=lambda what, done: stages.inside("measure", what, done),
        )
    return Document(
        command="bench",
        model=about.model,
        inputs=(shapes_in_words(found.inputs), found.how),
        capture=folding.plan.capture,
        batchnorms=folding.plan.decisions,
        notes=folding.plan.notes,
        bench=measured.to_dict(),
    )
