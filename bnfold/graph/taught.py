"""What users have said about modules of their own (:mod:`bnfold.extend`), by exact type, and the reading of it.

A claim is looked up by type and checked on each layer: a pass-through and an absorber where the planner first meets
them (:mod:`bnfold.fold.claims`), a normalisation here, before the model is captured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bnfold.affine import ChannelAffine, affine_of_statistics
from bnfold.errors import UsageError
from bnfold.graph.probes import ROUNDING, affine_errors
from bnfold.graph.shells import double_shell

__all__ = ["TAUGHT", "Absorbs", "Claim", "Normalizes", "Passes", "Statistics", "claim_of", "statistics_of"]


@dataclass(frozen=True)
class Passes:
    """``f(a x + b) = a f(x) + b`` for each channel, under conditions on ``a`` and ``b``."""

    scale: Literal["any", "nonnegative"]
    shift: Literal["any", "zero"]


@dataclass(frozen=True)
class Absorbs:
    """The output's channel c is linear in ``weight[c]``, taken along ``dim``, plus ``bias[c]``."""

    weight: str
    bias: str
    dim: int


@dataclass(frozen=True)
class Normalizes:
    """In eval mode the layer is an affine per channel; ``read`` tells it."""

    read: Callable[[Any], Any]


Claim: TypeAlias = "Passes | Absorbs | Normalizes"

TAUGHT: dict[type[nn.Module], Claim] = {}
"""The claims in force."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What an eval-mode BatchNorm computes with; each tensor of shape ``(C,)``.

    ``rank`` is the only number of dimensions for which the layer is that affine; None where it is one for all it takes.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    rank: int | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """All four, in the order of ``torch.nn.functional.batch_norm``."""
        return self.running_mean, self.running_var, self.weight, self.bias


def claim_of(module: nn.Module) -> Claim | None:
    """Return what was claimed about modules of just this type."""
    return TAUGHT.get(type(module)) if TAUGHT else None


def statistics_of(module: nn.Module, claim: Normalizes, name: str) -> Statistics:
    """Return the statistics of a layer that was said to be a BatchNorm in eval mode.

    Raises:
        UsageError: ``read`` fails or returns something else, or the layer computes another function.
    """
    kind = f"the {type(module).__name__} `{name}`"
    try:
        read, exact = (_statistics_from(claim.read(part)) for part in (module, double_shell(module, {})))
        told = _held_or_exact(read, exact, module)
    except Exception as error:
        raise UsageError(
            f"What was given to bnfold.extend.batchnorm cannot read {kind}: {type(error).__name__}: {error}.",
            fix="Return (running_mean, running_var, eps, weight, bias), each of shape (C,), or a ChannelAffine.",
        ) from error
    agree, differ = _ranks(module, told)
    if not agree or (differ and len(agree) > 1):
        off = min(differ, default=math.inf)
        much = f"they differ by {off:.1e} of the largest value" if off < math.inf else "it gives other shapes"
        raise UsageError(
            f"bnfold.extend.batchnorm was told how to read {kind}, but what it computes is not that affine: {much}.",
            fix="Correct the function that reads it (is eps added before the square root?), or take the rule back.",
        )
    return replace(told, rank=agree[0] if differ else None)


def _statistics_from(answer: Any) -> Statistics:
    if isinstance(answer, ChannelAffine):
        scale = answer.scale
        return Statistics(torch.zeros_like(scale), torch.ones_like(scale), scale, answer.shift, 0.0)
    mean, variance, eps, weight, bias = answer
    for tensor in (mean, variance, weight, bias):
        if tensor is not None and (not isinstance(tensor, Tensor) or tensor.shape != mean.shape or mean.ndim != 1):
            raise TypeError(f"expected tensors of shape ({mean.numel()},)")
    return Statistics(mean, variance, weight, bias, float(eps))


def _held_or_exact(told: Statistics, exact: Statistics, module: nn.Module) -> Statistics:
    """Return the tensors that the layer itself holds, and in float64 those that were computed from them."""
    held = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    pairs = zip(told.tensors, exact.tensors, strict=True)
    mean, variance, weight, bias = (a if b is None or id(a) in held else b.detach().double() for a, b in pairs)
    assert mean is not None
    assert variance is not None
    return Statistics(mean, variance, weight, bias, told.eps)


def _ranks(module: nn.Module, told: Statistics) -> tuple[list[int], list[float]]:
    """Run a float64 copy of the layer on inputs of 2 to 5 dimensions.

    Returns:
        The numbers of dimensions for which it is the affine, and by how much it differs for the others that it takes,
        relative to the largest value; infinity where even the shape is another.
    """
    affine = affine_of_statistics(told.running_mean, told.running_var, told.weight, told.bias, told.eps)
    affine = ChannelAffine(affine.scale.cpu(), affine.shift.cpu())
    errors = dict(affine_errors(double_shell(module, {}), affine, [3.0] * 4))
    agree = [rank for rank, error in errors.items() if error <= ROUNDING]
    return agree, [error for error in errors.values() if error > ROUNDING]
