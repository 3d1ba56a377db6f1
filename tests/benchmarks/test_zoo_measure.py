"""Distances, counts, and which BatchNorms a comparison can see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo_measure import Throughout64, call, count_batch_norm_calls, distance, in_double, unseen
from tests.networks import randomise

ONE = torch.tensor([1.0, -4.0])


@pytest.mark.parametrize(
    ("oracle", "other", "expected"),
    [
        ([ONE], [ONE], 0.0),
        ([ONE], [ONE + torch.tensor([0.0, 1.0])], 0.25),
        ([ONE, ONE * 100], [ONE, ONE * 100 + 40], 0.1),
        ([ONE], [ONE, ONE], math.inf),
        ([ONE], [ONE[:1]], math.inf),
        ([ONE], [None], math.inf),
        ([None, 3], [None, 3], 0.0),
        ([3], [4], math.inf),
        ([torch.tensor([1, 2])], [torch.tensor([1, 3])], math.inf),
        ([torch.tensor([1, 2])], [torch.tensor([1, 2])], 0.0),
        ([ONE * math.nan], [ONE], math.inf),
        ([ONE], [ONE * math.inf], math.inf),
        ([torch.tensor([math.inf, 2.0])], [torch.tensor([math.inf, 2.0])], 0.0),
        ([torch.tensor([math.inf, 2.0])], [torch.tensor([-math.inf, 2.0])], math.inf),
        ([torch.zeros(2)], [torch.tensor([0.0, 1e-3])], 1e-3),
        ([torch.zeros(0)], [torch.zeros(0)], 0.0),
    ],
)
def test_a_distance_is_in_units_of_the_peak(oracle: list[Any], other: list[Any], expected: float) -> None:
    assert distance(oracle, other) == pytest.approx(expected, rel=1e-6)


def test_batch_norms_are_counted_as_modules_functions_and_inside_of_modules() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.BatchNorm2d(2)
            self.unused = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(self.layer(x))
            return nn.functional.batch_norm(x, self.layer.running_mean, self.layer.running_var)

    assert count_batch_norm_calls(torch.fx.symbolic_trace(Both().eval())) == 3
    assert count_batch_norm_calls(Both()) == 2
    assert count_batch_norm_calls(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))) == 1


class Gated(nn.Module):
    def __init__(self, gate: float) -> None:
        super().__init__()
        self.open = nn.BatchNorm2d(3)
        self.shut = nn.BatchNorm2d(3)
        self.gate = gate

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.open(x) + self.gate * self.shut(x)}


@pytest.mark.parametrize(("gate", "hidden"), [(0.0, ["shut"]), (1e-12, ["shut"]), (1e-3, [])])
def test_a_batch_norm_that_does_not_move_the_output_is_unseen(gate: float, hidden: list[str]) -> None:
    model = randomise(Gated(gate)).double()
    assert unseen(model, (torch.randn(2, 3, 4, 4, dtype=torch.float64),), seed=0) == hidden


def test_a_batch_norm_that_is_not_called_is_not_missed() -> None:
    model = randomise(nn.Sequential(nn.BatchNorm2d(3))).double()
    model[0].register_module("spare", nn.BatchNorm2d(3))
    assert unseen(model, (torch.randn(2, 3, 4, 4, dtype=torch.float64),), seed=0) == []


def test_outputs_are_flat_whatever_holds_them() -> None:
    @dataclass
    class Output:
        first: Tensor
        second: list[Tensor]

    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Output, dict[str, Tensor | None]]:
            return Output(x, [x + 1]), {"third": x + 2, "none": None}

    flat = call(Model(), (torch.zeros(1),))
    assert [None if leaf is None else float(leaf) for leaf in flat] in ([0, 1, 2, None], [0, 1, None, 2])


def test_code_that_asks_for_float32_computes_in_float64() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() / 3 + torch.full((1,), 1 / 3, dtype=torch.float32).to(x.dtype)

    (inputs,) = in_double((torch.ones(1),))
    (plain,) = call(Narrow(), (inputs,))
    assert abs(float(plain) - 2 / 3) > 1e-9
    with Throughout64():
        (wide,) = call(Narrow(), (inputs,))
    assert wide.dtype == torch.float64
    assert abs(float(wide) - 2 / 3) < 1e-15


def test_what_a_model_draws_at_random_is_the_same_at_each_call() -> None:
    assert distance(call(lambda x: x + torch.randn(2), (ONE,)), call(lambda x: x + torch.randn(2), (ONE,))) == 0
