"""An affine added to a convolution of the same value is absorbed there; where it may not be, moving it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fold.support import Net, double, error_of_peak, folds, run, values

C = 6


def branches(combine: Callable[[Any, Tensor], Tensor], **options: Any) -> nn.Module:
    conv = nn.Conv2d(C, C, options.pop("kernel", 3), **{"padding": 1, **options})
    parts = {"first": nn.Conv2d(3, C, 1), "conv": conv, "bn": nn.BatchNorm2d(C), "bn3": nn.BatchNorm2d(C)}

    def forward(s: Any, x: Tensor) -> Tensor:
        return torch.relu(combine(s, torch.relu(s.first(x))))

    return double(Net(forward, **parts))


def identity_and_conv(s: Any, y: Tensor) -> Tensor:
    return s.bn(y) + s.bn3(s.conv(y))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 2},
        {"groups": C},
        {"dilation": 2, "padding": 2},
        {"kernel": 1, "padding": 0},
        {"kernel": 5, "padding": 2},
        {"kernel": (3, 5), "padding": (1, 2)},
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"bias": False},
    ],
    ids=str,
)
def test_an_identity_branch_goes_into_the_convolution_beside_it(options: dict[str, Any]) -> None:
    folding = folds(branches(identity_and_conv, **options), values(2, 3, 7, 8))
    first, second = folding.plan
    assert (first.batchnorm, first.direction, first.into) == ("bn", "sideways", ("conv",))
    assert (second.batchnorm, second.direction, second.into) == ("bn3", "backward", ("conv",))


SUMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "convolution first": lambda s, y: s.bn3(s.conv(y)) + s.bn(y),
    "subtracted": lambda s, y: s.conv(y) - s.bn(y),
    "subtracted convolution": lambda s, y: s.bn(y) + (y - s.conv(y)),
    "with another term inside": lambda s, y: (s.bn(y) + y) + s.conv(y),
    "with another term outside": lambda s, y: (y * 3 + s.conv(y)) + (s.bn(y) + torch.tanh(y)),
    "through identities": lambda s, y: nn.functional.dropout(s.bn(y), training=False) + s.conv(y) * 1,
    "by sum()": lambda s, y: sum([s.bn(y), s.conv(y)]),
    "beside another identity branch": lambda s, y: s.conv(y) + (s.bn(y) + s.bn3(y)),
    "beside another, subtracted": lambda s, y: s.conv(y) - (s.bn3(y) + nn.functional.dropout(s.bn(y), 0.5, False)),
    "beside another, passed on": lambda s, y: nn.functional.dropout(s.bn3(y) + s.bn(y), 0.5, False) + s.conv(y),
    "in place": lambda s, y: s.conv(y).add_(s.bn(y)),
}


@pytest.mark.parametrize("name", [name for name in SUMS if name != "through identities"])
def test_it_is_found_in_any_sum(name: str) -> None:
    folding = folds(branches(SUMS[name]), values(2, 3, 7, 8))
    (decision,) = [decision for decision in folding.plan if decision.batchnorm == "bn"]
    assert decision.direction == "sideways", decision.detail
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folding.module.modules())


def test_a_term_that_stays_is_made_up_for_by_the_convolution() -> None:
    model = branches(lambda s, y: s.bn(s.conv(y) + y))
    folding = folds(model, values(2, 3, 7, 8))
    assert (folding.plan[0].action, folding.plan[0].into) == ("fold", ("conv",))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folding.module.modules())


def read_twice(s: Any, y: Tensor) -> Tensor:
    branch = s.bn(y)
    return (branch + s.conv(y)) * branch.mean()


def convolution_read_twice(s: Any, y: Tensor) -> Tensor:
    z = s.conv(y)
    return s.bn(y) + z + torch.tanh(z)


def written_between(s: Any, y: Tensor) -> Tensor:
    branch = s.bn(y)
    return branch + s.conv(y.mul_(2))


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "an even kernel": (lambda s, y: s.bn(y)[..., :-1, :-1].contiguous() + s.conv(y), {"kernel": 2, "padding": 0}),
    "a stride": (lambda s, y: s.bn(y)[..., ::2, ::2] + s.conv(y), {"stride": 2}),
    "a branch read elsewhere": (read_twice, {}),
    "a convolution read elsewhere": (convolution_read_twice, {}),
    "another input": (lambda s, y: s.bn(y) + s.conv(torch.tanh(y)), {}),
    "an input written to between": (written_between, {}),
    "an activation on the way": (lambda s, y: s.bn(y) + torch.relu(s.conv(y)), {}),
    "something subtracted from it": (lambda s, y: s.bn(y) - s.conv(y), {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_it_may_not_go_it_stays_and_the_function_is_the_same(name: str) -> None:
    combine, options = REFUSED[name]
    folding = folds(branches(combine, **options), values(2, 3, 8, 8))
    assert folding.plan[0].action == "affine", folding.plan[0].detail


def test_the_convolution_of_another_input_would_be_wrong() -> None:
    model = branches(lambda s, y: s.bn(y) + s.conv(torch.tanh(y)))
    wrong = branches(lambda s, y: s.bn(torch.tanh(y)) + s.conv(torch.tanh(y)))
    x = values(2, 3, 8, 8)
    assert error_of_peak(run(model, x), run(wrong, x)) > 1e-3


def test_an_off_centre_tap_would_be_wrong() -> None:
    """A 3x3 kernel that keeps the size by padding on one side only does not see its own position in the middle."""

    def shifted(s: Any, y: Tensor) -> Tensor:
        return s.bn(y) + s.conv(nn.functional.pad(y, (2, 0, 2, 0)))

    model = branches(shifted, padding=0)
    x = values(2, 3, 8, 8)
    folding = folds(model, x)
    assert folding.plan[0].action == "affine"
    centred = branches(identity_and_conv)
    assert error_of_peak(run(model, x), run(centred, x)) > 1e-3


def test_keep_leaves_the_branch() -> None:
    folding = folds(branches(identity_and_conv), values(2, 3, 7, 8), keep=["bn"])
    assert folding.plan[0].action == "keep"
