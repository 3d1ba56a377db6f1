"""Random models of branches: merged, none computes another function, and none does more multiplications."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter

import pytest
import torch

import bnfold
from tests.fold.random_branches import random_branches
from tests.fold.support import ALGEBRA, error_of_peak, run

DEFAULT, LONG = 18, 2_000


def check(seed: int) -> Counter[str]:
    """Merge one random model; return what became of its branches."""
    net, x = random_branches(seed)
    expected = run(net, x)
    before = copy.deepcopy(net.state_dict())
    folding = bnfold.fold(net, x, merge=True)
    assert error_of_peak(expected, run(folding.module, x)) <= ALGEBRA, "\n".join(net.told)
    larger = torch.randn(3, 3, *[size + 3 for size in x.shape[2:]], dtype=torch.float64)
    with contextlib.suppress(RuntimeError):  # branches whose sizes agree at some inputs only
        assert error_of_peak(run(net, larger), run(folding.module, larger)) <= ALGEBRA, "\n".join(net.told)
    if seed % 3 == 0:
        bare = bnfold.fold(net, merge=True)
        assert error_of_peak(expected, run(bare.module, x)) <= ALGEBRA, "\n".join(net.told)
    if seed % 3 == 1:
        original, folded = folding.in_float64()
        assert error_of_peak(run(original, x), run(folded, x)) <= ALGEBRA, "\n".join(net.told)
    if seed % 3 == 2:
        first, last = folding.counts()
        assert first.macs is not None
        assert last.macs is not None
        assert last.macs <= first.macs
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    return Counter(merge.reason or merge.kind for merge in folding.plan.merges)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_random_branches_keep_their_function() -> None:
    torch.set_num_threads(1)
    count: Counter[str] = Counter()
    for seed in range(DEFAULT):
        count += check(seed)
    assert count["sum"] > 15  # a test of refusals alone would prove little
    assert count["sequence"] > 3
    assert count["factor"] > 0
    for reason in ("padding-differs", "padding-mode-differs", "more-multiplications", "different-inputs"):
        assert count[reason] > 0


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(4))
def test_two_thousand_random_branches_keep_their_function(block: int) -> None:
    torch.set_num_threads(1)
    size = LONG // 4
    for seed in range(DEFAULT + block * size, DEFAULT + (block + 1) * size):
        check(seed)
