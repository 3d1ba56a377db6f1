"""``bnfold fold MODEL``: load, fold, export, verify, write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bnfold.cli import outputs as files
from bnfold.cli.packages import check_witnesses, require_for
from bnfold.cli.request import ModelRequest, find_inputs, load, read_files
from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from bnfold.errors import CaptureError, ExportError, UsageError
from bnfold.export.dynamic import Wanted, wanted
from bnfold.files.code import looks_like_spec
from bnfold.files.save import Output
from bnfold.files.words import reason_of
from bnfold.report.document import Document
from bnfold.report.tables import (
    told_comparisons,
    told_counts,
    told_decisions,
    told_merges,
    told_outcome,
    told_outputs,
    told_seconds,
)
from bnfold.report.words import counted

if TYPE_CHECKING:
    from bnfold.export import Axis, OnnxExport, ProgramExport
    from bnfold.export.refusals import FixedBatch
    from bnfold.fold.api import Folding

__all__ = ["FoldRequest", "blaming_inputs", "run"]

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
    flush_denormals: bool = False
    strict: bool = False
    reports: tuple[str, ...] = ()
    no_verify: bool = False
    witnesses: tuple[str, ...] = ()
    force: bool = False


def run(request: FoldRequest, terminal: Terminal) -> int:
    """Do it, and return the exit code."""
    with Stages(terminal.err, _STAGES, show=not terminal.quiet) as stages:
        document = _Run(request, terminal, stages).document()
        stages.finish()
    _tell(document, terminal)
    return document.exit_code


class _Run:
    """One run of the command: what is known so far, and the steps."""

    def __init__(self, request: FoldRequest, terminal: Terminal, stages: Stages) -> None:
        self.request = request
        self.terminal = terminal
        self.stages = stages
        self.files_read = read_files(request.about)
        model = request.about.model
        factory = model.rpartition(":")[2].rpartition(".")[2] if looks_like_spec(model) else None
        self.paths = files.output_paths(request.outputs, model, factory)
        self.fixed: FixedBatch | None = None
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.of_page: tuple[Folding, tuple[Any, ...]] | None = None

    def document(self) -> Document:
        """Do everything, and return what is to be told."""
        request, about = self.request, self.request.about
        files.check_paths(self.paths, request.reports, inputs=self.files_read, force=request.force)
        require_for(self.paths, proof=not request.no_verify)
        check_witnesses(request.witnesses, proof=not request.no_verify)
        dynamic = None if request.dynamic is None else wanted(request.dynamic, by_name=True)
        files.check_opset(request.opset, self.paths)
        loaded, notes = load(about, self.terminal, self.stages)
        if loaded.kind == "spec":
            notes.append("The model is as its factory makes it, which may mean random weights.")
        found = find_inputs(about, loaded, self.terminal, self.stages)
        with self.stages("fold"), self.terminal.foreign_code(), blaming_inputs(loaded.model, found.inputs):
            from bnfold.export.refusals import fixed_batch
            from bnfold.fold.api import fold
            from bnfold.fold.denormals import denormal_sentences
            from bnfold.inputs.search import shapes_in_words

            folding = fold(
                loaded.model,
                found.inputs,
                keep=request.keep,
                merge=request.merge,
                flush_denormals=request.flush_denormals,
                check=request.no_verify,  # else the proof covers it
            )
            self.stages.add_parts("fold", folding.seconds)
            before, after = folding.counts()
            self.fixed = fixed_batch(folding.module, found.inputs)
        notes = [*folding.plan.notes, *notes] if not folding.plan else [*notes, *folding.plan.notes]
        notes += denormal_sentences(folding.denormals(), flushed=False)
        notes += [] if self.fixed is None else [str(self.fixed)]
        document = Document(
            command="fold",
            model=about.model,
            inputs=(shapes_in_words(found.inputs), found.how),
            capture=folding.plan.capture,
            batchnorms=folding.plan.decisions,
            merges=folding.plan.merges if request.merge else None,
            counts=(before.to_dict(), after.to_dict()),
            notes=tuple(notes),
            strict=request.strict,
        )
        if files.wants_page(request.reports):
            self.of_page = (folding, found.inputs)
        if request.strict and document.summary["fold"] < len(document.batchnorms):
            return self._written([], document.with_results(exit_code=4))
        with blaming_inputs(loaded.model, found.inputs):
            exported = self._export(folding, found.inputs, notes, dynamic or Wanted(size=found.guessed))
        document = document.with_results(fixed_batch=self.fixed, free=self._free(found.inputs))
        if not request.no_verify:
            report = self._verify(loaded.model, folding, found.inputs, exported)
            self.stages.add_parts("verify", report.seconds)
            notes += report.notes
            document = document.with_results(verification=report.to_dict(), notes=tuple(dict.fromkeys(notes)))
            if not report.passed:
                return self._written([], document.with_results(exit_code=1))
        return self._written(self._outputs(folding, exported), document.with_results(notes=tuple(dict.fromkeys(notes))))

    def _export(self, folding: Folding, inputs: tuple[Any, ...], notes: list[str], want: Wanted) -> dict[str, Any]:
        """Export to each kind that is wanted.

        A program serves the ONNX export too, unless there are explicit affines, whose form depends on the target.
        """
        suffixes = {path.suffix for path in self.paths}
        exported: dict[str, Any] = {}
        with self.stages("export"), self.terminal.foreign_code():
            from bnfold.export import export_program, onnx_of

            shared: ProgramExport | None = None
            if ".pt2" in suffixes:
                program = export_program(folding.module, inputs, dynamic=want)
                exported[".pt2"], self.axes[".pt2"] = program.program, program.axes
                self._note(program, notes)
                shared = program if not folding.plan.summary["affine"] else None
            if ".onnx" in suffixes:
                self.stages.inside("export", "exporting to ONNX", 0.4)
                converted = onnx_of(folding.module, inputs, dynamic=want, opset=self.request.opset, program=shared)
                exported[".onnx"], self.axes[".onnx"] = converted.model, converted.axes
                self._note(converted, notes)
        return exported

    def _note(self, export: ProgramExport | OnnxExport, notes: list[str]) -> None:
        """Note what is to be said about an export, but for a fixed batch that has been told already."""
        notes += export.notes if export.fixed is None or self.fixed is None else export.notes[1:]
        self.fixed = self.fixed or export.fixed

    def _verify(self, original: Any, folding: Folding, inputs: tuple[Any, ...], exported: dict[str, Any]) -> Any:
        with self.stages("verify"), self.terminal.foreign_code():
            from bnfold.verify import verify

            def progress(sentence: str, done: float) -> None:
                self.stages.inside("verify", sentence, done)

            return verify(
                original,
                folding.module,
                inputs,
                onnx=exported.get(".onnx", False),
                seed=self.request.about.seed,
                folding=folding,
                axes=self.axes.get(".onnx", ()),
                progress=progress,
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
            from bnfold.files.outputs import onnx_output, program_output, weights_output

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
        with self.stages("report"), self.terminal.foreign_code():
            from bnfold.report.gather import details_of

            seed, sites = self.request.about.seed, not self.request.no_verify
            return document.with_results(
                details=details_of(*self.of_page, seed=seed, files=self.files_read, sites=sites)
            )

    def _written(self, made: list[Output], document: Document) -> Document:
        document = self._details(document)
        with self.stages("write"):
            return files.write(
                made,
                document.with_results(seconds=dict(self.stages.seconds)),
                self.request.reports,
                self.terminal,
                inputs=self.files_read,
                force=self.request.force,
            ).with_results(seconds=self.stages.seconds)


@contextlib.contextmanager
def blaming_inputs(model: Any, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Where a capture or an export fails because the model does not run on the inputs at all, say that instead."""
    try:
        yield
    except (CaptureError, ExportError):
        import torch

        try:
            with torch.no_grad():
                model(*inputs)
        except Exception as error:
            raise UsageError(
                f"The model does not run on these inputs: {reason_of(error)}.",
                fix="Give an --input-shape that it takes, or real inputs with --inputs.",
            ) from error
        raise


def _tell(document: Document, terminal: Terminal) -> None:
    for note in document.notes:
        terminal.note(note)
    if document.inputs is not None:
        shapes, how = document.inputs
        terminal.note(f"The inputs are {shapes} ({how}).")
    terminal.result(*told_decisions(document, every=terminal.verbose), Text())
    if document.merges is not None:
        terminal.result(*told_merges(document, every=terminal.verbose), Text())
    if terminal.verbose:
        terminal.result(*told_counts(document), Text())
    if document.comparisons:
        terminal.result(*told_comparisons(document), Text())
    if document.exit_code == 4:
        total, folded = len(document.batchnorms), document.summary["fold"]
        terminal.error(
            f"--strict: {total - folded} of {counted(total, 'BatchNorm')} did not fold. No model was written.",
            "See why in the table above, or leave --strict out.",
        )
    elif document.exit_code == 1:
        terminal.result(told_outcome(document))
        terminal.error(*_failure(document.verification or {}))
    else:
        terminal.result(told_outcome(document))
    terminal.result(*told_outputs(document))
    if terminal.verbose:
        terminal.result(Text(), *told_seconds(document))


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
