"""Example inputs of an ONNX model, by what it declares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bnfold.errors import UsageError
from bnfold.verify.runtime import OrtModel, counted

__all__ = ["given_inputs", "onnx_inputs"]

BATCH = 2
_SIZES = (224, 256, 128, 64, 32, 299, 512, 1024, 16000, 48, 320, 16, 8, 4)
_MOST = 2**25  # elements of a guess
_FIX = "Give the shape with --input-shape, one for each input in their order, or give real inputs with --inputs."


def onnx_inputs(
    path: Path, shapes: Sequence[Sequence[int]] = (), *, seed: int = 0, candidate: Path | None = None
) -> tuple[Tensor, ...]:
    """Return inputs that an ONNX model takes: standard normal values; zeros and ones for integers and booleans.

    Args:
        path: of the model.
        shapes: one for each input; where none are given, those that the model declares, with a batch of 2. Sizes that
            it leaves open are tried, the most common first, until it runs.
        seed: of the values.
        candidate: an ONNX model to be compared with it: where that declares a size that this one leaves open, it is
            the size.

    Raises:
        UsageError: the model leaves sizes open, none is given and it runs at none of those tried; or the shapes given
            are not as many as the inputs.
        RefusedFileError: ONNX Runtime does not take the model.
    """
    session = OrtModel(path, "off")
    declared = session.declared
    if shapes and len(shapes) != len(declared):
        names = ", ".join(name for name, _, _ in declared)
        raise UsageError(
            f"The ONNX model takes {counted(len(declared), 'input')} ({names}), and {len(shapes)} --input-shape "
            f"{'was' if len(shapes) == 1 else 'were'} given.",
            fix="Give one --input-shape for each, in that order.",
        )
    dtypes = [dtype for _, dtype, _ in declared]
    if shapes:
        return _drawn([tuple(shape) for shape in shapes], dtypes, seed)
    every = [dims for _, _, dims in declared]
    if candidate is not None:
        others = [dims for _, _, dims in OrtModel(candidate, "off").declared]
        if [len(dims) for dims in others] == [len(dims) for dims in every]:
            every = [
                [one if isinstance(one, int) else other for one, other in zip(dims, also, strict=True)]
                for dims, also in zip(every, others, strict=True)
            ]
    if all(isinstance(size, int) for dims in every for size in dims[1:]):
        return _drawn([_filled(dims, 0) for dims in every], dtypes, seed)
    for size in _SIZES:
        tried = [_filled(dims, size) for dims in every]
        if max(math.prod(shape) for shape in tried) > _MOST:
            continue
        inputs = _drawn(tried, dtypes, seed)
        try:
            answers = session(*inputs)
        except RuntimeError:
            continue
        if any(answer.numel() == 0 for answer in answers):
            continue  # too small to leave anything
        return inputs
    name, dims = next((n, d) for n, _, d in declared if any(not isinstance(size, int) for size in d[1:]))
    told = "x".join("?" if size is None else str(size) for size in dims)
    raise UsageError(
        f"The ONNX model declares its input `{name}` as {told}, which leaves sizes open, and it runs at none of those "
        "that were tried.",
        fix=_FIX,
    )


def _drawn(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator).to(dtype)
        if dtype.is_floating_point
        else torch.randint(2, shape, generator=generator).to(dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )


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


def _filled(dims: Sequence[int | str | None], size: int) -> tuple[int, ...]:
    """Return a shape with a batch of 2 where its first dimension is open, and the others of one size."""
    first = [BATCH if not isinstance(dim, int) else dim for dim in dims[:1]]
    return (*first, *(dim if isinstance(dim, int) else size for dim in dims[1:]))
