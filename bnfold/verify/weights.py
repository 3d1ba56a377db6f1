"""The weights of a folded module against those that its plan gives in float64: each is that number, rounded once.

A comparison of outputs cannot see a channel that no input brings to life. This one reads the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bnfold.affine import affine_of
from bnfold.errors import BnfoldError
from bnfold.fold.explicit import ExplicitAffine
from bnfold.on_demand import made
from bnfold.verify.compare import measure
from bnfold.verify.report import Comparison

__all__ = ["WEIGHTS", "compare_weights"]

WEIGHTS = "weights against the plan"

ULPS = 4.0
"""Units in the last place of its tensor's peak that a weight may be off; rounding once leaves half a one."""


def compare_weights(original: nn.Module, exact: nn.Module, candidate: nn.Module) -> Comparison | None:
    """Return the comparison of the weights, or None where the two do not hold tensors of the same names and shapes.

    An explicit affine is computed in its own precision, bit for bit as the BatchNorm does. Its shift, a difference
    between the bias and mean * scale, is then held to the last places of these and not of itself.

    Args:
        original: the model before the fold; its BatchNorms are read.
        exact: the plan applied in float64.
        candidate: the folded module as it is.
    """
    want, have = dict(_tensors(exact)), dict(_tensors(candidate))
    if want.keys() != have.keys() or any(want[name].shape != have[name].shape for name in want):
        return None
    sizes = dict(_sizes_of_shifts(original, candidate))
    readings = [_read(name, made(right), have[name], sizes.get(name, 0.0)) for name, right in want.items()]
    return max(readings, key=_strain, default=None)


def _read(name: str, right: Tensor, tensor: Tensor, size: float) -> Comparison:
    """Return the comparison of one tensor; ``size`` is that of the numbers it was computed from, where larger."""
    error = measure(right, tensor)
    ulp = torch.finfo(tensor.dtype).eps * max(error.peak, size)
    finite = torch.equal(torch.isfinite(tensor), torch.isfinite(right.to(tensor.device)))
    passed = finite and error.largest <= ULPS * ulp
    where = f" at {list(error.where)}" if error.where else ""
    what = f"`{name}`{where} is not what the plan gives in float64" if finite else f"`{name}` is not finite"
    return Comparison(
        name=WEIGHTS,
        max_abs=error.largest if finite else math.inf,
        peak=error.peak,
        rms=error.mean,
        noise_floor=ulp / 2,
        allowed=ULPS * ulp,
        passed=passed,
        where=error.where,
        detail="" if passed else what,
    )


def _strain(comparison: Comparison) -> float:
    if comparison.allowed > 0:
        return comparison.max_abs / comparison.allowed
    return math.inf if comparison.max_abs > 0 else 0.0


def _sizes_of_shifts(original: nn.Module, candidate: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield the shift of each explicit affine and the size of what it is the difference of."""
    layers = dict(original.named_modules())
    for name, layer in candidate.named_modules():
        if not isinstance(layer, ExplicitAffine):
            continue
        try:
            affine = affine_of(layers[name])
            size = (layers[name].running_mean.double().to(affine.scale.device) * affine.scale).abs().max()
            yield f"{name}.bias", float(size)
        except (KeyError, BnfoldError):
            yield f"{name}.bias", 1e3 * float(layer.bias.detach().abs().max())  # a bare F.batch_norm: its mean is lost


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()
