"""The columns of a manifest: every option of ``bnfold fold``, taken from that command itself.

An option that ``fold`` gains is a column from then on; nothing lists them twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from bnfold.files.code import looks_like_spec

__all__ = ["Column", "columns", "path_from"]

_OF_THE_BATCH = {"quiet", "verbose", "no_color"}
_IN_THE_FOLDER = {"output", "report"}  # what a run writes goes to its model's own folder
_YES = {"1", "true", "yes", "on", "y", "t"}
_NO = {"", "0", "false", "no", "off", "n", "f"}


@dataclass(frozen=True)
class Column:
    """One option of ``bnfold fold``, as a column.

    Attributes:
        name: of the column: the option's long name without dashes in front, with ``_`` for ``-``.
        option: click's own.
    """

    name: str
    option: click.Option

    @property
    def flag(self) -> str:
        """The option as it is written on a command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def names_files(self) -> bool:
        """Whether values are paths, or may begin with one: then they are seen from the manifest's folder."""
        return self.name not in _IN_THE_FOLDER and (self.name == "model" or isinstance(self.option.type, click.Path))

    def values(self, given: Any) -> list[str]:
        """Return what stands in a cell as the option's values: none for an empty cell, several with ``;`` between.

        Args:
            given: text, or what JSON has: numbers, true and false, lists.

        Raises:
            click.BadParameter: the option does not take it.
        """
        if self.option.is_flag:
            return [self.flag] if self._truth(given) else []
        several = given if isinstance(given, (list, tuple)) else [given]
        if self.option.multiple and isinstance(given, str):
            several = given.split(";")
        texts = [_as_text(value).strip() for value in several if value is not None]
        texts = [text for text in texts if text]
        if len(texts) > 1 and not self.option.multiple:
            raise click.BadParameter(f"{len(texts)} values were given, and {self.flag} takes one.")
        with click.Context(click.Command("fold")) as context:
            for text in texts:
                self.option.type.convert(text, self.option, context)
        return texts

    def arguments(self, values: Sequence[str]) -> list[str]:
        """Return the values as arguments of a command line."""
        return list(values) if self.option.is_flag else [f"{self.flag}={value}" for value in values]

    def default_from(self, parsed: Any) -> list[str]:
        """Return what click has parsed from a command line as the values of a cell; paths are made absolute."""
        if self.option.is_flag:
            return [self.flag] if parsed else []
        if parsed is None or (not self.option.multiple and parsed == self.option.default):
            return []
        texts = [_as_text(value) for value in (parsed if self.option.multiple else [parsed])]
        return [path_from(Path.cwd(), text) if self.names_files else text for text in texts]

    def _truth(self, given: Any) -> bool:
        text = _as_text(given).strip().lower()
        if text not in _YES | _NO:
            raise click.BadParameter(f"{text!r} is neither true nor false.")
        return text in _YES


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_as_text, value))
    return "" if value is None else str(value)


def path_from(folder: Path, text: str) -> str:
    """Return a path, or a spec that begins with one, as seen from ``folder``; another spec as it is."""
    if looks_like_spec(text):
        place, _, name = text.rpartition(":")
        return f"{os.path.normpath(folder / place)}:{name}" if place.endswith(".py") else text
    return os.path.normpath(folder / text)


@cache
def columns() -> Mapping[str, Column]:
    """Return the columns by name, in the order of ``bnfold fold --help``."""
    from bnfold.cli.commands import fold

    found = {}
    for option in fold.params:
        if isinstance(option, click.Option) and option.name not in _OF_THE_BATCH:
            name = max(option.opts, key=len).removeprefix("--").replace("-", "_")
            found[name] = Column(name, option)
    return found
