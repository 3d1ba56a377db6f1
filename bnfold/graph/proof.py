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

from bnfold.affine import ChannelAffine, affine_of_statistics
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


_SPACES = {2: (), 3: (5,), 4: (3, 2), 5: (3, 2, 2)}
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
    ranks = [rank for rank, space in _SPACES.items() if _agrees(double, affine, space)]
    if any(not torch.equal(tensors[name], tensor) for name, tensor in before.items()):
        return None  # it counts its calls, say
    if len(ranks) == 1:
        return Measured(eps, ranks[0])
    return Measured(eps, None) if len(ranks) == len(_SPACES) else None


def _agrees(layer: nn.Module, affine: ChannelAffine, space: tuple[int, ...]) -> bool:
    """Whether the layer is the affine on inputs of ``2 + len(space)`` dimensions, at magnitudes from 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, affine.channels, *space, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-3, 3, 7, dtype=torch.float64).reshape(7, *[1] * (x.ndim - 1))
    with torch.no_grad():
        try:
            y = layer.forward(x.clone())  # not called: a tracer at work may have patched that
        except Exception:  # does not take inputs of this shape
            return False
    expected = affine(x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return False
    return torch.allclose(y, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
