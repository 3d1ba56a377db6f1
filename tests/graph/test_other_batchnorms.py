"""Everything that is an eval-mode BatchNorm is read as one, recorded and exported; what only looks like one is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from tests.fold.support import ALGEBRA, Net, double, error_of_peak, folds, run, values

WAYS = ("recorded", "symbolic", "export")
X = values(2, 3, 8, 8)


def tensors(channels: int = 4) -> dict[str, Tensor]:
    """Statistics and parameters of both signs."""
    return {
        "weight": values(channels, seed=1),
        "bias": values(channels, seed=2),
        "running_mean": values(channels, seed=3),
        "running_var": values(channels, seed=4).abs() + 0.1,
    }


class FrozenOfDetectron(nn.Module):
    """Written after detectron2's ``FrozenBatchNorm2d``: two ways to compute it, by whether gradients are wanted."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = channels, eps
        for name, tensor in tensors(channels).items():
            self.register_buffer(name, tensor)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Any) -> Any:
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class FrozenOfTorchvision(nn.Module):
    """Written after torchvision's ``FrozenBatchNorm2d``: arithmetic on reshaped buffers."""

    def __init__(self, channels: int, eps: float = 0.2) -> None:
        super().__init__()
        self.eps = eps
        for name, tensor in tensors(channels).items():
            self.register_buffer(name, tensor)

    def forward(self, x: Any) -> Any:
        shaped = {name: tensor.reshape(1, -1, 1, 1) for name, tensor in self._buffers.items() if tensor is not None}
        scale = shaped["weight"] * (shaped["running_var"] + self.eps).rsqrt()
        return x * scale + (shaped["bias"] - shaped["running_mean"] * scale)


class Quiet(nn.BatchNorm2d):
    """A subclass that changes nothing."""


class WithActivation(nn.BatchNorm2d):
    """A subclass that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def with_statistics(layer: Any) -> Any:
    for name, tensor in tensors().items():
        getattr(layer, name).data.copy_(tensor)
    return layer


def without_tracking(layer: Any) -> Any:
    layer.track_running_stats = False  # the buffers are there, and eval mode uses them
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "without weight and bias": lambda: nn.BatchNorm2d(4, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "with track_running_stats switched off": lambda: without_tracking(nn.BatchNorm2d(4)),
    "InstanceNorm with statistics": lambda: with_statistics(
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ),
    "frozen as in detectron2": lambda: FrozenOfDetectron(4),
    "frozen as in torchvision": lambda: FrozenOfTorchvision(4),
    "a subclass": lambda: Quiet(4),
    "a subclass with an activation": lambda: WithActivation(4),
}
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "F.batch_norm": lambda s, y: F.batch_norm(y, s.running_mean, s.running_var, s.weight, s.bias, False, 0.1, 1e-2),
    "by keywords": lambda s, y: F.batch_norm(running_var=s.running_var, eps=1e-2, input=y, running_mean=s.running_mean),
    "torch.batch_norm": lambda s, y: torch.batch_norm(
        y, s.weight, s.bias, s.running_mean, s.running_var, False, 0.1, 1e-2, True
    ),
    "torch.batch_norm without weight": lambda s, y: torch.batch_norm(
        y, None, None, s.running_mean, s.running_var, False, 0.1, 1e-2, False
    ),
    "F.instance_norm": lambda s, y: F.instance_norm(
        y, s.running_mean, s.running_var, s.weight, s.bias, use_input_stats=False, eps=1e-2
    ),
    "aten": lambda s, y: torch.ops.aten.batch_norm.default(
        y, s.weight, s.bias, s.running_mean, s.running_var, False, 0.1, 1e-2, True
    ),
}


# gone through, and torch's own BatchNorm2d asks for the number of dimensions there
ASKS_A_RUN = {("a subclass with an activation", "symbolic")}
NAMES_AND_WAYS = [(name, way) for name in LAYERS for way in WAYS if (name, way) not in ASKS_A_RUN]


@pytest.mark.parametrize(("name", "way"), sorted(ASKS_A_RUN))
def test_a_layer_that_asks_for_dimensions_is_refused_without_a_run(name: str, way: str) -> None:
    model = double(Net(lambda s, x: s.bn(s.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=LAYERS[name]()))
    with pytest.raises(bnfold.NeedsInputsError, match=r"the number of dimensions, at .*test_other_batchnorms\.py:\d+"):
        bnfold.plan(model, X, capture=way)


@pytest.mark.parametrize(("name", "way"), NAMES_AND_WAYS)
def test_the_layer_folds_into_the_convolution_before_it(name: str, way: str) -> None:
    model = double(Net(lambda s, x: s.bn(s.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=LAYERS[name]()))
    folding = folds(model, X, capture=way)
    assert [(d.batchnorm, d.action) for d in folding.plan] == [("bn", "fold")]


@pytest.mark.parametrize(("name", "way"), NAMES_AND_WAYS)
def test_the_layer_becomes_an_explicit_affine_where_it_must(name: str, way: str) -> None:
    model = double(Net(lambda s, x: s.bn(torch.tanh(s.conv(x))), conv=nn.Conv2d(3, 4, 3), bn=LAYERS[name]()))
    folding = folds(model, X, capture=way)
    assert [(d.batchnorm, d.action) for d in folding.plan] == [("bn", "affine")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_folds_into_the_convolution_before_it(name: str, way: str) -> None:
    apply = FUNCTIONS[name]
    model = double(Net(lambda s, x: apply(s, s.conv(x)), conv=nn.Conv2d(3, 4, 3), **tensors()))
    assert [d.action for d in folds(model, X, capture=way).plan] == ["fold"]


@pytest.mark.parametrize("way", WAYS)
def test_without_statistics_it_keeps_those_of_the_batch_and_says_so(way: str) -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    (decision,) = folds(model, X, capture=way).plan
    assert (decision.action, decision.reason) == ("keep", "batch-statistics")


def test_torchvision_s_frozen_batch_norm_folds() -> None:
    shim = pytest.importorskip("benchmarks.shim")
    if not shim.available("torchvision"):
        pytest.skip("torchvision is not installed")
    shim.load("torchvision")
    from torchvision.ops import FrozenBatchNorm2d

    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), with_statistics(FrozenBatchNorm2d(4, eps=0.3)).double()))
    assert [d.action for d in folds(model, X).plan] == ["fold"]


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised when it runs: not linear in its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Cubed(nn.Conv2d):
    """A convolution whose output is no longer linear in its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


class Plain(nn.Conv2d):
    """A convolution by another name."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "action"), [(Standardised, "fold"), (Cubed, "affine"), (Plain, "fold")])
def test_a_subclass_of_a_convolution_is_gone_through(kind: type[nn.Module], action: str, way: str) -> None:
    model = double(nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4)))
    folding = folds(model, X, capture=way)
    assert [d.action for d in folding.plan] == [action]
    if kind is Standardised:  # the fold is in a weight of its own: the standardised one times the scale
        doubled = bnfold.fold(model, X, capture=way).module
        assert error_of_peak(run(model, X * 2), run(doubled, X * 2)) <= ALGEBRA


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_layer_is_measured_again_after_its_eps_changed(way: str) -> None:
    model: Any = double(nn.Sequential(nn.Conv2d(3, 4, 3), FrozenOfTorchvision(4)))
    for eps in (0.2, 0.7):
        model[1].eps = eps
        assert [d.action for d in folds(model, X, capture=way).plan] == ["fold"]
