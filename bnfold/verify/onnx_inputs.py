"""Example inputs of an ONNX model, by what it declares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bnfold.errors import UsageError
from bnfold.verify.runtime import OrtModel, counted

__all__ = ["given_inputs", "onnx_inputs"]

BATCH = 2
_FIX = "Give the shape with --input-shape, one for each input in their order, or give real inputs with --inputs."


def onnx_inputs(path: Path, shapes: Sequence[Sequence[int]] = (), *, seed: int = 0) -> tuple[Tensor, ...]:
    """Return inputs that an ONNX model takes: standard normal values; zeros and ones for integers and booleans.

    Args:
        path: of the model.
        shapes: one for each input; where none are given, those that the model declares, with a batch of 2.
        seed: of the values.

    Raises:
        UsageError: a shape is not declared whole and none is given, or they are not as many as the inputs.
        RefusedFileError: ONNX Runtime does not take the model.
    """
    declared = OrtModel(path, "off").declared
    if shapes and len(shapes) != len(declared):
        names = ", ".join(name for name, _, _ in declared)
        raise UsageError(
            f"The ONNX model takes {counted(len(declared), 'input')} ({names}), and {len(shapes)} --input-shape "
            f"{'was' if len(shapes) == 1 else 'were'} given.",
            fix="Give one --input-shape for each, in that order.",
        )
    generator = torch.Generator().manual_seed(seed)
    found = []
    for position, (name, dtype, dims) in enumerate(declared):
        shape = tuple(shapes[position]) if shapes else _shape(name, dims)
        if dtype.is_floating_point:
            found.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            found.append(torch.randint(2, shape, generator=generator).to(dtype))
    return tuple(found)


def given_inputs(path: Path, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return tensors in the floating dtypes that an ONNX model declares; others stay what they are.

    Raises:
        UsageError: they are not as many as the inputs.
    """
    declared = OrtModel(path, "off").declared
    if len(declared) != len(tensors):
        raise UsageError(
            f"The ONNX model takes {counted(len(declared), 'input')}, and the file holds {len(tensors)}.",
            fix="Name the arrays after the inputs.",
        )
    wanted = [dtype for _, dtype, _ in declared]
    return tuple(
        tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor
        for tensor, dtype in zip(tensors, wanted, strict=True)
    )


def _shape(name: str, dims: Sequence[int | str | None]) -> tuple[int, ...]:
    """Return the declared shape, with a batch of 2 where its first dimension is open."""
    if any(not isinstance(size, int) for size in dims[1:]):
        told = "x".join("?" if size is None else str(size) for size in dims)
        raise UsageError(f"The ONNX model declares its input `{name}` as {told}, which leaves sizes open.", fix=_FIX)
    first = [BATCH if not isinstance(size, int) else size for size in dims[:1]]
    return (*first, *(size for size in dims[1:] if isinstance(size, int)))
