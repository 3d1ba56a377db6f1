"""Layers and parameters that somebody else uses too, and layers that are more than their class says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bnfold
from tests.fold.support import Net, assert_same_function, double, error_of_peak, folds, run, values

IMAGES = (2, 3, 8, 8)


def conv(inputs: int = 3, outputs: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def called_twice() -> Net:
    """The convolution's first call has a BatchNorm after it, its second has none."""
    return Net(lambda s, x: s.conv(torch.tanh(s.bn(s.conv(x)))), conv=conv(), bn=nn.BatchNorm2d(3))


def test_a_conv_called_twice_is_not_changed_for_its_other_caller() -> None:
    net = double(called_twice())
    (decision,) = folds(net, values(*IMAGES)).plan
    assert decision.action == "fold"
    assert decision.added_bytes == 8 * (3 * 3 * 3 * 3 + 3)


def test_share_keep_refuses_instead_of_cloning() -> None:
    net = double(called_twice())
    folding = folds(net, values(*IMAGES), share="keep")
    (decision,) = folding.plan
    assert (decision.action, decision.reason, decision.added_bytes) == ("affine", "shared", 0)
    assert "the weights of convolution `conv` are used elsewhere too" in decision.detail
    convolutions = [layer for layer in folding.module.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 1


def test_share_keep_still_folds_what_nobody_else_uses() -> None:
    net = double(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    assert [d.action for d in folds(net, values(*IMAGES), share="keep").plan] == ["fold"]


def test_a_pair_called_twice_folds_at_both_calls_and_adds_nothing() -> None:
    net = double(
        Net(lambda s, x: s.bn(s.conv(torch.tanh(s.bn(s.conv(x))))), conv=conv(), bn=nn.BatchNorm2d(3)),
    )
    folding = folds(net, values(*IMAGES))
    assert [(d.batchnorm, d.action, d.into) for d in folding.plan] == [("bn", "fold", ("conv",))] * 2
    assert [d.site for d in folding.plan] == ["bn", "bn_1"]
    assert len([layer for layer in folding.module.modules() if isinstance(layer, nn.Conv2d)]) == 1


def test_one_conv_with_two_batchnorms_gets_a_clone_for_each() -> None:
    net = double(
        Net(
            lambda s, x: s.first(s.conv(x)) + s.second(s.conv(torch.tanh(x))),
            conv=conv(),
            first=nn.BatchNorm2d(3),
            second=nn.BatchNorm2d(3),
        )
    )
    folding = folds(net, values(*IMAGES))
    assert [(d.batchnorm, d.action) for d in folding.plan] == [("first", "fold"), ("second", "fold")]


def test_one_batchnorm_at_many_sites_folds_at_each() -> None:
    net = double(
        Net(
            lambda s, x: s.bn(s.a(torch.tanh(s.bn(s.b(x))))),
            a=conv(),
            b=conv(),
            bn=nn.BatchNorm2d(3),
        )
    )
    folding = folds(net, values(*IMAGES))
    assert [d.into for d in folding.plan] == [("b",), ("a",)]


def test_one_layer_under_two_names_is_one_layer() -> None:
    shared = conv()
    net = double(Net(lambda s, x: s.b(torch.tanh(s.bn(s.a(x)))), a=shared, b=shared, bn=nn.BatchNorm2d(3)))
    (decision,) = folds(net, values(*IMAGES)).plan
    assert decision.action == "fold"
    assert decision.added_bytes > 0


@pytest.mark.parametrize("tied", ["weight", "bias", "both"])
def test_tied_parameters_are_never_changed_for_their_other_owner(tied: str) -> None:
    net = double(nn.Sequential(conv(), nn.Tanh(), conv(), nn.BatchNorm2d(3)))
    for name in ("weight", "bias") if tied == "both" else (tied,):
        setattr(net[2], name, getattr(net[0], name))
    folding = folds(net, values(*IMAGES))
    (decision,) = folding.plan
    assert (decision.action, decision.into) == ("fold", ("2",))
    assert decision.added_bytes > 0
    for name in ("weight", "bias"):
        assert torch.equal(folding.module.get_parameter(f"0.{name}"), net.get_parameter(f"0.{name}"))


def test_a_weight_that_forward_reads_itself_stays_what_it_was() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.bn(s.conv(x)) + s.conv.bias.view(1, -1, 1, 1) + F.conv2d(x, s.conv.weight, padding=1)

    (decision,) = folds(double(Net(forward, conv=conv(), bn=nn.BatchNorm2d(3))), values(*IMAGES)).plan
    assert decision.action == "fold"


def test_a_functional_convolution_with_a_shared_parameter_gets_its_own() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.conv2d(torch.tanh(s.bn(F.conv2d(x, s.weight, s.bias, padding=1))), s.weight, padding=1)

    parts = {"weight": nn.Parameter(values(3, 3, 3, 3)), "bias": nn.Parameter(values(3))}
    (decision,) = folds(double(Net(forward, bn=nn.BatchNorm2d(3), **parts)), values(*IMAGES)).plan
    assert decision.action == "fold"
    assert decision.added_bytes == 8 * 81


def test_a_parameter_that_a_batchnorm_and_a_conv_share_is_read_by_both() -> None:
    net = double(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    net[1].bias = net[0].bias
    assert [d.action for d in folds(net, values(*IMAGES)).plan] == ["fold"]


# --- hooks -------------------------------------------------------------------------------------------------------


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def raised(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] + 1,)


def with_keywords(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return output - 3


HOOKS = {
    "forward": lambda part: part.register_forward_hook(doubled),
    "pre": lambda part: part.register_forward_pre_hook(raised),
    "keywords": lambda part: part.register_forward_hook(with_keywords, with_kwargs=True),
}


def hooked(where: str, kind: str) -> nn.Module:
    net = double(nn.Sequential(nn.Sequential(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(3)), nn.Tanh()), negative=0.0)
    part = {"conv": "0.0", "pool": "0.1", "bn": "0.2", "container": "0", "root": ""}[where]
    HOOKS[kind](net.get_submodule(part))
    return net


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize(
    ("where", "action"), [("conv", "affine"), ("pool", "affine"), ("bn", "keep"), ("container", "keep")]
)
def test_a_hook_runs_and_is_named_as_the_reason(where: str, action: str, kind: str) -> None:
    net = hooked(where, kind)
    folding = folds(net, values(*IMAGES))
    (decision,) = folding.plan
    assert (decision.batchnorm, decision.action, decision.reason) == ("0.2", action, "hooks")
    assert "hooks" in decision.detail
    plain = hooked("conv", "forward")
    assert error_of_peak(run(plain, values(*IMAGES)), run(net, values(*IMAGES))) > 1e-3 or where == "conv"


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_the_model_itself_are_refused(kind: str) -> None:
    with pytest.raises(bnfold.CaptureError, match=r"carries hooks on itself.*wrap the model"):
        bnfold.fold(hooked("root", kind))


def test_a_hook_that_counts_runs_once_per_call() -> None:
    net = double(nn.Sequential(conv(), nn.Tanh(), nn.BatchNorm2d(3)))
    calls: list[str] = []
    net[1].register_forward_hook(lambda *_: calls.append("tanh"))
    folding = bnfold.fold(net, values(*IMAGES))
    calls.clear()
    folding.module(values(*IMAGES))
    assert calls == ["tanh"]


# --- weights that are computed ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
def test_old_weight_norm_and_spectral_norm_stay_and_are_named(norm: Any) -> None:
    net = double(nn.Sequential(norm(conv()), nn.BatchNorm2d(3)))
    with torch.no_grad():
        net(values(*IMAGES))
    folding = bnfold.fold(net, values(*IMAGES))
    assert error_of_peak(run(net, values(*IMAGES)), run(folding.module, values(*IMAGES))) < 1e-12
    (decision,) = folding.plan
    assert (decision.action, decision.reason) == ("affine", "hooks")


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_new_weight_norm_and_spectral_norm_fold_their_computed_weight(norm: Any) -> None:
    net = double(nn.Sequential(norm(conv()), nn.BatchNorm2d(3)))
    folding = folds(net, values(*IMAGES))
    assert [d.action for d in folding.plan] == ["fold"]


def test_a_parametrization_of_the_user_is_computed_or_refused_but_never_dropped() -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + weight.transpose(2, 3)

    net = double(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    torch.nn.utils.parametrize.register_parametrization(net[0], "weight", Symmetric())
    net.eval()  # a parametrization is born in training mode
    assert [d.action for d in folds(net, values(*IMAGES)).plan] == ["fold"]


def test_a_weight_standardised_convolution_folds_its_standardised_weight() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)

    net = double(nn.Sequential(Standardised(3, 3, 3), nn.BatchNorm2d(3)))
    folding = folds(net, values(*IMAGES))
    assert [d.action for d in folding.plan] == ["fold"]


def test_a_batchnorm_subclass_with_an_activation_keeps_it() -> None:
    class WithRelu(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    net = double(nn.Sequential(conv(), WithRelu(3)))
    folding = folds(net, values(*IMAGES))
    assert (run(folding.module, values(*IMAGES)) >= 0).all()


def test_a_convolution_subclass_with_code_of_its_own_keeps_it() -> None:
    class Squared(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    net = double(nn.Sequential(Squared(3, 3, 3), nn.BatchNorm2d(3)))
    folding = folds(net, values(*IMAGES))
    assert [d.action for d in folding.plan] == ["affine"]


def test_a_plan_of_shared_layers_also_holds_in_float64_for_a_float32_model() -> None:
    net = double(called_twice()).float()
    folding = bnfold.fold(net, values(*IMAGES).float())
    assert_same_function(net, folding, values(*IMAGES).float(), tolerance=1e-5)
