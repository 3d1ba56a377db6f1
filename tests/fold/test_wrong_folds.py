"""The table of folds that others get wrong, side by side with ``torch.fx.experimental.optimization.fuse``.

For each case bnfold's output equals the model's to 1e-12 of the peak in float64; the usual tool computes another
function, leaves the BatchNorm, or fails, which is asserted too, so that the table stays true.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from examples.seed_network import Net as SeedNetwork
from tests.fold.support import Net, double, error_of_peak, folds, run, values
from tests.networks import seed_network, seed_network_negative

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.fx.experimental.optimization import fuse

Outcome = Literal["wrong", "left", "fails"]
Built = tuple[nn.Module, Tensor]


def conv(inputs: int = 3, outputs: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def one_conv_at_two_sites() -> Built:
    net = Net(lambda s, x: s.conv(torch.tanh(s.bn(s.conv(x)))), conv=conv(), bn=nn.BatchNorm2d(3))
    return double(net), values(2, 3, 8, 8)


def one_conv_at_two_sites_the_second_with_a_batchnorm() -> Built:
    net = Net(lambda s, x: s.bn(s.conv(torch.tanh(s.conv(x)))), conv=conv(), bn=nn.BatchNorm2d(3))
    return double(net), values(2, 3, 8, 8)


def a_pair_called_twice() -> Built:
    net = Net(lambda s, x: s.bn(s.conv(torch.tanh(s.bn(s.conv(x))))), conv=conv(), bn=nn.BatchNorm2d(3))
    return double(net), values(2, 3, 8, 8)


def one_conv_with_two_batchnorms() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.first(s.conv(x)) + s.second(s.conv(torch.tanh(x)))

    return double(Net(forward, conv=conv(), first=nn.BatchNorm2d(3), second=nn.BatchNorm2d(3))), values(2, 3, 8, 8)


def linear_with_channels_in_the_middle() -> Built:
    return double(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))), values(2, 5, 6)


def a_linear_layer_at_two_sites() -> Built:
    net = Net(lambda s, x: s.fc(torch.tanh(s.bn(s.fc(x)))), fc=nn.Linear(6, 6), bn=nn.BatchNorm1d(6))
    return double(net), values(3, 6)


def a_hook_on_the_convolution() -> Built:
    net = double(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    net[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    return net, values(2, 3, 8, 8)


def a_hook_on_the_batchnorm() -> Built:
    net = double(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    net[1].register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
    return net, values(2, 3, 8, 8)


def old_weight_norm() -> Built:
    net = double(nn.Sequential(torch.nn.utils.weight_norm(conv()), nn.BatchNorm2d(3)))
    with torch.no_grad():
        net(values(2, 3, 8, 8))
    return net, values(2, 3, 8, 8)


def a_convolution_that_shares_its_weight() -> Built:
    net = double(nn.Sequential(conv(), nn.Tanh(), conv(), nn.BatchNorm2d(3)))
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    return net, values(2, 3, 8, 8)


def a_transposed_convolution_with_groups() -> Built:
    return double(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))), values(2, 4, 6, 6)


def conv_pool_batchnorm() -> Built:
    return double(nn.Sequential(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(3)), negative=0.0), values(2, 3, 8, 8)


def a_relu_between() -> Built:
    return double(nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(3))), values(2, 3, 8, 8)


def a_batchnorm_after_a_sum() -> Built:
    net = Net(lambda s, x: s.bn(s.a(x) + s.b(x)), a=conv(), b=conv(), bn=nn.BatchNorm2d(3))
    return double(net), values(2, 3, 8, 8)


CASES: list[tuple[Callable[[], Built], Outcome, list[str]]] = [
    (one_conv_at_two_sites, "wrong", ["fold"]),
    (one_conv_at_two_sites_the_second_with_a_batchnorm, "wrong", ["fold"]),
    (a_pair_called_twice, "wrong", ["fold", "fold"]),
    (one_conv_with_two_batchnorms, "wrong", ["fold", "fold"]),
    (linear_with_channels_in_the_middle, "wrong", ["affine"]),
    (a_linear_layer_at_two_sites, "wrong", ["fold"]),
    (a_hook_on_the_convolution, "wrong", ["affine"]),
    (a_hook_on_the_batchnorm, "wrong", ["keep"]),
    (old_weight_norm, "fails", ["affine"]),
    (a_transposed_convolution_with_groups, "left", ["fold"]),
    (conv_pool_batchnorm, "left", ["fold"]),
    (a_batchnorm_after_a_sum, "left", ["fold"]),
    (a_relu_between, "left", ["affine"]),
]


def batchnorms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_bnfold_keeps_the_function(case: tuple[Callable[[], Built], Outcome, list[str]]) -> None:
    build, _, actions = case
    net, x = build()
    folding = folds(net, x)
    assert error_of_peak(run(net, x), run(folding.module, x)) <= 1e-12
    assert [decision.action for decision in folding.plan] == actions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_the_usual_tool_does_not(case: tuple[Callable[[], Built], Outcome, list[str]]) -> None:
    build, outcome, _ = case
    net, x = build()
    expected = run(net, x)
    if outcome == "fails":
        with pytest.raises((TypeError, RuntimeError, AttributeError)):
            run(fuse(net), x)
        return
    fused = fuse(copy.deepcopy(net))
    error = error_of_peak(expected, run(fused, x))
    if outcome == "wrong":
        assert error > 1e-2
    else:
        assert error < 1e-12
        assert batchnorms(fused) == batchnorms(net) == 1


@pytest.mark.parametrize("share", ["clone", "keep"])
@pytest.mark.parametrize(
    "build",
    [one_conv_at_two_sites, a_pair_called_twice, one_conv_with_two_batchnorms, a_convolution_that_shares_its_weight],
)
def test_both_ways_of_sharing_keep_the_function(build: Callable[[], Built], share: str) -> None:
    net, x = build()
    folding = folds(net, x, share=share)
    assert error_of_peak(run(net, x), run(folding.module, x)) <= 1e-12
    assert {decision.reason for decision in folding.plan} == ({None} if share == "clone" else {"shared"})


def test_tied_weights_the_usual_tool_keeps_because_it_copies() -> None:
    # the other half of the sharing row: a tied parameter is not what goes wrong there
    net, x = a_convolution_that_shares_its_weight()
    assert error_of_peak(run(net, x), run(fuse(copy.deepcopy(net)), x)) < 1e-12


def test_on_the_seed_network_the_usual_tool_leaves_the_batchnorm_and_bnfold_does_not() -> None:
    net = seed_network().double()
    x = values(2, 1, 28, 28)
    assert isinstance(net, SeedNetwork)
    assert batchnorms(fuse(copy.deepcopy(net))) == 1
    folding = folds(net, x)
    assert batchnorms(folding.module) == 0
    (decision,) = folding.plan
    assert (decision.action, decision.into, decision.through) == ("fold", ("conv1",), ("pool",))


def test_with_one_negative_gamma_the_seed_network_gets_an_explicit_affine() -> None:
    net = seed_network_negative().double()
    folding = folds(net, values(2, 1, 28, 28))
    (decision,) = folding.plan
    assert (decision.action, decision.reason) == ("affine", "negative-scale")
    assert "1 of 32 scales is negative" in decision.detail
