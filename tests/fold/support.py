"""What the tests of the fold share: small models made of a function, and a comparison that nothing slips through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bnfold
from bnfold.fold.api import Folding
from tests.networks import randomise

ALGEBRA = 1e-10  # of the peak: what float64 rounding may leave between a model and its fold


class Net(nn.Module):
    """``forward(x) = function(self, x)``; parts become submodules, parameters or buffers by their type."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class TwoInputNet(Net):
    """``forward(x, y) = function(self, x, y)``."""

    function: Callable[..., Any]

    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.function(self, x, y)


def double(model: nn.Module, *, seed: int = 3, negative: float = 0.5) -> Any:
    """Return the model in eval mode and float64, its BatchNorms randomised."""
    return randomise(model, seed, negative=negative).double()


def values(*shape: int, seed: int = 11) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def set_affine(layer: Any, *, scale: Tensor | float | None = None, shift: Tensor | float | None = None) -> None:
    """Change a BatchNorm so that its affine gets this scale and this shift, in place."""
    with torch.no_grad():
        root = torch.sqrt(layer.running_var + layer.eps)
        if scale is not None:
            layer.weight.copy_(scale * root)
        if shift is not None:
            layer.bias.copy_(shift + layer.running_mean * layer.weight / root)
            if isinstance(shift, (int, float)) and shift == 0:  # exactly, not up to rounding
                layer.running_mean.zero_()
                layer.bias.zero_()


def outputs(value: Any) -> list[Tensor]:
    """Return the tensors of a model's output in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in outputs(part)]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in outputs(part)]
    return []


def skeleton(value: Any) -> Any:
    """Return a model's output with each tensor replaced by its shape and dtype."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: skeleton(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), [skeleton(part) for part in value]
    return value


def run(model: nn.Module, *inputs: Any) -> Any:
    """Run on copies of the inputs, and return copies of the outputs' tensors, so that nothing is shared."""
    with torch.no_grad():
        return copy.deepcopy(model(*copy.deepcopy(inputs)))


def error_of_peak(expected: Any, got: Any) -> float:
    """Return the largest difference, as a share of the largest value of that output; infinite where NaNs differ."""
    assert skeleton(expected) == skeleton(got)
    worst = 0.0
    for right, other in zip(outputs(expected), outputs(got), strict=True):
        if not right.numel():
            continue
        if not torch.equal(right.isnan(), other.isnan()):
            return float("inf")
        difference = (right.double() - other.double()).abs().nan_to_num(0.0).max()
        worst = max(worst, float(difference / right.double().abs().nan_to_num(0.0).max().clamp_min(1e-300)))
    return worst


def assert_same_function(model: nn.Module, folding: Folding, *inputs: Any, tolerance: float = ALGEBRA) -> None:
    """Assert that the fold computes what the model does, twice in a row, and that its float64 pair agrees too."""
    for _ in range(2):  # a second run shows state that the first one left behind
        assert error_of_peak(run(model, *inputs), run(folding.module, *inputs)) <= tolerance
    doubles = [value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs]
    original, folded = folding.in_float64()
    assert error_of_peak(run(original, *doubles), run(folded, *doubles)) <= ALGEBRA


def folds(model: nn.Module, *inputs: Any, examples: bool = True, **options: Any) -> Folding:
    """Fold, and assert that the function is the same."""
    folding = bnfold.fold(model, inputs if examples else None, **options)
    assert_same_function(model, folding, *inputs)
    return folding


def decisions(folding: Folding) -> list[tuple[Any, ...]]:
    """Return ``(batchnorm, action, into, through, reason)`` of each decision."""
    return [(d.batchnorm, d.action, d.into, d.through, d.reason) for d in folding.plan]
