"""Ask a layer numerically what it computes: float64 copies of it run on random numbers.

No proof, but what people get wrong shows: eps outside of the root, channels mixed, a condition forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnfold.affine import ChannelAffine

__all__ = ["ROUNDING", "SPACES", "affine_errors", "answer", "error_of", "numbers"]

ROUNDING = 1e-9  # of the largest output: float64 rounding stays far below, a wrong claim far above
SPACES: dict[int, tuple[int, ...]] = {4: (3, 2), 3: (5,), 5: (3, 2, 2), 2: ()}
"""For each number of dimensions, the sizes of space to try."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal float64 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")


def answer(layer: Any, x: Tensor) -> Any:
    """Return what a layer gives for a copy of ``x``; None where it does not take it."""
    with torch.no_grad():
        try:
            return layer.forward(x.clone())  # not called: a tracer at work may have patched that
        except Exception:  # whatever unknown code raises
            return None


def error_of(found: Any, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite for NaN, or for another shape."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return math.inf
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
    return math.inf if math.isnan(error) else error


def affine_errors(layer: Any, affine: ChannelAffine, magnitudes: Sequence[float]) -> Iterator[tuple[int, float]]:
    """Yield how far a layer is from an affine along dimension 1, for each number of dimensions that it takes.

    Args:
        layer: in float64.
        affine: on the CPU.
        magnitudes: of the samples of a batch.
    """
    for rank, space in SPACES.items():
        scale = torch.tensor(magnitudes, dtype=torch.float64, device="cpu").reshape(-1, *[1] * (rank - 1))
        x = numbers(len(magnitudes), affine.channels, *space) * scale
        found = answer(layer, x)
        if found is not None:
            yield rank, error_of(found, affine(x))
