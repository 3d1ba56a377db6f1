"""Networks for measuring: BatchNorms with statistics of their own, as a trained model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

__all__ = ["with_statistics"]

M = TypeVar("M", bound=nn.Module)
_STATISTICS: dict[str, Callable[[torch.Tensor], object]] = {
    "running_mean": lambda tensor: tensor.normal_(0, 0.5),
    "bias": lambda tensor: tensor.normal_(0, 0.5),
    "running_var": lambda tensor: tensor.uniform_(0.5, 1.5),
    "weight": lambda tensor: tensor.uniform_(0.5, 1.5),
}


def with_statistics(module: M) -> M:
    """Give every BatchNorm in ``module`` random statistics and parameters, in place, and return it.

    The scales are positive, as most of a trained network's are, so that what a fold does shows.
    """
    for part in module.modules():
        if isinstance(getattr(part, "running_var", None), torch.Tensor):
            with torch.no_grad():
                for name, fill in _STATISTICS.items():
                    tensor = getattr(part, name, None)
                    if tensor is not None:
                        fill(tensor)
    return module
