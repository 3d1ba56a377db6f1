"""Random graphs: none wrong in float64, none far off in float32, explicit affines to the bit."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor

import bnfold
from bnfold.errors import OtherInputError
from tests.fold.random_graphs import RandomNet, random_net
from tests.fold.support import ALGEBRA, error_of_peak, outputs, run

DEFAULT, LONG, BLOCKS = 60, 5_000, 2


# after these a value is not contiguous, and torch's own BatchNorm rounds otherwise (see test_explicit.py)
STRIDED = {"slice", "chunk", "turn", "linear", "transposed"}


def check(seed: int, *, thorough: bool) -> Counter[str]:
    """Fold one random model and count the decisions; of the further checks do one in turn, or all.

    A network whose own answer hangs on a rounding counts as undecided.
    """
    net, x = random_net(seed)
    expected = run(net, x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folding = bnfold.fold(net, x)
    if error_of_peak(expected, run(folding.module, x)) > ALGEBRA:
        assert rounding_decides(net, x, expected), net.describe()
        return Counter(undecided=1)
    if thorough or seed % 3 == 0:
        try:
            answer = run(bnfold.fold(net).module, x)
        except (OtherInputError, bnfold.NeedsInputsError):  # the sizes that are found decide something, or none is
            answer = expected
        assert error_of_peak(expected, answer) <= ALGEBRA, net.describe()
    if thorough or seed % 3 == 1:
        original, folded = folding.in_float64()
        assert error_of_peak(run(original, x), run(folded, x)) <= ALGEBRA, net.describe()
    if thorough or seed % 3 == 2:
        check_in_float32(net, x, expected)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    return Counter(decision.action for decision in folding.plan)


def rounding_decides(net: RandomNet, x: Tensor, expected: tuple[Tensor, ...]) -> bool:
    """Whether the network itself answers otherwise if its weights move by a last place: an argmax among equals does."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = copy.deepcopy(net)
        for tensor in moved.parameters():
            noise = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor)
            tensor.data.mul_(1 + torch.finfo(tensor.dtype).eps * noise)
        if error_of_peak(expected, run(moved, x)) > ALGEBRA:
            return True
    return False


def check_in_float32(net: RandomNet, x: Tensor, expected: tuple[Tensor, ...]) -> None:
    single = copy.deepcopy(net).float()
    folding = bnfold.fold(single, x.float())
    own, got = run(single, x.float()), run(folding.module, x.float())
    allowed = 30 * error_of_peak(expected, _double(own)) + 1e-5
    assert error_of_peak(expected, _double(got)) <= allowed, net.describe()
    nothing_moved = all(decision.action == "affine" for decision in folding.plan)
    if nothing_moved and not STRIDED & {step.name for step in net.steps}:
        for right, other in zip(outputs(own), outputs(got), strict=True):
            assert torch.equal(right, other), net.describe()


def _double(value: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.double() for part in value)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_graphs_keep_their_function(block: int) -> None:
    size = DEFAULT // BLOCKS
    count: Counter[str] = Counter()
    for seed in range(block * size, (block + 1) * size):
        count += check(seed, thorough=False)
    assert count["keep"] == count["undecided"] == 0
    assert count["fold"] > size  # a test of refusals alone would prove little
    assert count["affine"] > size


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(10))
def test_five_thousand_random_graphs_keep_their_function(block: int) -> None:
    torch.set_num_threads(1)
    size = LONG // 10
    count: Counter[str] = Counter()
    for seed in range(DEFAULT + block * size, DEFAULT + (block + 1) * size):
        count += check(seed, thorough=True)
    assert count["undecided"] <= 2  # one of the 5,000: bilinear values that are equal but for their rounding
