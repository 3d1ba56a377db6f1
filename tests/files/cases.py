"""A hostile or broken input, and what bnfold must answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USAGE, REFUSED, ACCESS = 2, 3, 5


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: what is wrong with it, in a few words.
        make: given an empty folder and the path of a marker that must stay absent, puts the input there and returns
            the MODEL argument.
        code: the expected exit code.
        says: words that the message must hold.
        options: further arguments of ``load_model``; ``{folder}`` in them is the folder.
    """

    name: str
    make: Callable[[Path, Path], Path | str]
    code: int = REFUSED
    says: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def content(name: str, make: bytes | Callable[[], bytes], *says: str, file: str = "model.pt", **options: Any) -> Case:
    """Return the case of a file with this content, refused."""

    def write(folder: Path, _marker: Path) -> Path:
        path = folder / file
        path.write_bytes(make if isinstance(make, bytes) else make())
        return path

    return Case(name, write, REFUSED, says, options)
