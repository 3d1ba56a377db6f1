"""Errors, floors and verdicts on tensors made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bnfold.capture.nests import Leaf, flatten
from bnfold.verify.compare import Error, Floor, Limits, Reading, beyond_rounding, judge, measure
from bnfold.verify.floor import ALGEBRA, Evaluated, NoiseFloor
from bnfold.verify.inputs import Case
from bnfold.verify.original import TorchOriginal
from tests.networks import normal

LIMITS = Limits(largest=3.0, mean=2.0)


def test_the_error_is_measured_where_it_is_largest():
    exact = torch.zeros(2, 3, 4, dtype=torch.float64)
    exact[0, 1, 2] = -8.0
    other = exact.float()
    other[1, 2, 3] += 0.5
    other[0, 0, 0] += 0.25
    error = measure(exact, other)
    assert (error.largest, error.where, error.peak) == (0.5, (1, 2, 3), 8.0)
    assert error.mean == pytest.approx(math.sqrt((0.25 + 0.0625) / 24))


def test_equal_tensors_have_no_error_and_no_place():
    x = normal(3, 4).double()
    assert measure(x, x) == Error(0.0, 0.0, float(x.abs().max()), None)
    assert measure(torch.zeros(0, 3).double(), torch.zeros(0, 3)) == Error(0.0, 0.0, 0.0, None)
    assert measure(torch.tensor(2.0).double(), torch.tensor(3.0)).where == ()


def test_tiny_and_huge_errors_neither_vanish_nor_overflow():
    tiny = torch.full((4,), 1e-200, dtype=torch.float64)
    assert measure(torch.zeros(4).double(), tiny).mean == pytest.approx(1e-200)
    assert measure(torch.zeros(4).double(), tiny * 1e300 * 1e100 * 1e100).mean == pytest.approx(1e300)


def test_what_is_not_finite_does_not_count_in_the_error():
    exact = torch.tensor([1.0, float("nan"), float("inf"), 2.0]).double()
    error = measure(exact, torch.tensor([1.5, 3.0, float("inf"), 2.0]))
    assert (error.largest, error.peak) == (0.5, 2.0)


def test_complex_errors_are_distances_in_the_plane():
    assert measure(torch.tensor([0j]).to(torch.complex128), torch.tensor([3 + 4j])).largest == 5.0


def test_integers_are_counted():
    error = measure(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 0], [3, 9]]))
    assert (error.largest, error.peak, error.where, error.counted) == (2.0, 4.0, (0, 1), True)


@pytest.mark.parametrize(
    ("largest", "mean", "passes"),
    [(3.0, 2.0, True), (3.01, 0.1, False), (1.0, 2.01, False), (0.0, 0.0, True)],
)
def test_both_the_largest_and_the_mean_error_must_be_allowed(largest, mean, passes):
    comparison = judge("x", [Reading("a", Error(largest, mean, 100.0, (0,)), Floor(1.0, 1.0))], LIMITS)
    assert comparison.passed is passes
    assert bool(comparison.detail) is not passes


def test_the_worst_reading_is_the_one_told():
    readings = [
        Reading("first", Error(100.0, 10.0, 1e3, (0,)), Floor(100.0, 10.0)),
        Reading("second", Error(5.0, 0.5, 1e3, (1,)), Floor(1.0, 0.5)),
    ]
    comparison = judge("x", readings, LIMITS)
    assert (comparison.case, comparison.max_abs, comparison.noise_floor, comparison.allowed) == (
        "second",
        5.0,
        1.0,
        3.0,
    )
    assert comparison.floors == 5.0
    assert "5 times what rounding makes in the original, on second" in comparison.detail


def test_a_floor_of_zero_allows_no_error():
    assert judge("x", [Reading("a", Error(0.0, 0.0, 0.0, None), Floor(0.0, 0.0))], LIMITS).passed
    wrong = judge("x", [Reading("a", Error(1e-30, 1e-30, 0.0, (0,)), Floor(0.0, 0.0))], LIMITS)
    assert not wrong.passed
    assert wrong.floors == math.inf


@pytest.mark.parametrize(
    ("differ", "own", "size", "passes"),
    [(0, 0, 50, True), (1, 0, 50, False), (3, 1, 50, True), (4, 1, 50, False), (1, 0, 20_000, True)],
)
def test_few_integers_may_differ_where_the_original_s_do(differ, own, size, passes):
    error = Error(float(differ), 0.0, float(size), (0,) if differ else None, counted=True)
    comparison = judge("x", [Reading("a", error, Floor(float(own), 0.0))], LIMITS)
    assert comparison.passed is passes


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (torch.zeros(2), torch.zeros(3), r"shape \(3,\) instead of \(2,\)"),
        (torch.zeros(2), torch.zeros(2).double(), "dtype float64 instead of float32"),
        (torch.zeros(2), torch.tensor([0.0, float("nan")]), r"y is NaN at \[1\], where the original is not"),
        (torch.tensor([0.0, float("nan")]), torch.zeros(2), r"y is not NaN at \[1\], where the original is"),
        (torch.zeros(2), torch.tensor([float("inf"), 0.0]), r"y is infinity at \[0\]"),
        (torch.tensor([float("inf")]), torch.tensor([-float("inf")]), "infinity of the other sign"),
        (torch.zeros(2), 3, "y is a int instead of a Tensor"),
        ("word", torch.zeros(2), "y is a Tensor instead of a str"),
        (3, 3.0, r"y is 3.0 instead of 3"),
        (True, 1, r"y is 1 instead of True"),
    ],
)
def test_what_differs_beyond_rounding_is_said(left, right, words):
    import re

    difference = beyond_rounding(Leaf("y", left), Leaf("y", right))
    assert difference is not None
    assert re.search(words, difference)


def test_what_differs_by_rounding_or_not_at_all_is_not():
    nan = torch.tensor([float("nan"), float("inf"), 1.0])
    for left, right in ((nan, nan + 1e-7), (3, 3), (None, None), (float("nan"), float("nan")), ("a", "a")):
        assert beyond_rounding(Leaf("y", left), Leaf("y", right)) is None


# --- the floor --------------------------------------------------------------------------------------------------------


def evaluated(oracle: torch.Tensor, own: torch.Tensor, name: str = "a") -> Evaluated:
    return Evaluated(Case(name, ()), flatten(oracle), flatten(own))


def test_the_floor_is_the_original_s_own_error():
    exact = normal(100).double()
    own = (exact + 1e-5 * normal(100, seed=8).double()).float()
    floor = NoiseFloor([evaluated(exact, own)]).of(0, 0)
    assert floor.largest == measure(exact, own).largest
    assert floor.mean == measure(exact, own).mean


def test_where_the_original_happens_to_be_exact_the_floor_is_what_is_typical_for_it():
    exact = normal(100).double().float().double()
    noisy = exact.float() * (1 + 1e-4)
    floors = NoiseFloor([evaluated(exact, noisy), evaluated(exact, exact.float(), "b"), evaluated(exact, noisy, "c")])
    assert floors.of(1, 0).largest == pytest.approx(1e-4 * float(exact.abs().max()), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_never_below_half_an_ulp_of_the_peak(dtype):
    exact = torch.tensor([1.0, 0.5]).double()
    floor = NoiseFloor([evaluated(exact, exact.to(dtype))]).of(0, 0)
    assert floor.largest == torch.finfo(dtype).eps / 2


def test_for_float64_it_is_a_tenth_of_what_the_algebra_may_err():
    exact = torch.tensor([2.0, 0.5]).double()
    assert NoiseFloor([evaluated(exact, exact)]).of(0, 0).largest == ALGEBRA / 10 * 2


def test_one_wild_input_does_not_raise_the_floor_of_the_others():
    exact = normal(100).double()
    good, bad = exact.float(), (exact * 1.5).float()
    floors = NoiseFloor([evaluated(exact, good), evaluated(exact, bad, "b"), evaluated(exact, good, "c")])
    assert floors.of(0, 0).largest < 1e-6
    assert floors.of(1, 0).largest > 0.1


class Amplifies(nn.Module):
    """A difference of near-equals: one rounding becomes the whole output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1.0 + 1e-6]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x[:, :1] * self.weight[:1]) - (x[:, :1] * self.weight[1:])) * 1e6


def test_a_network_that_amplifies_a_rounding_gets_a_higher_floor_when_asked_again():
    model, x = Amplifies().eval(), normal(1, 1) + 2
    exact = model.double()(x.double()).detach()
    model = Amplifies().eval()
    item = Evaluated(Case("a", (x,)), flatten(exact), flatten(exact.float()))
    floors = NoiseFloor([item], TorchOriginal(Amplifies()).moved)
    before = floors.of(0, 0).largest
    with torch.no_grad():
        assert floors.redraw([0])
        assert not floors.redraw([0])
    assert floors.of(0, 0).largest > 100 * before
    assert floors.causes(0, 0) == ("redrawn",)


def test_a_network_that_does_not_keeps_its_floor():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval(), normal(8, 64)
    import copy

    with torch.no_grad():
        own = model(x)
        exact = copy.deepcopy(model).double()(x.double())
        floors = NoiseFloor([Evaluated(Case("a", (x,)), flatten(exact), flatten(own))], TorchOriginal(model).moved)
        before = floors.of(0, 0)
        assert floors.redraw([0])
    after = floors.of(0, 0)
    assert before.largest <= after.largest < 2 * before.largest
    assert before.mean <= after.mean < 1.8 * before.mean


def test_without_a_way_to_run_it_again_the_floor_stays():
    assert not NoiseFloor([evaluated(torch.ones(2).double(), torch.ones(2))]).redraw([0])
