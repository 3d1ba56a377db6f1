"""What the options about the model ask for, and how it is met: loaded, in eval mode, with inputs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from bnfold.errors import UsageError
from bnfold.files.code import looks_like_spec
from bnfold.files.kinds import open_regular

if TYPE_CHECKING:
    from bnfold.files.load import LoadedModel
    from bnfold.inputs.search import FoundInputs

__all__ = ["ModelRequest", "load", "parse_shape", "read_files"]


@dataclass(frozen=True)
class ModelRequest:
    """The options that every command has about its model; see ``bnfold fold --help``."""

    model: str
    code: tuple[Path, ...] = ()
    spec: str | None = None
    key: str | None = None
    trust: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    inputs: Path | None = None
    seed: int = 0

    def of(self, model: str) -> ModelRequest:
        """Return the same options for another model."""
        return replace(self, model=model)


def parse_shape(text: str) -> tuple[int, ...]:
    """Return ``1,3,224,224`` (or with ``x`` between) as a tuple.

    Raises:
        click.BadParameter: it is no list of positive whole numbers.
    """
    try:
        shape = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise click.BadParameter(f"{text!r} is not a shape; write it like 1,3,224,224.")
    return shape


def load(request: ModelRequest, terminal: Terminal, stages: Stages) -> tuple[LoadedModel, list[str]]:
    """Load the model and switch it to eval mode.

    Returns:
        The model, and sentences for the user.
    """
    if not looks_like_spec(request.model):
        with open_regular(request.model):  # what is not there is said at once, before torch is imported
            pass
    with stages("import"):
        import torch  # noqa: F401

        from bnfold.files.load import load_model
        from bnfold.graph.mode import training_parts
    with stages("load"), terminal.foreign_code():
        loaded = load_model(request.model, code=request.code, model=request.spec, key=request.key, trust=request.trust)
        notes = list(loaded.notes)
        if request.trust:
            terminal.warn("--trust lets the file run any code.")
        minds = training_parts(dict(loaded.model.named_modules()))
        if any(part.training for part in loaded.model.modules()):
            loaded.model.eval()
        if minds:
            notes.append(
                "The model was in training mode, where BatchNorm uses batch statistics; it was switched to eval mode."
            )
    return loaded, notes


def find_inputs(request: ModelRequest, loaded: LoadedModel, terminal: Terminal, stages: Stages) -> FoundInputs:
    """Return example inputs: given, or found.

    Raises:
        UsageError: both ``--inputs`` and ``--input-shape`` were given, or neither and none were found.
    """
    if request.inputs is not None and request.shapes:
        raise UsageError("--inputs and --input-shape were both given.", fix="Leave one out: real inputs have a shape.")
    with stages("inputs"), terminal.foreign_code():
        if request.inputs is not None:
            from bnfold.inputs.from_file import read_inputs

            return read_inputs(loaded.model, request.inputs)
        from bnfold.inputs import search

        if request.shapes:
            return search.inputs_of_shapes(loaded.model, request.shapes, seed=request.seed)
        return search.find_inputs(loaded.model, seed=request.seed)


def read_files(request: ModelRequest) -> list[Path]:
    """Return the files that a run reads, so that none of them is written to."""
    named = [Path(request.model), *request.code, *([request.inputs] if request.inputs is not None else [])]
    return [path for path in named if os.path.exists(path)]  # a path too long for the system is no file
