"""The batch dimension of example inputs: which inputs have one, and inputs of another batch size.

Imported by the exports, which make it dynamic, and by the verifier, which runs several sizes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError

__all__ = ["as_tuple", "batch_positions", "with_batch"]


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """Return ``example_inputs`` as a tuple of positional inputs.

    Raises:
        UsageError: it is neither a tensor nor a tuple or list that holds one, be it inside of a list or dict.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    leaves = pytree.tree_leaves(inputs)
    if not isinstance(inputs, (tuple, list)) or not any(isinstance(leaf, Tensor) for leaf in leaves):
        kind = type(example_inputs).__name__
        raise UsageError(
            "No example inputs are given." if inputs is None else f"The example inputs, a {kind}, hold no tensor.",
            fix="Pass a tensor, or a tuple of positional inputs.",
        )
    return tuple(inputs)


def batch_positions(inputs: Sequence[Any]) -> tuple[int, ...]:
    """Return the positions of the inputs whose first dimension is the batch.

    The batch is the first dimension of the first input that has one; every other tensor whose first dimension is of the
    same size has it too. Scalars (0-d tensors) and what is not a tensor have no batch, nor have tensors inside of a
    list: detectors take a list of images, each ``(C, H, W)``.

    >>> batch_positions((torch.zeros(4, 3), torch.tensor(1.0), torch.zeros(4), torch.zeros(7), 5))
    (0, 2)
    """
    first = next((value for value in inputs if isinstance(value, Tensor) and value.ndim > 0), None)
    if first is None:
        return ()
    return tuple(
        position
        for position, value in enumerate(inputs)
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == first.shape[0]
    )


def with_batch(inputs: Sequence[Any], size: int, positions: Sequence[int] | None = None) -> tuple[Any, ...]:
    """Return ``inputs`` with batch ``size``: samples are repeated in turn, or left out.

    Args:
        inputs: positional inputs.
        size: of the new batch.
        positions: of the inputs that have a batch; found by :func:`batch_positions` if not given.

    >>> with_batch((torch.tensor([1, 2]),), 3)[0].tolist()
    [1, 2, 1]
    """
    chosen = batch_positions(inputs) if positions is None else positions
    return tuple(
        value[torch.arange(size, device=value.device) % max(1, value.shape[0])] if position in chosen else value
        for position, value in enumerate(inputs)
    )
