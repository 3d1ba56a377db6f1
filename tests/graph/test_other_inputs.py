"""Inputs that are no tensors: the folded model is right for what it was captured with, and refuses the rest."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import OtherInputError
from tests.fold.support import ALGEBRA, double, error_of_peak, run, values


class Mode(Enum):
    ONE = 1
    TWO = 2


class Chooses(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.choose = forward

    def forward(self, x: Tensor, choice: Any) -> Tensor:
        return self.choose(self.bn(self.conv(x)), choice)  # type: ignore[no-any-return]


def repeated(y: Tensor, n: int) -> Tensor:
    for _ in range(n):
        y = y * 2
    return y


# what the model does with its second input, the example's and another
CHOICES: dict[str, tuple[Any, Any, Any]] = {
    "none": (lambda y, c: y if c is None else y * c, None, torch.tensor(3.0, dtype=torch.float64)),
    "is true": (lambda y, c: y * 2 if c is True else y, True, False),
    "flag": (lambda y, c: y * 2 if c else y, False, True),
    "name": (lambda y, c: y * 2 if c == "a" else y, "a", "b"),
    "enum": (lambda y, c: y * 2 if c is Mode.ONE else y, Mode.ONE, Mode.TWO),
    "count": (repeated, 2, 3),
    "compared": (lambda y, c: y * 2 if c > 1.5 else y, 2.0, 1.0),
    "in a dict": (lambda y, c: y * 2 if c["n"] > 1 else y, {"n": 2}, {"n": 1}),
    "in a tuple": (lambda y, c: y * 2 if c[1] > 1 else y, (1, 2), (1, 1)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_captured_and_another_is_refused(name: str) -> None:
    forward, choice, other = CHOICES[name]
    net, x = double(Chooses(forward)), values(2, 3, 9, 9)
    folding = bnfold.fold(net, (x, choice))
    assert folding.plan.capture == "recorded"
    assert folding.plan.summary["fold"] == 1
    assert error_of_peak(run(net, x, choice), run(folding.module, x, choice)) <= ALGEBRA
    assert error_of_peak(run(net, x, other), run(net, x, choice)) > 0.1
    with pytest.raises(OtherInputError, match=r"captured as .* pass it in example_inputs"):
        folding.module(x, other)


@pytest.mark.parametrize(
    "factor",
    [lambda n: 2.0 if n in {1, 2} else 1.0, lambda n: {1: 5.0}.get(n, 1.0)],
    ids=["in a set", "key of a dict"],
)
def test_a_size_that_is_looked_up_is_a_size(factor: Any) -> None:
    net = double(Chooses(lambda y, _: y * factor(y.shape[0])))
    for size in (1, 2, 3):
        x = values(size, 3, 9, 9)
        folding = bnfold.fold(net, (x, None))
        assert error_of_peak(run(net, x, None), run(folding.module, x, None)) <= ALGEBRA


KIND = {
    "recorded": r"where the dtype of `choice`, at .*test_other_inputs\.py:\d+ is torch\.\w+, and here it is torch\.",
    "export": r"is of torch\.\w+, and this graph was captured by torch.export for",
}


@pytest.mark.parametrize("way", KIND)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_the_kind_of_numbers_that_was_captured_is_asked_for(kind: torch.dtype, way: str) -> None:
    net = double(Chooses(lambda y, z: y * 2 if z.dtype == torch.uint8 else y))
    x, given = values(2, 3, 9, 9), torch.zeros(2, 4, 7, 7).to(kind)
    folding = bnfold.fold(net, (x, given), capture=way)
    assert folding.plan.capture == way
    assert error_of_peak(run(net, x, given), run(folding.module, x, given)) <= ALGEBRA
    other = given.to(torch.uint8 if kind.is_floating_point else torch.float32)
    with pytest.raises(OtherInputError, match=KIND[way]):
        folding.module(x, other)


def test_single_and_double_precision_are_told_apart_where_the_code_tells_them_apart() -> None:
    net = double(Chooses(lambda y, z: y * 2 if z.dtype == torch.float64 else y))
    x, given = values(2, 3, 9, 9), values(2, 4, 7, 7)
    folding = bnfold.fold(net, (x, given))
    try:
        got = run(folding.module, x, given.float())
    except OtherInputError:
        return
    assert error_of_peak(run(net, x, given.float()), got) <= ALGEBRA


@pytest.mark.parametrize("way", ["recorded", "export"])
def test_one_tensor_given_twice_is_two_inputs(way: str) -> None:
    net = double(Chooses(lambda y, z: y - 2 * z if z.shape[2] > 2 else y))
    z = values(2, 4, 7, 7)
    net.conv = nn.Conv2d(4, 4, 1).double().eval()
    folding = bnfold.fold(net, (z, z), capture=way)
    assert folding.plan.capture == way
    other = values(2, 4, 7, 7) * 3 + 1
    assert error_of_peak(run(net, z, other), run(folding.module, z, other)) <= ALGEBRA


@pytest.mark.parametrize("way", ["recorded", "export"])
def test_an_input_of_size_one_is_no_batch_of_one(way: str) -> None:
    net = double(Chooses(lambda y, k: y * k if y.shape[2] > 2 else y))
    x, k = values(2, 3, 9, 9), values(1, 1, 1, 1)
    folding = bnfold.fold(net, (x, k), capture=way)
    assert error_of_peak(run(net, x, k), run(folding.module, x, k)) <= ALGEBRA
    assert error_of_peak(run(net, x[:1], k), run(folding.module, x[:1], k)) <= ALGEBRA


class CallsTwice(nn.Module):
    """Its own forward cannot be captured, and it calls a part with two different choices."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.part = Chooses(lambda y, c: y * 2 if c is None else y)
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
        self.calls = (first, second)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.head(self.part(x, choice=self.calls[0]) + self.part(x, choice=self.calls[1]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("first", [None, "a"])
@pytest.mark.parametrize("second", [None, "a"])
def test_a_part_that_is_called_with_two_choices_is_right_for_both(first: Any, second: Any) -> None:
    net, x = double(CallsTwice(first, second)), values(2, 3, 9, 9)
    folding = bnfold.fold(net, x, capture="piecewise")
    assert folding.plan.summary["fold"] == (2 if first == second else 1)
    assert error_of_peak(run(net, x), run(folding.module, x)) <= ALGEBRA


class OfNest(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.kind = kind

    def forward(self, images: Any) -> list[Tensor]:
        parts = images.values() if self.kind is dict else images
        return [self.bn(self.conv(each[None]))[0] for each in parts]


def nest(kind: type, count: int) -> Any:
    images = list(values(count, 3, 9, 9))
    return {f"image{i}": image for i, image in enumerate(images)} if kind is dict else kind(images)


@pytest.mark.parametrize("way", ["recorded", "export"])
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_nest_of_other_parts_is_refused(kind: type, way: str) -> None:
    net = double(OfNest(kind))
    folding = bnfold.fold(net, (nest(kind, 2),), capture=way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what its own unpickling does
        copies = (copy.deepcopy(folding.module), pickle.loads(pickle.dumps(folding.module)))
    for module in (folding.module, *copies):
        for expected, got in zip(run(net, nest(kind, 2)), run(module, nest(kind, 2)), strict=True):
            assert error_of_peak(expected, got) <= ALGEBRA
    for count in (1, 3):
        with pytest.raises(OtherInputError, match="holds other parts"):
            folding.module(nest(kind, count))


def test_a_piecewise_capture_leaves_inputs_buffers_and_generators() -> None:
    class Careless(CallsTwice):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            x.mul_(2)
            random.random()
            torch.rand(())
            return super().forward(x)

    net, x = double(Careless(None, None)), values(2, 3, 9, 9)
    net.register_buffer("seen", torch.zeros(()))
    before = (x.clone(), torch.random.get_rng_state(), random.getstate())
    bnfold.plan(net, x, capture="piecewise")
    assert torch.equal(x, before[0])
    assert float(net.seen) == 0
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert random.getstate() == before[2]
