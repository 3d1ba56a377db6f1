"""Every way to fold wrongly is caught, by the noise floor alone; and the site is named."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

import bnfold
from bnfold.verify import verify
from tests.networks import NETWORKS, normal
from tests.verify.mutants import EVERY, FULL, MUTANTS, apply, picks, sites_of

SMALL = ("lenet", "inverted-residual", "grouped-and-square")


def check(network: str, pick: int, mutant: str) -> bool:
    """Return whether the mutant applies to that site of the network; fail unless it is then caught and located.

    Without the plan, outputs are all there is to see: a mutant that no input brings to light (a channel that is dead on
    all of them) is left to the plan.
    """
    model, inputs, folding, right = once_folded(network)
    sites = sites_of(model, folding)
    site = sites[pick % len(sites)]
    weight, bias = site.folded.weight, site.folded.bias
    try:
        if not apply(MUTANTS[mutant], site):
            return False
        what = f"{mutant} at {site.name} of {network}"
        with_plan = verify(model, folding.module, inputs, onnx=False, folding=folding)
        assert (with_plan.verdict, with_plan.blame, with_plan.located) == ("failed", "fold", site.name), (
            f"{what}: {with_plan}"
        )
        by_outputs = verify(model, folding.module, inputs, onnx=False)
        if by_outputs.passed:
            assert_same_outputs(right, folding.module, inputs, what)
        return True
    finally:
        site.folded.weight, site.folded.bias = weight, bias


@functools.cache
def once_folded(network: str):
    """Return a network, its inputs, its fold, and a copy of the folded module that no mutant touches."""
    model, inputs = EVERY[network]()
    folding = bnfold.fold(model, inputs)
    return model, inputs, folding, copy.deepcopy(folding.module)


def assert_same_outputs(right, mutant, inputs, what: str) -> None:
    for seed in range(20):
        x = tuple(normal(*value.shape, seed=seed) * 3 for value in inputs)
        assert torch.equal(right(*x), mutant(*x)), f"{what} is not caught by its outputs"


def test_there_are_enough_distinct_mutants():
    assert len(MUTANTS) >= 40


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_wrong_fold_is_caught_and_located(mutant):
    start = list(MUTANTS).index(mutant)
    turns = [(SMALL[(start + turn) % len(SMALL)], start + turn // len(SMALL)) for turn in range(3 * len(SMALL))]
    assert any(check(network, pick, mutant) for network, pick in turns)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("network", FULL)
def test_every_mutant_of_every_network_is_caught(network):
    torch.set_num_threads(1)
    model, inputs = EVERY[network]()
    applied = [(mutant, pick) for pick in picks(model, inputs) for mutant in MUTANTS if check(network, pick, mutant)]
    assert len(applied) >= 35  # a BatchNorm without weight and bias leaves some out


def test_the_usual_tolerances_let_many_mutants_through():
    """The control: what allclose at rtol 1e-3 and atol 1e-5 says of the same mutants of one network."""
    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)
    site = sites_of(model, folding)[1]
    slipped = [
        name
        for name, mutant in MUTANTS.items()
        if apply(mutant, site) and torch.allclose(folding.module(*inputs), model(*inputs), rtol=1e-3, atol=1e-5)
    ]
    assert {"eps_forgotten", "eps_ten_times", "eps_added_twice"} <= set(slipped)
