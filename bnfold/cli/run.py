"""What the commands about a model have in common: one run, from the options to what is printed at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.text import Text

from bnfold.cli import outputs
from bnfold.cli.request import ModelRequest
from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from bnfold.errors import CaptureError, ExportError, FileAccessError, UsageError, first_line
from bnfold.files.code import looks_like_spec
from bnfold.files.kinds import open_regular
from bnfold.files.save import Output
from bnfold.printable import shown_path
from bnfold.report.console import render_outputs, render_seconds
from bnfold.report.document import Document, OutputFile

if TYPE_CHECKING:
    from bnfold.cli.room import Work
    from bnfold.files.load import LoadedModel
    from bnfold.inputs.search import FoundInputs

__all__ = ["Run", "blaming_inputs", "refuse_two_sources"]


class Request(Protocol):
    """The options that every command about a model has."""

    @property
    def about(self) -> ModelRequest:
        """The options about the model."""

    @property
    def reports(self) -> tuple[str, ...]:
        """Where the reports go."""

    @property
    def force(self) -> bool:
        """Whether files that exist are replaced."""


class Run:
    """One run of a command, used in a ``with``: the files that it reads and writes, its stages and its notes.

    Args:
        request: the command's options.
        terminal: where it speaks.
        stages: the stages to come, with what to say while each runs.
        models: the paths of the models to be written.
        candidate: the path of another model that is read.

    Raises:
        UsageError: a report's suffix names no format, or two files are the same.
        FileAccessError: a file cannot be written.
    """

    def __init__(
        self,
        request: Request,
        terminal: Terminal,
        stages: Sequence[tuple[str, str]],
        *,
        models: Sequence[Path] = (),
        candidate: str | None = None,
    ) -> None:
        self.request, self.terminal = request, terminal
        about = request.about
        named = [Path(about.model), *about.code, *([] if about.inputs is None else [about.inputs])]
        named += [] if candidate is None else [Path(candidate)]
        self.files_read = [path for path in named if os.path.exists(path)]  # a path too long for the system is no file
        models_read = [about.model, *([] if candidate is None else [candidate])]
        self._as_found = {path: _state(path) for path in models_read}
        self.notes: list[str] = []
        self.stages = Stages(terminal.err, stages, show=not terminal.quiet)
        outputs.check_paths(models, request.reports, inputs=self.files_read, force=request.force)

    def __enter__(self) -> Run:
        self.stages.__enter__()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stages.finish()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage in which code of others runs."""
        with self.stages(name), self.terminal.foreign_code():
            yield

    def progress(self, stage: str) -> Callable[[str, float], None]:
        """Return what a stage calls with a sentence and the fraction done."""
        return lambda sentence, done: self.stages.inside(stage, sentence, done)

    def warn_of_room(self, work: Work) -> bool:
        """Warn, and return True, where there is less memory than will be needed."""
        from bnfold.cli.room import sentence_on_room

        sentence = sentence_on_room(work)
        if sentence is not None:
            self.terminal.warn(sentence)
        return sentence is not None

    def load(self, request: ModelRequest | None = None) -> LoadedModel:
        """Load a model, by default the command's own, and switch it to eval mode."""
        about = request or self.request.about
        if not looks_like_spec(about.model):
            with open_regular(about.model):  # a missing file is said at once, before torch is imported
                pass
        with self.stages("import"):
            import torch  # noqa: F401

            from bnfold.files.load import load_model
            from bnfold.graph.mode import training_parts
        with self.stage("load"):
            loaded = load_model(about.model, code=about.code, model=about.spec, key=about.key, trust=about.trust)
            notes = list(loaded.notes)
            if about.trust:
                self.terminal.warn("--trust lets the file run any code.")
            if training_parts(dict(loaded.model.named_modules())):
                notes.append(
                    "The model was in training mode, where BatchNorm uses batch statistics; it was switched to eval "
                    "mode."
                )
            if any(part.training for part in loaded.model.modules()):
                loaded.model.eval()
        self.notes += notes if request is None else [f"{about.model}: {note}" for note in notes]
        return loaded

    def find_inputs(self, loaded: LoadedModel) -> FoundInputs:
        """Return example inputs: given, or found.

        Raises:
            UsageError: both ``--inputs`` and ``--input-shape`` were given, or neither and none were found.
        """
        about = self.request.about
        refuse_two_sources(about)
        with self.stage("inputs"):
            if about.inputs is not None:
                from bnfold.inputs.from_file import read_inputs

                return read_inputs(loaded.model, about.inputs)
            from bnfold.inputs import search

            if about.shapes:
                return search.inputs_of_shapes(loaded.model, about.shapes, seed=about.seed)
            return search.find_inputs(loaded.model, seed=about.seed)

    @property
    def wants_page(self) -> bool:
        """Whether one of the reports is an HTML page, for which more is gathered than for the others."""
        return any(Path(report).suffix == ".html" for report in self.request.reports)

    def write(self, document: Document, models: Sequence[Output] = (), *, made: Sequence[OutputFile] = ()) -> Document:
        """Write the models and the reports; return the document with the files and the seconds in it.

        Args:
            document: what is to be told.
            models: to be written.
            made: models that were written before.

        Raises:
            FileAccessError: a file cannot be written; or somebody wrote into a model's file since the run began.
        """
        request = self.request
        models = [replace(output, check=partial(self._checked, output.check)) for output in models]
        self._require_as_found()
        with self.stages("write"):
            document = document.with_results(seconds=dict(self.stages.seconds))
            document = outputs.write(
                models,
                document,
                request.reports,
                self.terminal,
                inputs=self.files_read,
                force=request.force,
                made=made,
            )
        return document.with_results(seconds=self.stages.seconds)

    def _checked(self, check: Callable[[Path], None] | None, path: Path) -> None:
        """Check a file that is about to be put in place, whose content may have come from a mapped one just now."""
        self._require_as_found()
        if check is not None:
            check(path)

    def _require_as_found(self) -> None:
        """Raise where somebody wrote into the file of a model, whose weights are mapped: they may be others by now.

        A file that another one took the place of is still there for those who opened it.
        """
        for path, before in self._as_found.items():
            now = _state(path)
            if before is not None and now is not None and now[:2] == before[:2] and now != before:
                raise FileAccessError(
                    f"{shown_path(path)} was written to while bnfold worked with it. Nothing was written.",
                    fix="Run again when it is complete, or on a copy.",
                )

    def tell(self, document: Document, *parts: Any, notes: Sequence[str] = ()) -> int:
        """Print all notes, the result, the files written and, if wanted, the times; return the exit code."""
        for note in (*document.notes, *notes):
            self.terminal.note(note)
        self.terminal.result(*parts, *render_outputs(document))
        if self.terminal.verbose:
            self.terminal.result(Text(), *render_seconds(document))
        return document.exit_code


def _state(path: str) -> tuple[int, int, int, int] | None:
    """Return which file this is, its size, and when it was last written to; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def refuse_two_sources(about: ModelRequest) -> None:
    """Raise where inputs and shapes were both given.

    Raises:
        UsageError: they were.
    """
    if about.inputs is not None and about.shapes:
        raise UsageError("--inputs and --input-shape were both given.", fix="Leave one out: real inputs have a shape.")


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
                f"The model does not run on these inputs: {first_line(error, typed=True)}.",
                fix="Give an --input-shape that it takes, or real inputs with --inputs.",
            ) from error
        raise
