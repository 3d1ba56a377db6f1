"""``bnfold fold MODEL``: load, fold, export, verify, write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bnfold.cli import outputs as files
from bnfold.cli.onnx_models import fold_onnx_file, is_onnx, onnx_output_path
from bnfold.cli.packages import check_witnesses, require_for
from bnfold.cli.request import ModelRequest
from bnfold.cli.room import Work
from bnfold.cli.run import Run, blaming_inputs
from bnfold.cli.terminal import Terminal
from bnfold.errors import UsageError
from bnfold.export.dynamic import Wanted, wanted
from bnfold.files.code import looks_like_spec
from bnfold.files.save import Output
from bnfold.report.console import (
    render_comparisons,
    render_counts,
    render_decisions,
    render_merges,
    render_outcome,
)
from bnfold.report.document import Document
from bnfold.report.words import counted

if TYPE_CHECKING:
    from bnfold.export import Axis, OnnxExport, ProgramExport
    from bnfold.export.refusals import FixedBatch
    from bnfold.fold.api import Folding

__all__ = ["FoldRequest", "run"]

_STAGES = (
    ("import", "importing torch"),
    ("load", "loading the model"),
    ("inputs", "finding inputs"),
    ("fold", "folding"),
    ("export", "exporting"),
    ("verify", "verifying"),
    ("report", "gathering what the report shows"),
    ("write", "writing"),
)


@dataclass(frozen=True)
class FoldRequest:
    """The options of ``bnfold fold``; see its ``--help``."""

    about: ModelRequest
    outputs: tuple[Path, ...] = ()
    dynamic: str | None = None
    opset: int | None = None
    keep: tuple[str, ...] = ()
    merge: bool = False
    affines: bool = False
    freeze_inputs: bool = False
    flush_denormals: bool = False
    strict: bool = False
    reports: tuple[str, ...] = ()
    no_verify: bool = False
    witnesses: tuple[str, ...] = ()
    force: bool = False


def run(request: FoldRequest, terminal: Terminal) -> int:
    """Do it, and return the exit code."""
    run: Run
    if is_onnx(request.about.model):
        path = onnx_output_path(request)
        run = Run(request, terminal, _STAGES, models=[path])
        with run:
            document = fold_onnx_file(request, path, run)
    elif request.freeze_inputs:
        raise UsageError("--freeze-inputs is about ONNX models.", fix="Leave it out.")
    else:
        run = of_torch = _FoldRun(request, terminal)
        with run:
            document = of_torch.document()
    notes = [] if document.inputs is None else ["The inputs are {} ({}).".format(*document.inputs)]
    run.tell(document, *_told(document, verbose=terminal.verbose), notes=notes)
    if document.exit_code == 4:
        total = sum(decision.kind == "batchnorm" for decision in document.batchnorms)
        terminal.error(
            f"--strict: {len(document.unfolded)} of {counted(total, 'BatchNorm')} did not fold. No model was written.",
            "See why in the table above, or leave --strict out.",
        )
    elif document.exit_code == 1:
        terminal.error(*_failure(document.verification or {}))
    return document.exit_code


class _FoldRun(Run):
    """One run of the command: what is known so far, and the steps."""

    request: FoldRequest

    def __init__(self, request: FoldRequest, terminal: Terminal) -> None:
        model = request.about.model
        factory = model.rpartition(":")[2].rpartition(".")[2] if looks_like_spec(model) else None
        self.paths = files.output_paths(request.outputs, model, factory)
        super().__init__(request, terminal, _STAGES, models=self.paths)
        self.fixed: FixedBatch | None = None
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.of_page: tuple[Folding, tuple[Any, ...]] | None = None
        self.scratch = contextlib.ExitStack()

    def document(self) -> Document:
        """Do everything, and return what is to be told."""
        with self.scratch:
            return self._document()

    def _document(self) -> Document:
        request, notes = self.request, self.notes
        require_for(self.paths, proof=not request.no_verify)
        check_witnesses(request.witnesses, proof=not request.no_verify)
        dynamic = None if request.dynamic is None else wanted(request.dynamic, by_name=True)
        files.check_opset(request.opset, self.paths)
        loaded = self.load()
        if loaded.kind == "spec":
            notes.append("The model is used as its factory makes it, possibly with random weights.")
        work = Work.of(loaded.model, {path.suffix for path in self.paths}, proof=not request.no_verify)
        warned = self.warn_of_room(work)
        found = self.find_inputs(loaded)
        with self.stage("fold"), blaming_inputs(loaded.model, found.inputs):
            from bnfold.export.refusals import fixed_batch
            from bnfold.fold.api import fold
            from bnfold.fold.denormals import denormal_sentences
            from bnfold.inputs.search import shapes_in_words

            folding = fold(
                loaded.model,
                found.inputs,
                keep=request.keep,
                merge=request.merge,
                affines=request.affines,
                flush_denormals=request.flush_denormals,
                check=request.no_verify,  # else the proof covers it
            )
            self.stages.add_parts("fold", folding.seconds)
            before, after = folding.counts()
            self.fixed = fixed_batch(folding.module, found.inputs)
        if not warned:
            self.warn_of_room(work.with_values(folding.captured, found.inputs))
        notes[:] = [*notes, *folding.plan.notes] if folding.plan else [*folding.plan.notes, *notes]
        notes += denormal_sentences(folding.denormals(), flushed=False)
        notes += [] if self.fixed is None else [str(self.fixed)]
        document = Document(
            command="fold",
            model=request.about.model,
            inputs=(shapes_in_words(found.inputs), found.how),
            capture=folding.plan.capture,
            batchnorms=folding.plan.decisions,
            merges=folding.plan.merges if request.merge else None,
            counts=(before.to_dict(), after.to_dict()),
            notes=tuple(notes),
            strict=request.strict,
        )
        if self.wants_page:
            self.of_page = (folding, found.inputs)
        if request.strict and document.unfolded:
            return self._written(document.with_results(exit_code=4))
        with blaming_inputs(loaded.model, found.inputs):
            exported = self._export(folding, found.inputs, dynamic or Wanted(size=found.guessed))
        document = document.with_results(fixed_batch=self.fixed, free=self._free(found.inputs))
        if not request.no_verify:
            report = self._verify(loaded.model, folding, found.inputs, exported)
            self.stages.add_parts("verify", report.seconds)
            notes += report.notes
            document = document.with_results(verification=report.to_dict(), notes=tuple(dict.fromkeys(notes)))
            if not report.passed:
                return self._written(document.with_results(exit_code=1))
        document = document.with_results(notes=tuple(dict.fromkeys(notes)))
        return self._written(document, self._outputs(folding, exported))

    def _export(self, folding: Folding, inputs: tuple[Any, ...], want: Wanted) -> dict[str, Any]:
        """Export to each kind that is wanted.

        A program serves the ONNX export too, unless there are explicit affines, whose form depends on the target.
        """
        suffixes = {path.suffix for path in self.paths}
        exported: dict[str, Any] = {}
        with self.stage("export"):
            from bnfold.export import export_program, onnx_of
            from bnfold.files.destinations import staged_beside

            shared: ProgramExport | None = None
            if ".pt2" in suffixes:
                program = export_program(folding.module, inputs, dynamic=want)
                exported[".pt2"], self.axes[".pt2"] = program.program, program.axes
                self._note(program)
                shared = program if not folding.plan.summary["affine"] else None
            if ".onnx" in suffixes:
                self.stages.inside("export", "exporting to ONNX", 0.4)
                path = next(path for path in self.paths if path.suffix == ".onnx")
                converted = onnx_of(
                    folding.module,
                    inputs,
                    dynamic=want,
                    opset=self.request.opset,
                    program=shared,
                    apart=self.scratch.enter_context(staged_beside(path)) / path.name,
                )
                exported[".onnx"], self.axes[".onnx"] = converted.model, converted.axes
                self._note(converted)
        return exported

    def _note(self, export: ProgramExport | OnnxExport) -> None:
        """Note what is to be said about an export, but for a fixed batch that has been told already."""
        self.notes += export.notes if export.fixed is None or self.fixed is None else export.notes[1:]
        self.fixed = self.fixed or export.fixed

    def _verify(self, original: Any, folding: Folding, inputs: tuple[Any, ...], exported: dict[str, Any]) -> Any:
        with self.stage("verify"):
            from bnfold.verify import verify

            return verify(
                original,
                folding.module,
                inputs,
                onnx=exported.get(".onnx", False),
                seed=self.request.about.seed,
                folding=folding,
                program=exported.get(".pt2"),
                axes=max(self.axes.values(), key=len, default=()),
                progress=self.progress("verify"),
                witnesses=self.request.witnesses,
            )

    def _free(self, inputs: tuple[Any, ...]) -> dict[str, str]:
        """Return the shapes that each kind of file takes: ``(batch, 3, height, width)``."""
        from torch import Tensor

        from bnfold.export import shape_in_words

        return {
            suffix: ", ".join(
                f"({shape_in_words(value.shape, axes, position)})"
                for position, value in enumerate(inputs)
                if isinstance(value, Tensor)
            )
            for suffix, axes in self.axes.items()
        }

    def _outputs(self, folding: Folding, exported: dict[str, Any]) -> list[Output]:
        with self.stages("write"):
            from bnfold.files.formats import onnx_output, program_output, weights_output

            makers = {
                ".onnx": lambda path: onnx_output(path, exported[".onnx"]),
                ".pt2": lambda path: program_output(path, exported[".pt2"]),
                ".safetensors": lambda path: weights_output(path, folding.module.state_dict()),
            }
            return [makers[path.suffix](path) for path in self.paths]

    def _details(self, document: Document) -> Document:
        """Return the document with what an HTML page shows, if one is wanted."""
        if self.of_page is None:
            return document
        with self.stage("report"):
            from bnfold.report.gather import details_of

            seed, sites = self.request.about.seed, not self.request.no_verify
            return document.with_results(
                details=details_of(*self.of_page, seed=seed, files=self.files_read, sites=sites)
            )

    def _written(self, document: Document, models: Sequence[Output] = ()) -> Document:
        return self.write(self._details(document), models)


def _told(document: Document, *, verbose: bool) -> Iterator[Any]:
    """Yield what became of the BatchNorms, and how the proof ended."""
    yield from (*render_decisions(document, every=verbose), Text())
    if document.merges is not None:
        yield from (*render_merges(document, every=verbose), Text())
    if verbose:
        yield from (*render_counts(document), Text())
    if document.comparisons:
        yield from (*render_comparisons(document), Text())
    if document.exit_code != 4:
        yield render_outcome(document)


def _failure(verification: dict[str, Any]) -> tuple[str, str]:
    """Return what went wrong, and what to do about it."""
    located = verification.get("located")
    if located:
        fix = f"Leave that BatchNorm as it is with --keep {located}, and please report it."
    else:
        fix = "Give real inputs with --inputs, or write without proof with --no-verify."
    if verification.get("verdict") == "unverifiable":
        return "It cannot be shown that the folded model is equivalent. No model was written.", fix
    return "The folded model is not equivalent to the original. No model was written.", fix
