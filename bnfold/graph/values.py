"""Whether a model has values to compute with, and whether they were written to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnfold.errors import UsageError

__all__ = ["require_values", "version", "was_written"]


def require_values(parts: Mapping[str, nn.Module]) -> None:
    """Raise for weights that have no values yet.

    Args:
        parts: a model's modules by name.

    Raises:
        UsageError: a lazy layer has never run; or a tensor is on the meta device, and there are statistics to fold.
    """
    meta, statistics = None, False
    for path, part in parts.items():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            if is_lazy(tensor):
                raise UsageError(
                    f"`{full}` has no values yet: its layer is lazy.", fix="Run the model once, then fold it."
                )
            statistics |= name == "running_mean"
            if meta is None and tensor.is_meta:
                meta = full
    if meta is not None and statistics:
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
    if tensor.is_meta or torch.equal(tensor, content):
        return False
    both_nan = torch.isnan(tensor) & torch.isnan(content)
    return bool(((tensor != content) & ~both_nan).any())
