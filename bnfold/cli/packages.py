"""Which packages a step needs, told before any work is done."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnfold.errors import MissingPackageError, UsageError
from bnfold.witness.registry import require

__all__ = ["check_witnesses", "is_installed", "require_for"]

_WRITERS = {".onnx": ("onnx", "onnxscript"), ".safetensors": ("safetensors",)}


def require_for(outputs: Iterable[Path], *, proof: bool) -> None:
    """Check that what writes and verifies these outputs is installed.

    Args:
        outputs: their suffixes say the kinds.
        proof: whether they are verified.

    Raises:
        MissingPackageError: something is not installed; the error says what works without it.
    """
    for suffix in dict.fromkeys(path.suffix for path in outputs):
        for package in _WRITERS.get(suffix, ()):
            if not is_installed(package):
                raise MissingPackageError(
                    f"Writing {suffix} needs the package {package}, which is not installed.",
                    fix=f"Run `pip install {package}`; `-o model.pt2` needs nothing more.",
                )
        if suffix == ".onnx" and proof and not is_installed("onnxruntime"):
            raise MissingPackageError(
                "Verifying .onnx needs the package onnxruntime, which is not installed.",
                fix="Run `pip install onnxruntime`; without it `-o model.pt2` is verified in torch, and --no-verify "
                "writes .onnx without proof.",
            )


def check_witnesses(names: Sequence[str], *, proof: bool) -> None:
    """Check that the runtimes that are to witness are known, and asked for where there is a proof.

    Raises:
        UsageError: one is not, or nothing is verified.
    """
    require(names)
    if names and not proof:
        raise UsageError("--witness and --no-verify were both given.", fix="Leave one out: a witness is a proof.")


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
