"""ONNX files from strangers: read without running or allocating anything; written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from bnfold.errors import RefusedFileError
from bnfold.files.words import shown_path

__all__ = ["read_onnx", "write_onnx"]


def read_onnx(path: Path) -> ir.Model:
    """Return the model in a file; its external data stays mapped."""
    try:
        return ir.load(path)
    except Exception as error:
        told = " ".join(str(error).split())[:200].rstrip(".")
        raise RefusedFileError(
            f"{shown_path(path)} cannot be read as an ONNX model: {told}.", fix="Copy it again."
        ) from error


def write_onnx(model: Any, path: Path, *, force: bool, inputs: list[Path]) -> None:
    """Write a model."""
    ir.save(model if isinstance(model, ir.Model) else ir.from_proto(model), path)
