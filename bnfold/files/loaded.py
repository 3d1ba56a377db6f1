"""What the user asked to load, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import RefusedFileError
from bnfold.printable import MESSAGE_LIMIT, shortened, shown_path

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NEEDS_MODEL", "LoadedModel", "Request"]

NEEDS_MODEL = "Name what makes it: --model package.module:factory or --model FILE.py:factory."


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        model: the module, in the mode in which it was saved; the caller switches it to eval, and says so.
        kind: ``"pickled module"``, ``"state_dict"``, ``"checkpoint"``, ``"safetensors"``, ``"exported program"``,
            ``"TorchScript"`` or ``"spec"``.
        name: what outputs are named after: the file's stem or the factory's name.
        notes: sentences for the user, about nothing that is wrong.
    """

    model: nn.Module
    kind: str
    name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What the user asked for, and the notes that gather while it is done; see :func:`bnfold.files.load.load_model`."""

    source: str
    code: tuple[Path, ...] = ()
    spec: str | None = None
    key: str | None = None
    trust: bool = False
    notes: list[str] = field(default_factory=list)

    def refused(self, what: object, fix: str) -> RefusedFileError:
        """Return the error that says ``what`` about the file; ``what`` is a clause without its full stop."""
        path = shown_path(self.source)
        room = MESSAGE_LIMIT - len(path) - len(fix) - len("  . ")
        return RefusedFileError(f"{path} {shortened(str(what), max(room, 80))}.", fix=fix)

    def loaded(self, model: nn.Module, kind: str) -> LoadedModel:
        """Return the result."""
        return LoadedModel(model, kind, Path(self.source).stem, tuple(self.notes))
