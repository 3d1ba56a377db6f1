"""What the options about the model ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

__all__ = ["ModelRequest", "parse_shape"]


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
