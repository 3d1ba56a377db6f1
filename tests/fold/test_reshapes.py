"""A reshape passes an affine only where it treats the channels alike for each input that the model takes.

The sizes of the example inputs are one case of many: what is right for 7 x 7 pixels must be right for 12 x 12, and for
other batches, without a word from the user. A case is a model, the example, and another input that the model runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from tests.fold.support import Net, TwoInputNet, assert_same_function, double, folds, run, values

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A model whose reshape looks harmless on the example."""

    forward: Callable[[Any, Any], Any]
    parts: Callable[[], dict[str, nn.Module]]
    example: Shape
    other: Shape


def _before(norm: nn.Module) -> dict[str, nn.Module]:
    return {"conv": nn.Conv2d(3, 4, 3), "bn": norm}


def _after(norm: nn.Module, inputs: int) -> dict[str, nn.Module]:
    return {"bn": norm, "fc": nn.Linear(inputs, 5)}


MIXED: dict[str, Case] = {
    "one pixel left": Case(
        lambda s, x: s.bn(s.conv(x).view(-1, 4)), lambda: _before(nn.BatchNorm1d(4)), (2, 3, 3, 3), (2, 3, 4, 4)
    ),
    "so many pixels": Case(
        lambda s, x: s.bn(s.conv(x).view(-1, 4, 25)), lambda: _before(nn.BatchNorm1d(4)), (2, 3, 7, 7), (2, 3, 12, 12)
    ),
    "a batch written down": Case(
        lambda s, x: s.bn(s.conv(x).view(2, 4, -1)), lambda: _before(nn.BatchNorm1d(4)), (2, 3, 7, 7), (4, 3, 7, 7)
    ),
    "so many channels of so many pixels": Case(
        lambda s, x: s.bn(s.conv(x).reshape(-1, 4, 5, 5)),
        lambda: _before(nn.BatchNorm2d(4)),
        (2, 3, 7, 7),
        (2, 3, 12, 7),
    ),
    "a batch of one squeezed away": Case(
        lambda s, x: s.bn(s.conv(x).mean(2, keepdim=True).squeeze()),
        lambda: _before(nn.BatchNorm1d(4)),
        (2, 3, 7, 7),
        (1, 3, 7, 6),
    ),
    "forward, one pixel left": Case(
        lambda s, x: s.fc(s.bn(x).view(-1, 4)), lambda: _after(nn.BatchNorm2d(4), 4), (2, 4, 1, 1), (2, 4, 2, 2)
    ),
    "forward, so many numbers": Case(
        lambda s, x: s.fc(s.bn(x).view(-1, 100)), lambda: _after(nn.BatchNorm2d(4), 100), (2, 4, 5, 5), (2, 4, 10, 10)
    ),
    "forward, a piece of what is flattened": Case(
        lambda s, x: s.fc(s.bn(x).flatten(1)[:, :36]), lambda: _after(nn.BatchNorm2d(4), 36), (2, 4, 3, 3), (2, 4, 6, 6)
    ),
    "forward, a choice of what is flattened": Case(
        lambda s, x: s.fc(s.bn(x).flatten(1)[:, [0, 9, 18, 27]]),
        lambda: _after(nn.BatchNorm2d(4), 4),
        (2, 4, 3, 3),
        (2, 4, 6, 6),
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_reshape_that_mixes_channels_at_another_size_is_refused_at_the_examples(name: str) -> None:
    case = MIXED[name]
    net = double(Net(case.forward, **case.parts()))
    folding = folds(net, values(*case.example), capture="recorded")
    assert folding.plan[0].action == "affine"
    assert folding.plan[0].reason == ("no-producer" if name.startswith("forward") else "depends-on-size")
    assert_same_function(net, folding, values(*case.other))


@pytest.mark.parametrize("name", [name for name in MIXED if not name.startswith("forward")])
def test_folded_as_the_example_looks_it_would_be_wrong(name: str) -> None:
    case = MIXED[name]
    net = double(Net(case.forward, **case.parts()))
    moved = double(Net(case.forward, **case.parts()))
    moved.load_state_dict(net.state_dict())
    affine = bnfold.affine_of(net.bn)
    with torch.no_grad():
        moved.conv.weight.mul_(affine.scale.view(-1, 1, 1, 1))
        moved.conv.bias.mul_(affine.scale).add_(affine.shift)
    moved.bn = nn.Identity()
    x, other = values(*case.example), values(*case.other)
    torch.testing.assert_close(run(moved, x), run(net, x))
    assert float((run(moved, other) - run(net, other)).abs().max()) > 1e-2


def test_parts_of_unknown_size_are_not_told_apart_by_the_sum() -> None:
    def forward(s: Any, x: Any, y: Any) -> Any:
        return s.bn(torch.cat([s.one(x).flatten(1), s.two(y).flatten(1)], 1))

    net = double(TwoInputNet(forward, one=nn.Conv2d(3, 4, 3), two=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm1d(32)))
    for tensor in (net.bn.running_mean, net.bn.running_var, net.bn.weight.data, net.bn.bias.data):
        tensor.copy_(tensor[::4].repeat_interleave(4))
    x, y = values(2, 3, 4, 4), values(2, 3, 4, 4)
    folding = folds(net, x, y, capture="recorded")
    assert folding.plan[0].action == "affine"
    assert_same_function(net, folding, values(2, 3, 3, 4), values(2, 3, 5, 4))  # 8 and 24 in the place of 16 and 16


def _shuffled(y: Any, groups: int) -> Any:
    b, c, h, w = y.size()
    return y.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_a_shuffle_written_by_hand_is_the_layer_for_every_size(groups: int) -> None:
    net = double(
        Net(
            lambda s, x: s.after(torch.tanh(s.bn(_shuffled(s.conv(x), groups)))),
            conv=nn.Conv2d(3, 6, 3),
            bn=nn.BatchNorm2d(6),
            after=nn.Conv2d(6, 2, 1),
        )
    )
    folding = folds(net, values(2, 3, 7, 9))
    assert [(d.action, d.into) for d in folding.plan] == [("fold", ("conv",))]
    for batch, height, width in ((1, 3, 3), (3, 20, 5), (6, 8, 8)):
        assert_same_function(net, folding, values(batch, 3, height, width))


def test_a_shuffle_after_a_gate_and_a_pool_of_known_sizes_folds() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = F.silu(s.first(x))
        y = s.conv(y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)))
        return s.bn(_shuffled(y, 2))

    net = double(Net(forward, first=nn.Conv2d(3, 4, 3), conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4)))
    folding = folds(net, values(2, 3, 9, 9), capture="recorded")
    assert folding.plan[0].action == "fold"
    assert_same_function(net, folding, values(3, 3, 12, 7))


def test_a_pool_to_one_pixel_tells_that_nothing_is_left_to_mix() -> None:
    net = double(
        Net(
            lambda s, x: s.bn(s.pool(s.conv(x)).view(-1, 4)), pool=nn.AdaptiveAvgPool2d(1), **_before(nn.BatchNorm1d(4))
        )
    )
    folding = folds(net, values(2, 3, 7, 7))
    assert folding.plan[0].action == "fold"
    assert_same_function(net, folding, values(5, 3, 9, 4))


def test_what_reads_a_flattened_value_tells_how_much_there_is() -> None:
    net = double(Net(lambda s, x: s.fc(s.bn(x).flatten(1)), **_after(nn.BatchNorm2d(4), 36)))
    folding = folds(net, values(2, 4, 3, 3))
    assert [(d.action, d.direction) for d in folding.plan] == [("fold", "forward")]
    for shape in ((3, 4, 3, 3), (2, 4, 9, 1)):
        assert_same_function(net, folding, values(*shape))


def test_a_view_to_channels_of_their_own_folds_into_a_linear_layer() -> None:
    net = double(Net(lambda s, x: s.bn(s.fc(x).view(-1, 4, 3, 3)), fc=nn.Linear(5, 36), bn=nn.BatchNorm2d(4)))
    folding = folds(net, values(2, 5))
    assert [(d.action, d.into) for d in folding.plan] == [("fold", ("fc",))]
    assert_same_function(net, folding, values(7, 5))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.bn(torch.cat([m.one(x), m.two(x)], axis=1)),
        lambda m, x: m.bn(torch.cat([m.one(x), m.two(x)], 1).mean(axis=(2, 3), keepdims=True)),
        lambda m, x: m.bn(torch.cat(torch.cat([m.one(x), m.two(x)], 1).chunk(2, axis=1)[::-1], axis=-3)),
    ],
)
def test_dimensions_may_be_named_as_numpy_names_them(forward: Callable[[Any, Any], Any]) -> None:
    parts = {"one": nn.Conv2d(3, 4, 3), "two": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(8)}
    model, x = double(Net(forward, **parts)), values(2, 3, 8, 8)
    folding = bnfold.fold(model, x)
    assert (folding.captured.way, folding.plan.summary["fold"]) == ("recorded", 1)
    assert_same_function(model, folding, x)
