"""bnfold folds BatchNorm into convolutions, exactly, and proves it.

The public names, loaded when first used: ``import bnfold`` alone imports neither torch nor onnx.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bnfold._version import __version__

if TYPE_CHECKING:
    from bnfold import batch, extend
    from bnfold.affine import ChannelAffine, affine_of
    from bnfold.errors import (
        BnfoldError,
        CaptureError,
        ExportError,
        FileAccessError,
        MissingPackageError,
        NeedsInputsError,
        NotEquivalentError,
        NotFiniteError,
        NotFoldedError,
        RefusedFileError,
        TrainingModeError,
        UnknownNameError,
        UsageError,
    )
    from bnfold.export import export_onnx
    from bnfold.export.folding import fold_program
    from bnfold.fold.api import Folding, fold, plan
    from bnfold.fold.decision import Decision
    from bnfold.fold.plan import Plan
    from bnfold.onnx_graph.api import OnnxFolding, fold_onnx
    from bnfold.verify import assert_equivalent, verify

__all__ = [
    "BnfoldError",
    "CaptureError",
    "ChannelAffine",
    "Decision",
    "ExportError",
    "FileAccessError",
    "Folding",
    "MissingPackageError",
    "NeedsInputsError",
    "NotEquivalentError",
    "NotFiniteError",
    "NotFoldedError",
    "OnnxFolding",
    "Plan",
    "RefusedFileError",
    "TrainingModeError",
    "UnknownNameError",
    "UsageError",
    "__version__",
    "affine_of",
    "assert_equivalent",
    "batch",
    "export_onnx",
    "extend",
    "fold",
    "fold_onnx",
    "fold_program",
    "plan",
    "verify",
]

_HOME = {
    "ChannelAffine": "bnfold.affine",
    "affine_of": "bnfold.affine",
    "export_onnx": "bnfold.export",
    "fold_program": "bnfold.export.folding",
    "Folding": "bnfold.fold.api",
    "fold": "bnfold.fold.api",
    "plan": "bnfold.fold.api",
    "OnnxFolding": "bnfold.onnx_graph.api",
    "fold_onnx": "bnfold.onnx_graph.api",
    "Decision": "bnfold.fold.decision",
    "Plan": "bnfold.fold.plan",
    "assert_equivalent": "bnfold.verify",
    "verify": "bnfold.verify",
}


class _Package(ModuleType):
    """``bnfold.fold`` and ``bnfold.verify`` are functions, in packages of the same names.

    Importing ``bnfold.fold.api`` makes Python set ``bnfold.fold`` to the package; here the functions stay.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    if name in ("batch", "extend"):
        return import_module(f"bnfold.{name}")
    value = getattr(import_module(_HOME.get(name, "bnfold.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
