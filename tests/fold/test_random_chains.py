"""Random chains of convolutions, pools, dropout and BatchNorms: none wrong, and no refusal without need.

Where the plan says that a condition of the pool stands in the way, the move is made anyway by hand, and must show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bnfold
from bnfold import affine_of
from tests.fold.support import ALGEBRA, double, error_of_peak, run, values

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: 24, 2: 14, 3: 8}
OF_A_POOL = {"negative-scale", "padding-counted-in", "divisor-override"}


@dataclass(frozen=True)
class Chain:
    """A random chain: what to build, the numbers to fill it with, and the share of negative scales."""

    dims: int
    layers: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    seed: int
    negative: float
    zero_shift: bool

    def build(self) -> tuple[nn.Sequential, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            channels, layers = 3, list[nn.Module]()
            for kind, options in self.layers:
                layer = _layer(kind, dict(options), self.dims, channels)
                channels = getattr(layer, "out_channels", channels)
                layers.append(layer)
        net = double(nn.Sequential(*layers), seed=self.seed, negative=self.negative)
        for layer in net.modules():
            if self.zero_shift and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                assert layer.running_mean is not None
                layer.running_mean.zero_()
                if layer.affine:
                    layer.bias.data.zero_()
        assert isinstance(net, nn.Sequential)
        return net, values(2, 3, *[SIZE[self.dims]] * self.dims, seed=self.seed)


def _layer(kind: str, options: dict[str, Any], dims: int, channels: int) -> nn.Module:
    if kind == "conv":
        groups = channels if options.pop("depthwise") else 1
        outputs = groups * options.pop("per_group")
        return CONV[dims](channels, outputs, groups=groups, **options)
    if kind == "bn":
        return NORM[dims](channels, **options)
    if kind == "dropout":
        return nn.Dropout(options["p"])
    return getattr(nn, f"{kind}{dims}d")(**options)  # type: ignore[no-any-return]


def _options(**strategies: Any) -> Any:
    return st.fixed_dictionaries(strategies).map(lambda drawn: tuple(sorted(drawn.items())))


def _convs() -> Any:
    return st.tuples(
        st.just("conv"),
        _options(
            kernel_size=st.integers(1, 3),
            stride=st.integers(1, 2),
            padding=st.integers(0, 1),
            dilation=st.integers(1, 2),
            padding_mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
            bias=st.booleans(),
            depthwise=st.booleans(),
            per_group=st.integers(1, 3),
        ),
    )


def _pools(dims: int) -> Any:
    window = {"kernel_size": st.integers(2, 3), "stride": st.integers(1, 2), "padding": st.integers(0, 1)}
    divisor = {"divisor_override": st.none() | st.integers(1, 5)} if dims > 1 else {}
    return st.one_of(
        st.tuples(st.just("MaxPool"), _options(**window, ceil_mode=st.booleans(), dilation=st.integers(1, 2))),
        st.tuples(
            st.just("AvgPool"), _options(**window, ceil_mode=st.booleans(), count_include_pad=st.booleans(), **divisor)
        ),
        st.tuples(st.just("AdaptiveMaxPool"), _options(output_size=st.integers(1, 5))),
        st.tuples(st.just("AdaptiveAvgPool"), _options(output_size=st.integers(1, 5))),
    )


@st.composite
def chains(draw: Any) -> Chain:
    """Draw one to three stages of conv, up to two ops, BatchNorm, and sometimes an activation."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    norm = st.tuples(st.just("bn"), _options(eps=st.sampled_from([1e-12, 1e-5, 1e-1]), affine=st.booleans()))
    between = _pools(dims) | st.tuples(st.just("dropout"), _options(p=st.just(0.5)))
    layers: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        layers += [draw(_convs()), *draw(st.lists(between, max_size=2)), draw(norm)]
        layers += draw(st.lists(between | norm, max_size=1))
    return Chain(
        dims,
        tuple(layers),
        draw(st.integers(0, 10**6)),
        draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])),
        draw(st.booleans()),
    )


def check(chain: Chain) -> None:
    net, x = chain.build()
    try:
        expected = run(net, x)
    except RuntimeError:
        assume(False)  # a window larger than what is left of the image
        return
    assume(bool(torch.isfinite(expected).all()) and float(expected.abs().max()) > 1e-12)
    folding = bnfold.fold(net, x)
    assert error_of_peak(expected, run(folding.module, x)) <= ALGEBRA
    original, folded = folding.in_float64()
    assert error_of_peak(run(original, x), run(folded, x)) <= ALGEBRA
    assert len(folding.plan) == sum(kind == "bn" for kind, _ in chain.layers)
    for decision in folding.plan:
        assert decision.action in ("fold", "affine")
        assert (decision.reason is None) == (decision.action == "fold")
        if decision.reason in OF_A_POOL:
            assert_needed(net, int(decision.batchnorm), x)


def assert_needed(net: nn.Sequential, index: int, x: Tensor) -> None:
    """Move the affine before each op that it could stand behind, and show that one of the moves is wrong.

    Up to the nearest convolution or BatchNorm: there the affine would be absorbed, so that if every move were right,
    the refusal would be without need.
    """
    affine = affine_of(net[index])
    start = index
    while start and not isinstance(net[start - 1], (*CONV.values(), nn.modules.batchnorm._BatchNorm)):
        start -= 1
    with torch.no_grad():
        value = net[:start](x)
        between = net[start:index]
        expected, moved = affine(between(value)), between(affine(value))
    assert error_of_peak(expected, moved) > 1e-9, f"{net[index]} could have crossed {between}"


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(chains())
def test_a_random_chain_keeps_its_function_and_is_refused_only_where_it_must(chain: Chain) -> None:
    check(chain)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=1000, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(chains())
def test_a_thousand_random_chains(chain: Chain) -> None:
    check(chain)
