"""Answers that another input, or the next run, would change, and that a run on the example alone does not show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from tests.graph.questions import Asks, OtherInputError, difference, image, seeded

SHAPES = ((2, 3, 16, 16), (1, 3, 16, 16), (3, 3, 20, 28), (2, 3, 32, 16))


def rank_after_a_squeeze(s: Any, x: Tensor) -> Tensor:
    y = s.features(x).mean((2, 3)).squeeze()
    return y.unsqueeze(0) * 2 if y.dim() == 1 else y


def shape_after_a_squeeze(s: Any, x: Tensor) -> Tensor:
    y = s.features(x).mean((2, 3)).squeeze()
    return y * len(y.shape)


def an_error_that_is_caught(s: Any, x: Tensor) -> Tensor:
    y = s.features(x)
    try:
        return F.max_pool2d(y, 20)
    except RuntimeError:
        return F.adaptive_avg_pool2d(y, 1)


def a_parameter_made_of_a_size(s: Any, x: Tensor) -> Tensor:
    return s.features(x) * nn.Parameter(torch.tensor([1.0 / x.shape[2]], dtype=x.dtype))


def numpy_that_shares_memory(s: Any, x: Tensor) -> Tensor:
    made = torch.zeros(2, dtype=x.dtype)
    shown = made.numpy()
    made.add_(x.shape[2])
    return s.features(x) * float(shown.sum())


def a_number_of_sections(s: Any, x: Tensor) -> Tensor:
    return torch.tensor_split(s.features(x), x.shape[2] // 4, 3)[1].mean() * s.features(x)


def a_number_of_numpy_that_rounds(s: Any, x: Tensor) -> Tensor:
    return s.features(x) * int(np.float32(0.7) * x.shape[2] * 10)


def a_power_with_a_modulus(s: Any, x: Tensor) -> Tensor:
    return s.features(x) * pow(x.shape[2], 2, 7)


def a_root_of_a_negative_size(s: Any, x: Tensor) -> Tensor:
    return s.features(x) * abs((-x.shape[2]) ** 0.5)


def bytes_of_what_is_made(s: Any, x: Tensor) -> Tensor:
    return s.features(x) * torch.arange(x.shape[2]).nbytes


def padding_set_from_a_size(s: Any, x: Tensor) -> Tensor:
    s.conv.padding = (x.shape[2] // 8, 1)
    return s.features(x)


CASES = (
    rank_after_a_squeeze,
    shape_after_a_squeeze,
    an_error_that_is_caught,
    a_parameter_made_of_a_size,
    numpy_that_shares_memory,
    a_number_of_sections,
    a_number_of_numpy_that_rounds,
    a_power_with_a_modulus,
    a_root_of_a_negative_size,
    bytes_of_what_is_made,
    padding_set_from_a_size,
)


def network(forward: Callable[..., Any]) -> Any:
    return seeded(functools.partial(Asks, forward)).eval().double()


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
@pytest.mark.parametrize("example", SHAPES[:2], ids=["of two", "of one"])
def test_what_another_size_would_change_is_right_or_refused(forward: Any, example: tuple[int, ...]) -> None:
    model = network(forward)
    try:
        folded = bnfold.fold(model, image(example)).module
    except bnfold.CaptureError:
        return
    with torch.no_grad():
        assert difference(model(image(example)), folded(image(example))) is None
        for shape in SHAPES:
            x = image(shape, 7)
            try:
                answer = folded(x.clone())
            except OtherInputError:
                continue
            assert difference(model(x.clone()), answer) is None, shape


class Remembers(Asks):
    """Keeps something of each run, and uses it in the next."""

    state: Any = None

    def __init__(self, kind: str) -> None:
        super().__init__(lambda s, x: s.remember(x))
        self.kind, self.seen, self.count = kind, [], 0

    def remember(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if self.kind == "a tensor":
            self.state = y if self.state is None else self.state * 0.5 + y
            return self.state
        if self.kind == "a number":
            self.count += 1
            return y * self.count
        self.seen.append(y)
        return torch.stack(self.seen).sum(0)


@pytest.mark.parametrize("kind", ["a tensor", "a number", "a list"])
@pytest.mark.parametrize("check", [True, False])
def test_what_is_kept_from_run_to_run_is_refused(kind: str, check: bool) -> None:
    model = seeded(functools.partial(Remembers, kind)).eval().double()
    with pytest.raises(bnfold.CaptureError, match="the next run answers otherwise"):
        bnfold.fold(model, image(SHAPES[0]), check=check)
    assert (model.state, model.seen, model.count) == (None, [], 0)


def test_features_that_a_hook_kept_of_an_earlier_run_are_no_constants() -> None:
    kept: dict[str, Tensor] = {}
    model = network(lambda s, x: s.features(x) + kept["conv"].mean((2, 3), keepdim=True))
    model.conv.register_forward_hook(lambda _module, _inputs, output: kept.__setitem__("conv", output))
    with torch.no_grad():
        model(image(SHAPES[0]))
    with pytest.raises(bnfold.CaptureError):
        bnfold.fold(model, image(SHAPES[0]))


def test_a_cache_outside_of_the_model_serves_the_model_after_a_fold() -> None:
    cached: dict[int, Tensor] = {}

    @functools.lru_cache
    def padding(height: int) -> int:
        return -height % 8

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.features(F.pad(x, (0, 0, 0, padding(x.shape[2]))))
        if len(cached) == 0:
            cached[0] = x.new_ones(1)
        return y + cached[0]

    model, x = network(forward), image(SHAPES[0])
    folded = bnfold.fold(model, x).module
    with torch.no_grad():
        assert difference(model(x), folded(x)) is None


class Chooses(Asks):
    """Takes a dict of images, and a flag."""

    def __init__(self) -> None:
        super().__init__(lambda s, x: x)

    def forward(self, given: dict[str, Tensor], flag: Any) -> Tensor:  # type: ignore[override]
        return self.features(next(iter(given.values()))) * (2 if flag is True else 1)


def test_the_order_of_a_dict_and_the_kind_of_a_number_are_those_that_were_captured() -> None:
    model = seeded(Chooses).eval().double()
    x = image(SHAPES[0])
    folded = bnfold.fold(model, ({"a": x, "b": x + 1}, True)).module
    with pytest.raises(OtherInputError):
        folded({"b": x + 1, "a": x}, True)
    with pytest.raises(OtherInputError):
        folded({"a": x, "b": x + 1}, 1)


def test_whether_gradients_are_on_is_asked_again() -> None:
    model, x = network(lambda s, x: s.features(x) * (2 if torch.is_grad_enabled() else 1)), image(SHAPES[0])
    folded = bnfold.fold(model, x).module
    with torch.no_grad():
        assert difference(model(x), folded(x)) is None
    with pytest.raises(OtherInputError, match="is_grad_enabled"):
        folded(x)
