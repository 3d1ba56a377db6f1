"""``bnfold fold``, ``explain`` and ``bench`` of an .onnx file: no code to load, no export; names and opset stay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.cli.request import ModelRequest
from bnfold.cli.room import OnnxWork
from bnfold.cli.run import Run, refuse_two_sources
from bnfold.errors import UsageError
from bnfold.files.code import looks_like_spec
from bnfold.files.kinds import Kind, open_regular, sniff
from bnfold.printable import shown_path
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


def onnx_found_inputs(about: ModelRequest, run: Run, candidate: Path | None = None) -> FoundInputs:
    """Return example inputs for an ONNX model: given, or of the shapes that it declares.

    Sizes that it leaves open are those that the ``candidate`` declares, where that is an ONNX model too.
    """
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
        return FoundInputs(onnx_inputs(path, about.shapes, seed=about.seed, candidate=candidate), how)


# --- fold --------------------------------------------------------------------------------------------------------


def onnx_output_path(request: Any) -> Path:
    """Return where the folded file goes, and refuse options that say something of a torch model.

    Raises:
        UsageError: one of them was given, or an output that is no .onnx file.
    """
    about: ModelRequest = request.about
    only_for_torch(
        about,
        **{
            "--dynamic": request.dynamic,
            "--opset": request.opset,
            "--flush-denormals": request.flush_denormals,
            "--witness": request.witnesses,
        },
    )
    if any(path.suffix != ".onnx" for path in request.outputs) or len(request.outputs) > 1:
        raise UsageError(
            "Of an ONNX model one .onnx file is written.",
            fix="Give one -o PATH.onnx, or none: it is MODEL.folded.onnx.",
        )
    stem = Path(about.model).with_suffix("")
    return Path(request.outputs[0]) if request.outputs else stem.with_name(f"{stem.name}.folded.onnx")


def fold_onnx_file(request: Any, path: Path, run: Run) -> Document:
    """Fold an ONNX file, prove it, write it; return what is to be told."""
    about: ModelRequest = request.about
    with run.stage("load"):
        from bnfold.onnx_graph.api import fold_onnx
    with run.stage("fold"):
        folding = fold_onnx(
            Path(about.model), keep=request.keep, merge=request.merge, freeze_inputs=request.freeze_inputs
        )
        run.stages.add_parts("fold", folding.seconds)
    document = Document(
        command="fold",
        model=about.model,
        capture=folding.plan.capture,
        batchnorms=folding.plan.decisions,
        merges=folding.plan.merges if request.merge else None,
        notes=folding.plan.notes,
        strict=request.strict,
    )
    if request.strict and document.unfolded:
        return _written(None, folding, document.with_results(exit_code=4), request, run)
    if not request.no_verify:
        shapes, how, report = _proven(folding, request, path, run)
        notes = tuple(dict.fromkeys([*document.notes, *report.notes]))
        document = document.with_results(inputs=(shapes, how), verification=report.to_dict(), notes=notes)
        if not report.passed:
            return _written(None, folding, document.with_results(exit_code=1), request, run)
    if run.wants_page:
        with run.stages("report"):
            from bnfold.report.gather_onnx import details_of_onnx

            details = details_of_onnx(folding, seed=about.seed, files=run.files_read)
        document = document.with_results(details=details)
    return _written(path, folding, document, request, run)


def _proven(folding: OnnxFolding, request: Any, path: Path, run: Run) -> tuple[str, str, Any]:
    """Return the shapes of the inputs, how they were found, and the report of the proof."""
    about: ModelRequest = request.about
    found = onnx_found_inputs(about, run)
    with run.stage("verify"):
        import tempfile

        import onnx_ir

        from bnfold.files.onnx_file import keeps_weights_apart, weight_bytes, write_onnx
        from bnfold.inputs.search import shapes_in_words
        from bnfold.verify import verify
        from bnfold.verify.heap import give_back
        from bnfold.verify.runtime import MAPPED

        give_back()
        weights, apart = weight_bytes(folding.model), keeps_weights_apart(folding.model)
        run.warn_of_room(OnnxWork(weights, apart=apart))

        def compared(candidate: Any) -> Any:
            return verify(
                Path(about.model),
                candidate,
                found.inputs,
                onnx=False,
                seed=about.seed,
                folding=folding,
                progress=run.progress("verify"),
            )

        if apart or weights >= MAPPED:
            with tempfile.TemporaryDirectory(prefix="bnfold-", dir=path.resolve().parent) as folder:
                write_onnx(folding.model, Path(folder) / path.name, apart=True)
                report = compared(Path(folder) / path.name)
        else:
            report = compared(onnx_ir.to_proto(folding.model))
        run.stages.add_parts("verify", report.seconds)
        return shapes_in_words(found.inputs), found.how, report


def _written(path: Path | None, folding: OnnxFolding, document: Document, request: Any, run: Run) -> Document:
    """Write the model, if it is to be written, and the reports."""
    told: tuple[OutputFile, ...] = ()
    with run.stages("write"):
        from bnfold.files.onnx_file import write_onnx

        if path is not None:
            made = write_onnx(folding.model, path, inputs=run.files_read, force=request.force)
            told = tuple(OutputFile(str(each.path), each.sha256, each.size) for each in made)
    return run.write(document, made=told)


# --- explain and bench -------------------------------------------------------------------------------------------


def explain_onnx(request: Any, run: Run, *, plain: bool) -> tuple[Document, list[Any]]:
    """Say what would become of each BatchNormalization and affine, or what one of them computes; with parts to print.

    Raises:
        UnknownNameError: none has the name that was given.
    """
    from rich.text import Text

    from bnfold.report.console import render_decisions, render_merges

    about: ModelRequest = request.about
    only_for_torch(about)
    with run.stage("plan"):
        from bnfold.onnx_graph.api import fold_onnx, unknown_name

        folding = fold_onnx(Path(about.model), keep=request.keep, merge=request.merge)
    plan, chosen = folding.plan, range(len(folding.plan))
    if request.name is not None:
        named = (number for number in chosen if request.name in (plan[number].batchnorm, plan[number].site))
        chosen = tuple(named)  # type: ignore[assignment]
        if not chosen:
            raise unknown_name(request.name, plan)
    document = Document(
        command="explain",
        model=about.model,
        capture=plan.capture,
        batchnorms=tuple(plan[number] for number in chosen),
        merges=plan.merges if request.merge else None,
        notes=plan.notes,
    )
    if run.wants_page:
        with run.stages("report"):
            from bnfold.report.gather_onnx import details_of_onnx

            details = details_of_onnx(folding, seed=about.seed, files=run.files_read)
        document = document.with_results(details=details)
    if request.name is None:
        parts: list[Any] = list(render_decisions(document, every=True))
        if document.merges is not None:
            parts += [Text(), *render_merges(document, every=True)]
        return document, parts
    return document, _explained(folding, document, tuple(chosen), request, plain=plain)


def _explained(
    folding: OnnxFolding, document: Document, chosen: tuple[int, ...], request: Any, *, plain: bool
) -> list[Any]:
    """Return the parts to print about the site that was named: its equation, where it has statistics of its own."""
    from rich.text import Text

    from bnfold.report.chain import render_chain
    from bnfold.report.console import render_decisions
    from bnfold.report.equation import explain
    from bnfold.report.explained import render_explanation
    from bnfold.report.gather_onnx import chain_of_onnx, layer_of_onnx

    chains = [chain_of_onnx(folding, number) for number in chosen]
    layer = layer_of_onnx(folding, chosen[0]) if folding.plan[chosen[0]].kind == "batchnorm" else None
    if layer is None:
        parts: list[Any] = list(render_decisions(document, every=True))
        for chain in chains:
            parts += [Text(), *render_chain(chain, plain=plain)]
        return parts
    found = explain(layer, request.name, kind="BatchNormalization", seed=request.about.seed)
    return list(render_explanation(found, document.batchnorms, chains, plain=plain))


def bench_onnx(request: Any, run: Run) -> Document:
    """Time an ONNX file and its fold under ONNX Runtime."""
    about: ModelRequest = request.about
    only_for_torch(about, **{"--dynamic": request.dynamic})
    if any(target != "onnxruntime" for target in request.targets):
        raise UsageError("An ONNX model is timed under ONNX Runtime.", fix="Leave the other targets out.")
    found = onnx_found_inputs(about, run)
    with run.stage("fold"):
        import onnx_ir

        from bnfold.inputs.search import shapes_in_words
        from bnfold.onnx_graph.api import fold_onnx

        folding = fold_onnx(Path(about.model), keep=request.keep, merge=request.merge)
        run.stages.add_parts("fold", folding.seconds)
        folded = onnx_ir.to_proto(folding.model)
    with run.stage("measure"):
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
            progress=run.progress("measure"),
        )
    return Document(
        command="bench",
        model=about.model,
        inputs=(shapes_in_words(found.inputs), found.how),
        capture=folding.plan.capture,
        batchnorms=folding.plan.decisions,
        merges=folding.plan.merges if request.merge else None,
        notes=folding.plan.notes,
        bench=measured.to_dict(),
    )
