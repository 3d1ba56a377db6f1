"""A captured graph answers every batch as the model does, or says that it was not captured for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import OtherInputError
from tests.fold.support import ALGEBRA, Net, double, error_of_peak, run, values


def convolved(forward: Any, **parts: Any) -> nn.Module:
    return double(Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), **parts))


def one_by_one(s: Any, x: Tensor) -> Tensor:
    return torch.stack([s.bn(s.conv(x[i : i + 1])) for i in range(len(x))])


def squeezed(s: Any, x: Tensor) -> Tensor:
    y = s.bn(s.conv(x)).mean((2, 3))
    return y.squeeze() if y.shape[1] == 4 else y


LOOKS_AT_THE_BATCH: dict[str, Any] = {
    "more than two": lambda s, x: s.bn(s.conv(x)) if x.shape[0] > 2 else s.bn(s.conv(x)) * 2,
    "one": lambda s, x: s.bn(s.conv(x)) if x.shape[0] != 1 else s.bn(s.conv(x)) * 2,
    "seven": lambda s, x: s.bn(s.conv(x)) if x.shape[0] != 7 else s.bn(s.conv(x)) * 2,
    "even": lambda s, x: s.bn(s.conv(x)) if x.shape[0] % 2 == 0 else s.bn(s.conv(x)) * 2,
    "a loop": one_by_one,
    "squeeze": squeezed,
    "integers": lambda s, x: s.bn(s.conv(x)).argmax(1) + (1 if x.shape[0] == 1 else 0),
    "nothing": lambda s, x: s.bn(s.conv(x)) if x.shape[2] > 2 else s.bn(s.conv(x)) * 2,
}


# of a batch, the answer that the model's code gets: a recorded run is right for all batches that get the same
ANSWER: dict[str, Callable[[int], Any]] = {
    "more than two": lambda n: n > 2,
    "one": lambda n: n != 1,
    "seven": lambda n: n != 7,
    "even": lambda n: n % 2,
    "a loop": lambda n: n,
    "squeeze": lambda _: None,
    "integers": lambda n: n == 1,
    "nothing": lambda _: None,
}
SIZES = [1, 2, 3, 4, 5, 7, 8]


def answered(net: nn.Module, module: nn.Module, refusal: str) -> list[int]:
    """Return the batches that a folded model answers, each as the model does; it refuses the others."""
    found, refusals = [], []
    for size in SIZES:
        x = values(size, 3, 9, 9)
        try:
            got = run(module, x)
        except OtherInputError as error:
            refusals.append(str(error))
            continue
        assert error_of_peak(run(net, x), got) <= ALGEBRA, size
        found.append(size)
    assert all(refusal in said for said in refusals)
    return found


@pytest.mark.parametrize("example", [1, 4])
@pytest.mark.parametrize("name", LOOKS_AT_THE_BATCH)
def test_every_batch_that_gets_the_recorded_answers_is_answered_and_no_other(name: str, example: int) -> None:
    net, answer = convolved(LOOKS_AT_THE_BATCH[name]), ANSWER[name]
    folding = bnfold.fold(net, values(example, 3, 9, 9))
    assert folding.plan.capture == "recorded"
    assert folding.plan.summary["affine"] == 0
    alike = [size for size in SIZES if answer(size) == answer(example)]
    assert answered(net, folding.module, "captured for inputs of other sizes: `") == alike


@pytest.mark.parametrize("example", [1, 4])
@pytest.mark.parametrize("name", LOOKS_AT_THE_BATCH)
def test_every_batch_is_answered_rightly_by_an_export_or_refused(name: str, example: int) -> None:
    net = convolved(LOOKS_AT_THE_BATCH[name])
    folding = bnfold.fold(net, values(example, 3, 9, 9), capture="export")
    assert folding.plan.capture == "export"
    assert folding.plan.summary["affine"] == 0
    found = answered(net, folding.module, "captured by torch.export for")
    assert example in found
    if name in ("nothing", "squeeze"):
        assert found == SIZES
    if name == "one" and example == 4:
        assert found == [2, 3, 4, 5, 7, 8]
        assert "with N of at least 2" in folding.plan.notes[0]


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        same = x.shape[0] == y.shape[0]
        return self.bn(self.conv(x)) + y if same else self.bn(self.conv(x)) * 2 + y


ONE_BATCH = {
    "recorded": r"`x\.shape\[0\] == y\.shape\[0\]` holds, at .*test_exported_batch\.py:\d+, where 5 == 1 is False",
    "export": r"a batch of 1, and this graph .* the other inputs' 5",
}


@pytest.mark.parametrize("way", ONE_BATCH)
def test_inputs_that_had_one_batch_must_have_one_batch(way: str) -> None:
    net = double(OfTwo())
    folding = bnfold.fold(net, (values(3, 3, 9, 9), values(3, 4, 7, 7)), capture=way)
    assert folding.plan.capture == way
    x, y = values(5, 3, 9, 9), values(5, 4, 7, 7)
    assert error_of_peak(run(net, x, y), run(folding.module, x, y)) <= ALGEBRA
    with pytest.raises(OtherInputError, match=ONE_BATCH[way]):
        folding.module(x, y[:1])


def test_inputs_of_two_batches_are_captured_as_such() -> None:
    net = double(OfTwo())
    folding = bnfold.fold(net, (values(3, 3, 9, 9), values(1, 4, 7, 7)))
    x, y = values(5, 3, 9, 9), values(5, 4, 7, 7)
    assert error_of_peak(run(net, x, y[:1]), run(folding.module, x, y[:1])) <= ALGEBRA
    with pytest.raises(OtherInputError, match=r"`x\.shape\[0\] == y\.shape\[0\]` does not hold"):
        folding.module(x, y)


def test_trying_a_batch_of_one_moves_nothing() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.seen.add_(1)
        s.count = s.count + 1
        return s.bn(s.conv(x)) + torch.rand_like(x).mean() if x.shape[2] > 2 else x

    net = convolved(forward)
    net.register_buffer("seen", torch.zeros(()))
    net.register_buffer("count", torch.zeros(()))
    state = torch.random.get_rng_state()
    folding = bnfold.fold(net, values(2, 3, 9, 9), capture="export")
    assert folding.plan.capture == "export"
    assert float(net.seen) == 0
    assert float(net.count) == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert folding.module(values(1, 3, 9, 9)).shape == (1, 4, 7, 7)
