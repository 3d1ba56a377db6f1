"""Every error that bnfold raises on purpose.

::

    BnfoldError                 what happened; what to do            exit code
    ├── UsageError              invalid request                         2
    │   ├── TrainingModeError   a module is in training mode
    │   └── UnknownNameError    ``keep`` or NAME names no BatchNorm
    ├── RefusedFileError        the input file is refused               3
    ├── NotFoldedError          ``--strict``, and something did not fold 4
    ├── FileAccessError         reading or writing failed               5
    ├── CaptureError            the model's graph cannot be captured    6
    │   └── NeedsInputsError    shapes are needed and no input is given
    ├── OtherInputError         a folded model got an input it is not right for  6
    ├── ExportError             the ONNX or torch.export export failed  6
    ├── WitnessError            another runtime gives no outputs        6
    ├── MissingPackageError     an optional package is not installed    6
    ├── NotFiniteError          a rounded weight overflowed             6
    └── NotEquivalentError      two models compute different functions  1

An error is data plus a sentence: ``what`` happened and ``fix``, what to do about it. ``str(error)`` is both, the fix
last. All of them pickle, so that they cross process boundaries whole.
"""

from __future__ import annotations

from typing import Any

from bnfold.printable import shown

__all__ = [
    "BnfoldError",
    "CaptureError",
    "ExportError",
    "FileAccessError",
    "MissingPackageError",
    "NeedsInputsError",
    "NotEquivalentError",
    "NotFiniteError",
    "NotFoldedError",
    "OtherInputError",
    "RefusedFileError",
    "TrainingModeError",
    "UnknownNameError",
    "UsageError",
    "WitnessError",
]


def first_line(error: BaseException, limit: int = 200, *, typed: bool = False) -> str:
    r"""Return what an error of others says, as one printable line without a full stop: its first that is not blank.

    Args:
        error: of which only the type is said where it has no text.
        limit: the most characters of the text.
        typed: whether the type goes before the text.

    >>> first_line(ValueError("\n  no such name.\nmore"), typed=True)
    'ValueError: no such name'
    """
    kind = shown(type(error).__name__, 40)
    said = error.what if isinstance(error, BnfoldError) else str(error)
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    text = shown(line, limit).rstrip(".")
    return f"{kind}: {text}" if typed and text else text or kind


class BnfoldError(Exception):
    """The base of all errors that bnfold raises on purpose.

    Attributes:
        what: one or two sentences: what happened, and where.
        fix: one sentence: what the caller can do.
        exit_code: the command line's exit code for this error.
    """

    exit_code = 70

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} {self.fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.fix, self.__dict__)


def _rebuild(kind: type[BnfoldError], what: str, fix: str, state: dict[str, Any]) -> BnfoldError:
    error = kind.__new__(kind)
    Exception.__init__(error, what, fix)
    error.__dict__.update(state)
    return error


class UsageError(BnfoldError):
    """An invalid request."""

    exit_code = 2


class TrainingModeError(UsageError):
    """A module is in training mode, where a BatchNorm uses its batch's statistics."""


class UnknownNameError(UsageError):
    """A name given by the caller is not the name of any BatchNorm in the model."""


class RefusedFileError(BnfoldError):
    """The input file is of a kind, or holds something, that bnfold does not open."""

    exit_code = 3


class NotFoldedError(BnfoldError):
    """Strict mode: at least one BatchNorm did not fold."""

    exit_code = 4


class FileAccessError(BnfoldError):
    """Reading or writing a file failed."""

    exit_code = 5


class CaptureError(BnfoldError):
    """The model's graph cannot be captured."""

    exit_code = 6


class NeedsInputsError(CaptureError):
    """Something needs the shapes of values, and no example input was given."""


class OtherInputError(BnfoldError, ValueError):
    """A folded model is called with an input for which its graph is not right."""

    exit_code = 6


class WitnessError(BnfoldError):
    """A runtime that was to witness a model gives no outputs: it does not take the model, crashed or took too long."""

    exit_code = 6


class ExportError(BnfoldError):
    """An export to ONNX or torch.export failed."""

    exit_code = 6


class MissingPackageError(BnfoldError):
    """A package that this step needs is not installed."""

    exit_code = 6


class NotFiniteError(BnfoldError):
    """A weight computed by a fold is not finite once rounded to its dtype."""

    exit_code = 6


class NotEquivalentError(BnfoldError):
    """Two models compute different functions.

    Attributes:
        report: the verifier's report, a :class:`bnfold.verify.Report`.
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str, report: Any = None) -> None:
        super().__init__(what, fix=fix)
        self.report = report
