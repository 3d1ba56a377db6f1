"""What is said about a layer is true of the layer, to the last bit where it says so."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnfold.errors import UsageError
from bnfold.report.equation import Way, explain, ulps_between
from tests.networks import randomise, seed_network, seed_network_negative


def ways(layer: nn.Module) -> dict[str, Way]:
    return {way.formula: way for way in explain(layer, "bn").ways}


def test_the_layers_own_way_and_addcmul_are_exact() -> None:
    found = ways(seed_network().bn1)
    for formula in ("fma(x, alpha, beta)", "addcmul(beta, x, alpha)"):
        assert (found[formula].largest_ulps, found[formula].largest, found[formula].differing) == (0, 0.0, 0.0)


def test_the_formula_as_people_write_it_is_off_by_many_ulps_and_little() -> None:
    found = ways(seed_network().bn1)["w * (x - m) / sqrt(v + eps) + b"]
    assert found.largest_ulps > 100
    assert 0 < found.largest < 1e-5
    assert 0.1 < found.differing < 0.9


def test_two_roundings_and_float64_are_not_the_layer_either() -> None:
    found = ways(seed_network().bn1)
    assert found["x * alpha + beta"].largest_ulps > 1
    assert found["scale * x + shift in float64, rounded once"].largest_ulps > 1


def test_mistakes_stand_out_by_orders_of_magnitude() -> None:
    found = ways(seed_network().bn1)
    honest = found["w * (x - m) / sqrt(v + eps) + b"].largest
    assert found["eps forgotten"].largest > 10 * honest
    assert found["the batch's mean and biased variance"].largest > 1000 * honest
    assert found["the batch's mean and unbiased variance"].largest > 1000 * honest


def test_the_batch_ways_differ_from_each_other() -> None:
    found = ways(seed_network().bn1)
    biased, unbiased = (found[f"the batch's mean and {kind} variance"].largest for kind in ("biased", "unbiased"))
    assert biased != unbiased


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(7), nn.BatchNorm3d(5, affine=False), nn.BatchNorm2d(1, eps=1e-2)])
def test_every_kind_of_layer_has_an_exact_way(layer: nn.Module) -> None:
    assert ways(randomise(layer))["fma(x, alpha, beta)"].largest_ulps == 0


def test_a_half_precision_layer_is_explained_in_float32() -> None:
    assert ways(randomise(nn.BatchNorm2d(4).half()))["fma(x, alpha, beta)"].largest_ulps == 0


def test_the_numbers_are_those_of_the_layer() -> None:
    layer = seed_network().bn1
    found = explain(layer, "bn1")
    channel = found.sample[2]
    assert channel.index == 2
    assert channel.weight is not None
    assert channel.bias is not None
    assert channel.mean == layer.running_mean[2].item()
    scale = channel.weight / math.sqrt(channel.variance + layer.eps)
    assert channel.scale == pytest.approx(scale, rel=1e-14)
    assert channel.shift == pytest.approx(channel.bias - channel.mean * scale, rel=1e-13)


def test_the_sample_shows_the_negative_scale_wherever_it_stands() -> None:
    net = seed_network()
    with torch.no_grad():
        net.bn1.weight[29] *= -1
    found = explain(net.bn1, "bn1")
    assert found.negative == 1
    assert 29 in [channel.index for channel in found.sample]
    assert explain(seed_network_negative().bn1, "bn1").negative == 1


def test_a_scale_of_zero_is_counted_and_shown() -> None:
    net = seed_network()
    with torch.no_grad():
        net.bn1.weight[30] = 0
    found = explain(net.bn1, "bn1")
    assert found.zero == 1
    assert 30 in [channel.index for channel in found.sample]


def test_the_same_seed_measures_the_same() -> None:
    layer = seed_network().bn1
    assert explain(layer, "bn1") == explain(layer, "bn1")
    assert explain(layer, "bn1").ways != explain(layer, "bn1", seed=1).ways


def test_a_layer_without_running_statistics_has_no_equation() -> None:
    with pytest.raises(UsageError, match="in eval mode too, so there is no fixed equation"):
        explain(nn.BatchNorm2d(3, track_running_stats=False), "bn")


@pytest.mark.parametrize("variance", [-1.0, float("nan"), float("inf")])
def test_statistics_that_give_no_number_are_refused(variance: float) -> None:
    layer = nn.BatchNorm2d(3)
    layer.running_var[1] = variance
    if math.isinf(variance):
        layer.running_mean[1] = math.inf
    with pytest.raises(UsageError, match="no finite scale and shift"):
        explain(layer, "bn")


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(FLOATS)
def test_the_next_float_is_one_ulp_away(value: float) -> None:
    here = torch.tensor([value])
    above = torch.nextafter(here, torch.tensor([torch.inf]))
    expected = 0 if torch.equal(here, above) else 1
    assert ulps_between(above, here).item() == expected


@given(FLOATS, FLOATS, FLOATS)
def test_ulps_add_up_along_the_line(first: float, second: float, third: float) -> None:
    low, middle, high = (torch.tensor([value]) for value in sorted((first, second, third)))
    whole = ulps_between(high, low)
    assert torch.equal(whole, ulps_between(high, middle) + ulps_between(middle, low))


def test_the_two_zeros_are_one_number() -> None:
    assert ulps_between(torch.tensor([-0.0]), torch.tensor([0.0])).item() == 0
