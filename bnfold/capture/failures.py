"""Why a run cannot be recorded."""

from __future__ import annotations

from typing import Any

from bnfold.errors import CaptureError

__all__ = ["APART", "DataQuestionError", "ImpureError", "NotArgumentError", "WrittenLaterError", "at"]

APART = "Fold the parts of the model one by one."


def at(line: str | None) -> str:
    """Return the words that name a source line, where it is known."""
    return f", at {line}" if line else ""


class ImpureError(CaptureError):
    """``forward`` does more than compute its output from its input, and no graph records that."""


class DataQuestionError(CaptureError):
    """``forward`` asks for a value that depends on the model's input."""


class WrittenLaterError(Exception):
    """A tensor that the code makes is written to, later, with values that depend on the model's input."""

    def __init__(self, line: str | None) -> None:
        super().__init__(line)
        self.line = line


class NotArgumentError(CaptureError):
    """A call has an argument that no graph can hold."""

    def __init__(self, kind: type, line: str | None) -> None:
        super().__init__(
            f"forward hands a {kind.__name__} to torch, or returns it{at(line)}, which no graph can hold.", fix=APART
        )

    def __reduce__(self) -> Any:
        return CaptureError, (self.what,), {"fix": self.fix}
