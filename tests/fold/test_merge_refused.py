"""Where convolutions stay apart: each refusal with the forbidden merge done by hand, and shown to be wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from tests.fold.support import Net, double, error_of_peak, folds, run, skeleton, values

C = 6
Combine = Callable[[Any, Tensor], Any]


def net(combine: Combine, parts: dict[str, Any]) -> Any:
    return double(Net(lambda s, x: combine(s, torch.relu(s.first(x))), first=nn.Conv2d(3, C, 1), **parts))


def embedded(s: Any) -> Tensor:
    """The weights of ``large`` with those of ``small`` added in the middle, as a careless merge would have them."""
    weight: Tensor = s.large.weight.clone()
    small = s.small.weight
    for outputs in range(weight.shape[0]):
        for inputs in range(weight.shape[1]):
            low = [(big - little) // 2 for big, little in zip(weight.shape[2:], small.shape[2:], strict=True)]
            height, width = (slice(start, start + size) for start, size in zip(low, small.shape[2:], strict=True))
            weight[outputs, inputs, height, width] += small[outputs, inputs % small.shape[1]]
    return weight


def together(s: Any, y: Tensor) -> Tensor:
    """``large`` with the kernel of ``small`` in its own, and everything else as ``large`` has it."""
    both = copy.deepcopy(s.large)
    both._forward_hooks.clear()
    with torch.no_grad():
        both.weight.copy_(embedded(s))
        both.bias.add_(s.small.bias)
    return both(y)


def summed(s: Any, y: Tensor) -> Tensor:
    return s.large(y) + s.small(y)


@dataclass(frozen=True)
class Case:
    """A model whose branches may not merge.

    Attributes:
        reason: the code that the plan gives.
        combine: what it computes.
        large, small: its convolutions.
        by_hand: what it would compute merged.
        size: of the images.
    """

    reason: str
    combine: Combine
    large: dict[str, Any]
    small: dict[str, Any]
    by_hand: Combine = together
    size: int = 8


def of_other_inputs(s: Any, y: Tensor) -> Tensor:
    return s.large(y) + s.small(torch.tanh(y))


def read_twice(s: Any, y: Tensor) -> Tensor:
    branch = s.small(y)
    return (s.large(y) + branch) * branch.mean()


def read_twice_by_hand(s: Any, y: Tensor) -> Tensor:
    whole = together(s, y)
    return whole * whole.mean()


def written_between(s: Any, y: Tensor) -> Tensor:
    branch = s.large(y)
    y.mul_(2)
    return branch + s.small(y)


def seen_in_place(s: Any, y: Tensor) -> Any:
    total = y * 3
    seen = total[:, :2]
    total += s.large(y)
    total += s.small(y)
    return total, seen


def seen_in_place_by_hand(s: Any, y: Tensor) -> Any:
    total = y * 3
    return total + together(s, y), total[:, :2]


def activated(s: Any, y: Tensor) -> Tensor:
    return s.large(y) + torch.tanh(s.small(y))


def scaled_by_the_input(s: Any, y: Tensor) -> Tensor:
    return s.large(y) + s.small(y) * y.mean((2, 3), keepdim=True)


def same(**options: Any) -> dict[str, Any]:
    return {"kernel_size": 3, "padding": 1, **options}


POINT: dict[str, Any] = {"kernel_size": 1}
CASES: dict[str, Case] = {
    "an off-centre tap": Case(
        "padding-differs", summed, {"kernel_size": 4, "stride": 2, "padding": 1}, same(stride=2), size=3
    ),
    "an even kernel in an odd one": Case("padding-differs", summed, same(stride=2), {"kernel_size": 2, "stride": 2}),
    "padding that differs, where sizes agree for one input": Case(
        "padding-differs",
        summed,
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        size=3,
    ),
    "stride": Case("stride-differs", summed, {"kernel_size": 3}, {"kernel_size": 1, "stride": 2}, size=5),
    "a value with a stride of its own": Case(
        "stride-differs", lambda s, y: s.large(y) + s.small(y), same(stride=3), {"kernel_size": 1, "stride": 4}, size=4
    ),
    "dilation": Case("dilation-differs", summed, same(dilation=2, padding=2), same()),
    "padding mode": Case("padding-mode-differs", summed, same(padding_mode="reflect"), same()),
    "groups that need more": Case("more-multiplications", summed, same(groups=C), POINT),
    "groups without a common refinement": Case("more-multiplications", summed, same(groups=2), same(groups=3)),
    "different inputs": Case("different-inputs", of_other_inputs, same(), POINT),
    "a branch read elsewhere": Case("several-readers", read_twice, same(), POINT, read_twice_by_hand),
    "an input written to between": Case("different-inputs", written_between, same(), POINT),
    "an in-place sum that is seen": Case("mutated", seen_in_place, same(), POINT, seen_in_place_by_hand),
}


def model_of(case: Case) -> Any:
    return net(case.combine, {"large": nn.Conv2d(C, C, **case.large), "small": nn.Conv2d(C, C, **case.small)})


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_needed(name: str) -> None:
    case = CASES[name]
    model, x = model_of(case), values(2, 3, case.size, case.size)
    folding = folds(model, x, merge=True)
    assert [(merge.action, merge.reason) for merge in folding.plan.merges] == [("refuse", case.reason)]
    assert {folding.plan.merges[0].into, *folding.plan.merges[0].merged} == {"large", "small"}
    forbidden = copy.deepcopy(model)
    forbidden.function = lambda s, x: case.by_hand(s, torch.relu(s.first(x)))
    expected, got = run(model, x), run(forbidden, x)
    assert skeleton(expected) != skeleton(got) or error_of_peak(expected, got) > 1e-3


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_an_even_kernel_is_not_placed_by_halving() -> None:
    """It is padded on one side, and stands on the other; between is no middle."""
    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 2, padding="same")}
    model, x = net(summed, parts), values(2, 3, 8, 8)
    assert [merge.action for merge in folds(model, x, merge=True).plan.merges] == ["merge"]
    forbidden = copy.deepcopy(model)
    forbidden.function = lambda s, x: together(s, torch.relu(s.first(x)))
    assert error_of_peak(run(model, x), run(forbidden, x)) > 1e-3


NO_CANDIDATES: dict[str, Combine] = {
    "an activation on the way": activated,
    "a factor from the input": scaled_by_the_input,
    "a factor for each column": lambda s, y: s.large(y) + s.small(y) * s.columns,
    "a factor that adds a dimension": lambda s, y: s.large(y) + (s.small(y) * s.five).sum(0),
    "a factor of another dtype": lambda s, y: s.large(y) + s.small(y) * s.single.double(),
}


@pytest.mark.parametrize("name", NO_CANDIDATES)
def test_what_is_no_branch_stays(name: str) -> None:
    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    constants = {"columns": torch.randn(C), "five": torch.randn(1, 1, C, 1, 1), "single": torch.randn(C, 1, 1)}
    model, x = net(NO_CANDIDATES[name], parts | constants), values(2, 3, C, C)
    folding = folds(model, x, merge=True)
    alone = name == "a factor of another dtype"  # float64 by now, and merged
    assert any(merge.action == "merge" for merge in folding.plan.merges) == alone
    if not alone:
        forbidden = copy.deepcopy(model)
        forbidden.function = lambda s, x: together(s, torch.relu(s.first(x)))
        assert error_of_peak(run(model, x), run(forbidden, x)) > 1e-3


@pytest.mark.parametrize("channels", [1, C])
def test_terms_that_are_stretched_stay(channels: int) -> None:
    """One channel that is added to six is no convolution with six outputs of one group of weights."""
    parts = {"large": nn.Conv2d(C, channels, 3, padding=1), "small": nn.Conv2d(C, C + 1 - channels, 1)}
    folding = folds(net(summed, parts), values(2, 3, 8, 8), merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["channels-differ"]


def test_the_value_itself_stays_beside_a_convolution_with_other_channels() -> None:
    grey = double(Net(lambda s, x: x + s.conv(x), conv=nn.Conv2d(1, 4, 3, padding=1)))
    folding = folds(grey, values(2, 1, 8, 8), merge=True)
    assert all(merge.action == "refuse" for merge in folding.plan.merges)


@pytest.mark.parametrize("conv", [{"stride": 2}, {"kernel_size": 4, "padding": "same"}, {"padding": 0}], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_the_value_itself_stays_where_no_tap_sees_it(conv: dict[str, Any]) -> None:
    size = {"stride": 1, "padding": 2}.get("stride", 1)
    options = {"kernel_size": 3, "padding": 1, **conv}
    layer = nn.Conv2d(C, C, **options)
    x = values(2, 3, size if "stride" in conv else 3, size if "stride" in conv else 3)
    model = net(lambda s, y: y + s.conv(y), {"conv": layer})
    folding = folds(model, x, merge=True)
    fits = conv.get("padding") == "same"  # offset by one: the padding says where
    assert any(merge.action == "merge" for merge in folding.plan.merges) == fits


# --- pools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AvgPool2d(3, 1, 1, ceil_mode=True)],
    ids=["counts no padding", "rounds up"],
)
def test_a_pool_that_does_not_divide_by_the_same_everywhere_stays(pool: nn.Module) -> None:
    parts = {"pool": pool, "large": nn.Conv2d(C, C, 3, padding=1, groups=C)}
    model, x = net(lambda s, y: s.large(y) + s.pool(y), parts), values(2, 3, 8, 8)
    folding = folds(model, x, merge=True)
    assert not any(merge.action == "merge" for merge in folding.plan.merges)
    if not pool.ceil_mode:
        forbidden = copy.deepcopy(model)
        forbidden.pool = nn.AvgPool2d(3, 1, 1)
        assert error_of_peak(run(model, x), run(forbidden, x)) > 1e-3


# --- sequences ----------------------------------------------------------------------------------------------------


def two(one: nn.Module, other: nn.Module, combine: Combine = lambda s, y: s.two(s.one(y))) -> Any:
    return net(combine, {"one": one, "two": other})


def test_zero_padding_between_would_lose_the_bias_at_the_borders() -> None:
    model, x = two(nn.Conv2d(C, 9, 1), nn.Conv2d(9, 4, 3, padding=1)), values(2, 3, 8, 8)
    folding = folds(model, x, merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["zero-padding"]

    def by_hand(s: Any, x: Tensor) -> Tensor:
        weight = torch.einsum("omhw,mi->oihw", s.two.weight, s.one.weight[..., 0, 0])
        bias = s.two.bias + torch.einsum("omhw,m->o", s.two.weight, s.one.bias)
        return F.conv2d(torch.relu(s.first(x)), weight, bias, padding=1)

    forbidden = copy.deepcopy(model)
    forbidden.function = by_hand
    expected, got = run(model, x), run(forbidden, x)
    assert error_of_peak(expected, got) > 1e-3
    assert error_of_peak(expected[..., 1:-1, 1:-1], got[..., 1:-1, 1:-1]) < 1e-12  # right inside


def test_a_batchnorm_between_makes_the_bias_that_is_lost() -> None:
    parts = {"one": nn.Conv2d(C, 9, 1, bias=False), "two": nn.Conv2d(9, 4, 3, padding=1), "bn": nn.BatchNorm2d(9)}
    folding = folds(net(lambda s, y: s.two(s.bn(s.one(y))), parts), values(2, 3, 8, 8), merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["zero-padding"]


def test_a_sequence_that_would_multiply_more_stays() -> None:
    model = two(nn.Conv2d(C, C, 7, padding=3, groups=C), nn.Conv2d(C, 24, 1))
    folding = folds(model, values(2, 3, 8, 8), merge=True)
    (refused,) = folding.plan.merges
    assert (refused.reason, refused.into, refused.merged) == ("more-multiplications", "two", ("one",))


def test_two_large_kernels_are_no_candidates() -> None:
    folding = folds(two(nn.Conv2d(C, 2, 3), nn.Conv2d(2, C, 3)), values(2, 3, 8, 8), merge=True)
    assert folding.plan.merges == ()


def test_a_value_in_the_middle_that_is_read_elsewhere_stays() -> None:
    def combine(s: Any, y: Tensor) -> Any:
        middle = s.one(y)
        return s.two(middle), middle

    folding = folds(two(nn.Conv2d(C, 9, 3), nn.Conv2d(9, 4, 1), combine), values(2, 3, 8, 8), merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["several-readers"]


def test_a_shape_in_the_middle_that_is_read_stays() -> None:
    def combine(s: Any, y: Tensor) -> Any:
        middle = s.one(y)
        return s.two(middle) * middle.shape[2]

    folding = folds(two(nn.Conv2d(C, 9, 3), nn.Conv2d(9, 4, 1), combine), values(2, 3, 8, 8), merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["shape-read"]


def test_a_shape_inside_a_sum_that_is_left_in_part_stays() -> None:
    def combine(s: Any, y: Tensor) -> Any:
        inner = s.large(y) + s.small(y)
        return (inner + torch.tanh(y)) * inner.shape[1]

    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    folding = folds(net(combine, parts), values(2, 3, 8, 8), merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["shape-read"]


# --- layers that must stay ----------------------------------------------------------------------------------------


def test_hooks_would_be_lost() -> None:
    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    model, x = net(summed, parts), values(2, 3, 8, 8)
    model.small.register_forward_hook(lambda _layer, _inputs, output: 2 * output)
    folding = folds(model, x, merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["hooks"]
    forbidden = copy.deepcopy(model)
    forbidden.function = lambda s, x: together(s, torch.relu(s.first(x)))
    assert error_of_peak(run(model, x), run(forbidden, x)) > 1e-3


def test_a_shared_layer_stays_where_sharing_is_to_be_kept() -> None:
    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    model = net(lambda s, y: s.large(torch.tanh(summed(s, y))), parts)
    folding = folds(model, values(2, 3, 8, 8), merge=True, share="keep")
    assert [merge.reason for merge in folding.plan.merges] == ["shared"]


def test_a_weight_that_is_computed_from_the_input_stays() -> None:
    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    model = net(lambda s, y: s.large(y) + F.conv2d(y, s.small.weight * y.mean()), parts)
    folding = folds(model, values(2, 3, 8, 8), merge=True)
    assert [merge.reason for merge in folding.plan.merges] == ["computed-weight"]


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_weights_stay() -> None:
    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    model = nn.Module.to(Net(summed, **parts), torch.complex64).eval()
    x = torch.randn(2, C, 8, 8, dtype=torch.complex64)
    folding = bnfold.fold(model, x, merge=True)
    assert not any(merge.action == "merge" for merge in folding.plan.merges)
    assert torch.equal(run(model, x), run(folding.module, x))
