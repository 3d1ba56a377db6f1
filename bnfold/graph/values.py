"""Whether a model has values to compute with, and whether they were written to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnfold.errors import UsageError

__all__ = ["require_values", "version", "was_written"]


def require_values(model: nn.Module) -> None:
    """Raise for weights that have no values yet.

    Raises:
        UsageError: a lazy layer has never run; or a tensor is on the meta device, and there are statistics to fold.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise UsageError(f"`{lazy}` has no values yet: its layer is lazy.", fix="Run the model once, then fold it.")
    meta = next((name for name, tensor in tensors if tensor.is_meta), None)
    if meta is not None and any(name.rpartition(".")[2] == "running_mean" for name, _ in tensors):
        raise UsageError(
            f"`{meta}` has no values: it is on the meta device.", fix="Load the model's weights, then fold it."
        )


def version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None for one made in inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def was_written(tensor: Tensor, before: int | None, content: Tensor) -> bool:
    """Whether a tensor was written to since it had this version and this content."""
    if before is not None:
        return tensor._version != before
    both_nan = torch.isnan(tensor) & torch.isnan(content)
    return bool(((tensor != content) & ~both_nan).any())
