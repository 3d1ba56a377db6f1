"""Is a layer of unknown code an eval-mode BatchNorm? Ask it.

torchvision, detectron2 and others have frozen BatchNorms of their own: buffers called like those of a BatchNorm, and a
few lines that use them. Whether these lines mean the same is not read off names but measured: in float64, on inputs of
many magnitudes, for each number of dimensions that the layer takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bnfold.affine import affine_of_statistics
from bnfold.graph.probes import SPACES, affine_errors
from bnfold.graph.shells import double_shell

__all__ = ["behaves_like_batch_norm", "forget", "measured_batch_norm"]


@dataclass(frozen=True)
class Measured:
    """How a layer is an eval-mode BatchNorm.

    Attributes:
        eps: its eps; 0 where it has none.
        rank: the only number of dimensions for which it is one; None where it is one for 2 to 5.
    """

    eps: float
    rank: int | None


_EXACT = 1e-12  # of the largest value
_ANSWERS: WeakKeyDictionary[nn.Module, Measured | None] = WeakKeyDictionary()


def behaves_like_batch_norm(module: nn.Module) -> bool:
    """Whether a layer with ``running_mean`` and ``running_var`` computes just what an eval-mode BatchNorm would."""
    return measured_batch_norm(module) is not None


def measured_batch_norm(module: nn.Module) -> Measured | None:
    """Return how the layer is an eval-mode BatchNorm, or None if it is none."""
    tensors = {**module._parameters, **module._buffers}
    if module._modules or not isinstance(tensors.get("running_mean"), Tensor):
        return None
    if not isinstance(tensors.get("running_var"), Tensor):
        return None
    try:
        return _ANSWERS[module]
    except KeyError:
        pass
    try:
        found = _measure(module)
    except Exception:  # whatever unknown code raises: then it is not what was asked for
        found = None
    _ANSWERS[module] = found
    return found


def forget() -> None:
    """Forget what was measured: a layer's eps, or another setting, may have changed since."""
    _ANSWERS.clear()


def _measure(module: nn.Module) -> Measured | None:
    double = double_shell(module, {})
    tensors = {**double._parameters, **double._buffers}
    eps = float(getattr(module, "eps", 0.0))
    affine = affine_of_statistics(
        tensors["running_mean"], tensors["running_var"], tensors.get("weight"), tensors.get("bias"), eps
    )
    before = {name: tensor.clone() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    magnitudes = [10.0**power for power in range(-3, 4)]
    ranks = [rank for rank, error in affine_errors(double, affine, magnitudes) if error <= _EXACT]
    if any(not torch.equal(tensors[name], tensor) for name, tensor in before.items()):
        return None  # it counts its calls, say
    if len(ranks) == 1:
        return Measured(eps, ranks[0])
    return Measured(eps, None) if len(ranks) == len(SPACES) else None
