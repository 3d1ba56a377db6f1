"""An affine added to a convolution of the same value is absorbed there; where it may not be, moving it is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnfold import affine_of
from bnfold.errors import OtherInputError
from tests.fold.support import Net, double, error_of_peak, folds, run, skeleton, values

C = 6


def branches(combine: Callable[[Any, Tensor], Tensor], **options: Any) -> nn.Module:
    conv = nn.Conv2d(C, options.pop("outputs", C), options.pop("kernel", 3), **{"padding": 1, **options})
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
        {"kernel": 7, "padding": 3, "groups": 3},
        {"kernel": 5, "padding": 4, "dilation": 2, "groups": C},
        {"padding_mode": "replicate", "groups": 2},
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


@pytest.mark.parametrize(
    "sums",
    [
        lambda y, z: (y + z) + z,
        lambda y, z: z - (y - z),
        lambda y, z: (y + nn.functional.dropout(z, 0.5, False)) + z,
        lambda y, z: (y + z) + torch.nn.functional.max_pool2d(z, 3, 1, 1),
    ],
    ids=["twice in a sum", "in both terms of a difference", "passed on", "through a pool"],
)
def test_a_term_is_not_made_up_for_by_a_convolution_that_is_counted_twice(sums: Callable[..., Tensor]) -> None:
    """What is added to a convolution for one sum is in all that reads it."""
    model = branches(lambda s, y: s.bn(sums(y, s.conv(y))))
    model.bn.weight.data.abs_().add_(0.2)  # so that the pool lets it pass
    (decision,) = folds(model, values(2, 3, 7, 8)).plan
    assert decision.action == "affine", decision.detail


def moved(s: Any, y: Tensor) -> Tensor:
    """The convolution with the affine at its middle tap, as a careless fold would have it."""
    affine, conv = affine_of(s.bn), copy.deepcopy(s.conv)
    with torch.no_grad():
        middle = [size // 2 for size in conv.weight.shape[2:]]
        for channel in range(conv.weight.shape[0]):
            conv.weight[channel, channel % conv.weight.shape[1], middle[0], middle[1]] += affine.scale[channel]
        conv.bias.add_(affine.shift[: conv.bias.numel()])
    return conv(y)


def read_twice(s: Any, y: Tensor) -> Tensor:
    branch = s.bn(y)
    return (branch + s.conv(y)) * branch.mean()


def read_twice_by_hand(s: Any, y: Tensor) -> Tensor:
    return moved(s, y) * moved(s, y).mean()


def convolution_read_twice(s: Any, y: Tensor) -> Tensor:
    z = s.conv(y)
    return s.bn(y) + z + torch.tanh(z)


def convolution_read_twice_by_hand(s: Any, y: Tensor) -> Tensor:
    return moved(s, y) + torch.tanh(moved(s, y))


def written_between(s: Any, y: Tensor) -> Tensor:
    branch = s.bn(y)
    y.mul_(2)
    return branch + s.conv(y)


def added(s: Any, y: Tensor) -> Tensor:
    return s.bn(y) + s.conv(y)


@dataclass(frozen=True)
class Refused:
    """A branch that may not go into the convolution, and what it would compute if it did."""

    combine: Callable[[Any, Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    by_hand: Callable[[Any, Tensor], Tensor] = moved
    size: int = 8


REFUSED = {
    "an even kernel": Refused(added, {"kernel": 2, "padding": "same"}),
    "an even kernel in one dimension": Refused(added, {"kernel": (3, 2), "padding": "same"}),
    "a stride": Refused(added, {"stride": 2}, size=2),
    "padding that does not keep the size": Refused(added, {"padding": 0}, size=3),
    "more padding": Refused(added, {"padding": 2, "kernel": 5, "stride": 3}, size=3),
    "a convolution of fewer channels": Refused(added, {"outputs": 1}),
    "a branch read elsewhere": Refused(read_twice, by_hand=read_twice_by_hand),
    "a convolution read elsewhere": Refused(convolution_read_twice, by_hand=convolution_read_twice_by_hand),
    "another input": Refused(
        lambda s, y: s.bn(y) + s.conv(torch.tanh(y)), by_hand=lambda s, y: moved(s, torch.tanh(y))
    ),
    "an input written to between": Refused(written_between, by_hand=lambda s, y: moved(s, 2 * y)),
    "an activation on the way": Refused(
        lambda s, y: s.bn(y) + torch.relu(s.conv(y)), by_hand=lambda s, y: torch.relu(moved(s, y))
    ),
    "something subtracted from it": Refused(lambda s, y: s.bn(y) - s.conv(y)),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_where_it_may_not_go_it_stays_and_moving_it_would_be_wrong(name: str) -> None:
    case = REFUSED[name]
    model, x = branches(case.combine, **case.options), values(2, 3, case.size, case.size)
    folding = folds(model, x)
    assert folding.plan[0].action == "affine", folding.plan[0].detail
    forbidden = copy.deepcopy(model)
    forbidden.function = lambda s, x: torch.relu(case.by_hand(s, torch.relu(s.first(x))))
    expected, got = run(model, x), run(forbidden, x)
    assert skeleton(expected) != skeleton(got) or error_of_peak(expected, got) > 1e-3


def test_an_off_centre_tap_would_be_wrong() -> None:
    """A 3x3 kernel that keeps the size by padding on one side only does not see its own position in the middle."""

    def shifted(s: Any, y: Tensor) -> Tensor:
        return s.bn(y) + s.conv(nn.functional.pad(y, (2, 0, 2, 0)))

    model = branches(shifted, padding=0)
    x = values(2, 3, 8, 8)
    folding = folds(model, x)
    assert folding.plan[0].action == "affine"
    forbidden = copy.deepcopy(model)
    forbidden.function = lambda s, x: torch.relu(moved(s, nn.functional.pad(torch.relu(s.first(x)), (2, 0, 2, 0))))
    assert error_of_peak(run(model, x), run(forbidden, x)) > 1e-3


def test_keep_leaves_the_branch() -> None:
    folding = folds(branches(identity_and_conv), values(2, 3, 7, 8), keep=["bn"])
    assert folding.plan[0].action == "keep"


UNBATCHED: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "of a signal": (nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), (2, 4, 4)),
    "of an image": (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm1d(4), (4, 4, 4)),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_without_a_batch_the_channels_of_the_convolution_are_others_than_those_of_the_batchnorm(name: str) -> None:
    conv, bn, shape = UNBATCHED[name]
    model = double(Net(lambda s, x: s.conv(x) + s.bn(x), conv=conv, bn=bn))
    batched = len(shape) == conv.weight.ndim
    folding = folds(model, values(*shape))
    assert folding.plan[0].action == ("fold" if batched else "affine")
    if batched:
        with pytest.raises(OtherInputError):
            folding.module(values(*shape[1:]))
    else:
        forbidden = copy.deepcopy(model)
        forbidden.function = moved
        assert error_of_peak(run(model, values(*shape)), run(forbidden, values(*shape))) > 1e-3
