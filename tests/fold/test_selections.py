"""Channels taken by their numbers: what is not taken keeps the identity, what is refused is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.fold.support import Net, double, folds, set_affine, values


def test_a_channel_taken_twice_folds_where_its_copies_agree() -> None:
    index = torch.tensor([1, 3, 1])
    net = double(
        Net(lambda s, x: s.bn(s.conv(x)[:, s.index]), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(3), index=index)
    )
    scale = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64)
    net.bn.running_mean.zero_()
    set_affine(net.bn, scale=scale, shift=0.0)
    (decision,) = folds(net, values(2, 3, 9, 9)).plan
    assert (decision.action, decision.into) == ("fold", ("conv",))


def test_selections_that_share_no_channel_take_each_their_own() -> None:
    def forward(s: Any, x: Any) -> Any:
        y = s.conv(x)
        return s.one(y.index_select(1, s.odd)), s.two(y[:, [0, 2]])

    net = double(
        Net(
            forward,
            conv=nn.Conv2d(3, 4, 3),
            one=nn.BatchNorm2d(2),
            two=nn.BatchNorm2d(2),
            odd=torch.tensor([3, 1]),
        )
    )
    assert [(d.action, d.into) for d in folds(net, values(2, 3, 9, 9)).plan] == [("fold", ("conv",))] * 2


def test_a_channel_taken_twice_stays_where_somebody_else_reads_its_copy() -> None:
    def forward(s: Any, x: Any) -> Any:
        y = s.conv(x)[:, s.index]
        return s.bn(y[:, 0:1]), y[:, 2:3].sigmoid()

    net = double(
        Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(1), index=torch.tensor([1, 3, 1])), negative=1.0
    )
    (decision,) = folds(net, values(2, 3, 9, 9)).plan
    assert (decision.action, decision.reason) == ("affine", "channels-disagree")


@pytest.mark.parametrize("way", ["recorded", "export"])
def test_condensing_layers_fold_backward_where_nobody_else_reads(way: str) -> None:
    def forward(s: Any, x: Any) -> Any:
        return s.after(torch.relu(s.bn(torch.index_select(s.conv(x), 1, s.index))))

    net = double(
        Net(
            forward,
            conv=nn.Conv2d(3, 8, 3, padding=1),
            bn=nn.BatchNorm2d(8),
            after=nn.Conv2d(8, 4, 1, groups=4),
            index=torch.tensor([5, 0, 7, 2, 1, 4, 3, 6]),
        )
    )
    (decision,) = folds(net, values(2, 3, 9, 9), capture=way).plan
    assert decision.action == "fold"
    assert decision.direction == "backward"


@pytest.mark.parametrize(
    ("index", "wraps", "reason"),
    [
        ([-1, 0, 1], False, "index-out-of-range"),
        ([0, 4, 1], False, "index-out-of-range"),
        ([0, 1, 4], True, "index-out-of-range"),
        ([0, -5, 1], True, "index-out-of-range"),
    ],
)
def test_numbers_that_the_model_would_fail_on_are_not_guessed(index: list[int], wraps: bool, reason: str) -> None:
    from bnfold import ops as calls
    from bnfold.affine import ChannelAffine
    from bnfold.capture.ways import capture
    from bnfold.graph.facts import Facts
    from bnfold.ops.form import ChannelForm
    from bnfold.ops.refusal import Refusal

    net = double(Net(lambda s, x: s.conv(x)[:, [0, 1, 2]], conv=nn.Conv2d(3, 4, 3)))
    facts = Facts.of(capture(net, values(2, 3, 9, 9), "recorded"))
    call = next(call for node in facts.index if isinstance(call := facts.call(node), calls.Select))
    other = calls.Select(call.node, call.input, 1, tuple(index), wraps)
    assert other.rule is not None
    moved = other.rule.before(other, ChannelForm(ChannelAffine.identity(3), 1, 4), facts)
    assert isinstance(moved, Refusal)
    assert moved.reason == reason


def test_numbers_in_two_dimensions_are_another_shape() -> None:
    index = torch.tensor([[0, 1], [2, 3]])
    net = double(
        Net(lambda s, x: s.bn(s.conv(x)[:, s.index]), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm3d(2), index=index)
    )
    (decision,) = folds(net, values(2, 3, 9, 9)).plan
    assert (decision.action, decision.reason) == ("affine", "unknown-op")


def test_numbers_that_are_written_to_are_not_constant() -> None:
    def forward(s: Any, x: Any) -> Any:
        index = s.index.clone()
        index[0] = 3
        index.add_(x.shape[0] % 2)
        return s.bn(s.conv(x)[:, index])

    net = double(
        Net(forward, conv=nn.Conv2d(3, 5, 3), bn=nn.BatchNorm2d(3), index=nn.Parameter(torch.tensor([0, 1, 2]), False))
    )
    folding = bnfold.fold(net, values(2, 3, 9, 9))
    assert folding.plan[0].action != "fold"
    for batch in (2, 3):
        x = values(batch, 3, 9, 9)
        torch.testing.assert_close(folding.module(x), net(x))
