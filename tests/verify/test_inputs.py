"""Seeded inputs: distributions, batch sizes, and sensible integers."""

from __future__ import annotations

import pytest
import torch

from bnfold.errors import UsageError
from bnfold.verify.inputs import given_case, other_size, seeded_cases
from tests.networks import normal


def test_batch_sizes_one_two_and_three_are_among_them():
    cases = seeded_cases((normal(4, 3, 8, 8),), seed=0)
    assert {case.inputs[0].shape[0] for case in cases} == {1, 2, 3}
    some = seeded_cases((normal(4, 3, 8, 8),), seed=0, batches="some")
    assert [case.inputs[0].shape[0] for case in some] == [4, 1, 4, 1]
    assert all(case.inputs[0].shape[1:] == (3, 8, 8) for case in cases)
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_where_the_batch_is_fixed_all_cases_are_of_it_and_no_two_alike(size):
    x = normal(size, 3, 8, 8)
    cases = [*seeded_cases((x,), seed=0, batches="own"), other_size((x,), seed=0, batches="own")]
    assert [case.inputs[0].shape[0] for case in cases] == [size] * 5
    assert len({case.name for case in cases}) == 5
    assert len({float(case.inputs[0].sum()) for case in cases}) == 5


def test_the_same_seed_gives_the_same_inputs_and_another_others():
    first, again, other = (seeded_cases((normal(2, 3, 8, 8),), seed=seed) for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one.inputs[0], two.inputs[0])
        assert not torch.equal(one.inputs[0], three.inputs[0])


def test_torch_s_own_random_state_is_not_touched():
    state = torch.get_rng_state()
    seeded_cases((normal(2, 3, 8, 8),), seed=0, thorough=True)
    assert torch.equal(state, torch.get_rng_state())


def test_the_distributions_differ():
    cases = {
        case.name.split(",")[0]: case.inputs[0] for case in seeded_cases((normal(2, 3, 32, 32),), seed=0, thorough=True)
    }
    assert cases["normal"].std() == pytest.approx(1, abs=0.1)
    assert (cases["sparse"] == 0).float().mean() == pytest.approx(0.9, abs=0.05)
    assert cases["large"].std() > 20
    assert cases["small"].std() < 0.05
    picture = cases["image-like"]
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (picture.diff(dim=3).abs().mean() * 2) < cases["uniform"].diff(dim=3).abs().mean()
    assert cases["constant"].std(dim=(2, 3)).max() == 0
    assert cases["constant"].std() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_the_dtype_is_the_example_s_and_all_is_finite(dtype):
    for case in seeded_cases((normal(2, 3, 8, 8).to(dtype),), seed=0, thorough=True):
        assert case.inputs[0].dtype == dtype
        assert torch.isfinite(torch.view_as_real(case.inputs[0]) if dtype.is_complex else case.inputs[0]).all()


def test_integers_keep_to_the_values_of_the_example():
    example = (torch.tensor([[3, 7, 7], [11, 3, 0]]), torch.tensor([[True, True, True]] * 2))
    drawn, mask = seeded_cases(example, seed=0)[2].inputs
    assert set(drawn.flatten().tolist()) <= {0, 3, 7, 11}
    assert drawn.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert drawn.shape == mask.shape == (3, 3)


def test_what_has_no_batch_stays_as_it_is():
    table, scalar = normal(7, 2), torch.tensor(0.5)
    for case in seeded_cases((normal(2, 3), table, scalar, 5, None), seed=0):
        assert case.inputs[1] is table
        assert case.inputs[2] is scalar
        assert case.inputs[3:] == (5, None)


def test_an_empty_batch_gives_inputs_all_the_same():
    assert seeded_cases((torch.zeros(0, 3),), seed=0)[0].inputs[0].shape == (2, 3)
    assert seeded_cases((torch.zeros(0, 3, dtype=torch.int64),), seed=0)[0].inputs[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("shape", "smaller"),
    [
        ((2, 3, 224, 224), (1, 3, 160, 160)),
        ((2, 1, 28, 28), (1, 1, 20, 20)),
        ((1, 2, 64), (1, 2, 32)),
        ((1, 2, 9, 4), (1, 2, 6, 2)),
    ],
)
def test_another_size_is_three_quarters(shape, smaller):
    case = other_size((normal(*shape),), seed=0)
    assert case is not None
    assert case.resized
    assert tuple(case.inputs[0].shape) == smaller


@pytest.mark.parametrize(
    "example", [(normal(2, 5),), (normal(2, 3, 8), normal(2, 3, 8)), (torch.zeros(2, 3, 8).int(),)]
)
def test_there_is_no_other_size_for_what_has_none(example):
    assert other_size(example, seed=0) is None


def test_given_inputs_must_be_finite_tensors():
    assert given_case("mine", normal(2, 3)).given
    with pytest.raises(UsageError, match="Input 0 of mine holds NaN"):
        given_case("mine", normal(2, 3) * float("nan"))
    with pytest.raises(UsageError, match="no tensor"):
        given_case("mine", (1, 2))
