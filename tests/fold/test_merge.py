"""Convolutions whose sum, or whose sequence, is one convolution become one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.fold.api import Folding
from bnfold.fold.decision import MergeDecision
from tests.fold.support import ALGEBRA, Net, assert_same_function, double, error_of_peak, folds, run, values

C = 6
IMAGES = (2, 3, 9, 8)


def net(combine: Callable[[Any, Tensor], Any], **parts: Any) -> nn.Module:
    """A stem, ``combine`` of its value, and an activation."""
    return double(Net(lambda s, x: torch.relu(combine(s, torch.relu(s.first(x)))), first=nn.Conv2d(3, C, 1), **parts))


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in module.modules())


def merged(model: nn.Module, *inputs: Tensor, **options: Any) -> Folding:
    return folds(model, *(inputs or (values(*IMAGES),)), merge=True, **options)


def only_merge(folding: Folding) -> MergeDecision:
    (decision,) = folding.plan.merges
    assert decision.action == "merge", decision.detail
    return decision


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # a kernel and a smaller one that stands in it
    "3x3 and 1x1": ({}, {"kernel_size": 1}),
    "two of a size": ({}, {"kernel_size": 3, "padding": 1}),
    "7x7 and 3x3": ({"kernel_size": 7, "padding": 3}, {"kernel_size": 3, "padding": 1}),
    "with a stride": ({"stride": 2}, {"kernel_size": 1, "stride": 2}),
    "no padding": ({"kernel_size": 1, "padding": 0}, {"kernel_size": 1}),
    "less padding": ({"kernel_size": 5, "padding": 1}, {"kernel_size": 3}),
    "even in even": ({"kernel_size": 4, "padding": 1}, {"kernel_size": 2}),
    "even in odd, one side padded more": ({}, {"kernel_size": 2, "padding": "same"}),
    "odd in even, one side padded more": ({"kernel_size": 4, "padding": "same"}, {"kernel_size": 3, "padding": 1}),
    "3x1 in 3x3": ({}, {"kernel_size": (3, 1), "padding": (1, 0)}),
    "dilated": ({"dilation": 2, "padding": 2}, {"kernel_size": 3, "dilation": 2, "padding": 2}),
    "1x1 in dilated": ({"dilation": 3, "padding": 3}, {"kernel_size": 1}),
    "dilated in dense": ({"kernel_size": 5, "padding": 2}, {"kernel_size": 3, "dilation": 2, "padding": 2}),
    "two taps apart": ({}, {"kernel_size": 2, "dilation": 2, "padding": 1}),
    "reflected": ({"padding_mode": "reflect"}, {"kernel_size": 1}),
    "circular": ({"kernel_size": 5, "padding": 2, "padding_mode": "circular"}, {"padding_mode": "circular"}),
    "same groups": ({"groups": 3}, {"kernel_size": 1, "groups": 3}),
    "depthwise in dense": ({}, {"groups": C}),
    "grouped in dense": ({}, {"kernel_size": 1, "groups": 2}),
    "depthwise": ({"groups": C}, {"kernel_size": 1, "groups": C}),
    "depthwise in grouped": ({"groups": 2}, {"groups": C}),
    "without biases": ({"bias": False}, {"kernel_size": 1, "bias": False}),
}


def pair(name: str, combine: Callable[[Any, Tensor], Any]) -> nn.Module:
    large, small = PAIRS[name]
    small = {"kernel_size": 3, **small}
    if "kernel_size" not in PAIRS[name][1]:
        small.setdefault("padding", 1)
    parts: dict[str, Any] = {"large": nn.Conv2d(C, C, **{"kernel_size": 3, "padding": 1, **large})}
    parts["small"] = nn.Conv2d(C, C, **small)
    return net(combine, **parts, a=nn.BatchNorm2d(C), b=nn.BatchNorm2d(C))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", PAIRS)
def test_the_smaller_kernel_goes_into_the_larger(name: str) -> None:
    folding = merged(pair(name, lambda s, y: s.a(s.small(y)) - s.b(s.large(y))))
    decision = only_merge(folding)
    assert (decision.into, decision.merged, decision.kind) in [
        ("large", ("small",), "sum"),
        ("small", ("large",), "sum"),
    ]
    assert convolutions(folding.module) == 2
    assert decision.macs_after is not None
    assert decision.macs_before is not None
    assert decision.macs_after <= decision.macs_before


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_dimensions(dims: int) -> None:
    conv: Any = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    norm: Any = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dims]
    model = double(
        Net(
            lambda s, x: s.a(s.large(x)) + s.b(s.small(x)) + s.c(x),
            large=conv(3, 3, 3, padding=1),
            small=conv(3, 3, 1),
            **{name: norm(3) for name in "abc"},
        )
    )
    folding = merged(model, values(2, 3, *[5] * dims))
    assert convolutions(folding.module) == 1
    assert only_merge(folding).into == "large"


SUMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "subtracted": lambda s, y: s.small(y) - s.large(y),
    "both subtracted": lambda s, y: torch.tanh(y) - s.small(y) - s.large(y),
    "nested": lambda s, y: (s.small(y) + torch.tanh(y)) - (y * y - s.large(y)),
    "far apart": lambda s, y: ((s.small(y) - torch.tanh(y)) - y * y) + s.large(y),
    "the value itself": lambda s, y: y + s.large(y) - s.small(y),
    "the value itself, twice": lambda s, y: (y + s.large(y)) + (y + s.small(y)),
    "in place": lambda s, y: s.small(y).add_(s.large(y)),
    "by sum()": lambda s, y: sum([s.small(y), s.large(y), y]),
    "through dropout": lambda s, y: F.dropout(s.small(y), 0.5, False) + F.dropout(s.large(y) + 0, 0.5, False),
    "through layers that pass it on": lambda s, y: s.dropout(s.small(y)) + s.dropout(s.large(y) + s.dropout(y)),
    "a sum passed on": lambda s, y: F.dropout(s.small(y) + y, 0.5, False) + s.large(y),
    "numbers before": lambda s, y: 2 * s.small(y) + s.large(y) / 3 - 0.5 * y,
    "constants for each channel": lambda s, y: s.g * (s.small(y) - s.large(y)) + y * s.g,
    "constants for each channel, in place": lambda s, y: s.small(y).mul_(s.g).neg() + s.large(y),
    "the rank is asserted": lambda s, y: asserted(s.small(y)) + asserted(s.large(y)),
    "the shape is read": lambda s, y: read_shape(s.small(y)) + read_shape(s.large(y)),
    "the sum's shape is read": lambda s, y: read_shape(s.small(y) + s.large(y)) * 2,
}


def asserted(y: Tensor) -> Tensor:
    torch._assert(y.ndim == 4, "an image")
    return y


def read_shape(y: Tensor) -> Tensor:
    torch._assert(y.shape[1] == C, "as many channels")
    return y


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("examples", [True, False])
def test_branches_are_found_in_any_sum(name: str, examples: bool) -> None:
    parts: dict[str, Any] = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    parts |= {"g": nn.Parameter(torch.randn(C, 1, 1)), "dropout": nn.Dropout(0.2)}
    folding = merged(net(SUMS[name], **parts), examples=examples)
    assert convolutions(folding.module) == 2, [merge.detail for merge in folding.plan.merges]
    decision = only_merge(folding)
    assert (decision.into, decision.merged) == ("large", ("small",))
    assert ("the identity" in decision.detail) == ("itself" in name or name in _WITH_IDENTITY)
    assert decision.macs_after is not None


_WITH_IDENTITY = (
    "by sum()",
    "through layers that pass it on",
    "a sum passed on",
    "numbers before",
    "constants for each channel",
)


def test_what_is_nested_merges_as_a_whole() -> None:
    """FastViT's mixer: ``x + g * (mixer(x) - norm(x))``, the mixer itself of branches."""

    def mixer(s: Any, y: Tensor) -> Tensor:
        out = s.scale(s.small(y)) + s.identity(y)
        out += s.norm(s.large(y))
        return y + s.g * (out - s.other(y))

    parts: dict[str, Any] = {name: nn.BatchNorm2d(C) for name in ("scale", "identity", "norm", "other")}
    parts |= {"large": nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False), "g": nn.Parameter(torch.randn(C, 1, 1))}
    folding = merged(net(mixer, **parts, small=nn.Conv2d(C, C, 1, groups=C, bias=False)))
    assert convolutions(folding.module) == 2
    assert [node.op for node in folding.module.graph.nodes] == [
        "placeholder",
        "call_module",
        "call_function",
        "call_module",
        "call_function",
        "output",
    ]


def test_a_pool_before_a_convolution_goes_into_a_larger_kernel() -> None:
    parts = {"pool": nn.AvgPool2d(3, 2, 1), "after": nn.Conv2d(C, 4, 1), "large": nn.Conv2d(C, 4, 3, 2, 1)}
    folding = merged(net(lambda s, y: s.after(s.pool(y)) + s.large(y), **parts))
    assert only_merge(folding).merged == ("pool", "after")
    assert convolutions(folding.module) == 2


def test_a_pool_goes_into_a_kernel_of_its_size() -> None:
    for pool in (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, divisor_override=4), nn.AvgPool2d(1)):
        parts = {"pool": pool, "large": nn.Conv2d(C, C, 3, padding=1, groups=C)}
        folding = merged(net(lambda s, y: s.pool(y) - s.large(y), **parts))
        assert only_merge(folding).merged == ("pool",)


SEQUENCES: dict[str, tuple[nn.Module, nn.Module]] = {
    "3x3, then 1x1": (nn.Conv2d(C, 9, 3, padding=1), nn.Conv2d(9, 4, 1)),
    "3x3 with a stride, then 1x1 with one": (nn.Conv2d(C, 9, 3, 2, 1), nn.Conv2d(9, 4, 1, 2)),
    "reflected 3x3, then 1x1": (nn.Conv2d(C, 9, 3, padding=1, padding_mode="reflect"), nn.Conv2d(9, 4, 1)),
    "1x1, then 3x3 without padding": (nn.Conv2d(C, 9, 1), nn.Conv2d(9, 4, 3)),
    "1x1, then 3x3 with reflected padding": (nn.Conv2d(C, 9, 1), nn.Conv2d(9, 4, 3, 2, 1, padding_mode="reflect")),
    "1x1 without a bias, then 3x3": (nn.Conv2d(C, 9, 1, bias=False), nn.Conv2d(9, 4, 3, padding=1)),
    "1x1, then 1x1": (nn.Conv2d(C, 9, 1), nn.Conv2d(9, 8, 1)),
    "grouped 3x3, then grouped 1x1": (nn.Conv2d(C, 12, 3, groups=2), nn.Conv2d(12, 8, 1, groups=4)),
    "depthwise 1x1, then 3x3": (nn.Conv2d(C, C, 1, groups=C, bias=False), nn.Conv2d(C, 4, 3, padding=1)),
    "depthwise 3x3, then depthwise 1x1": (nn.Conv2d(C, C, 3, groups=C, padding=1), nn.Conv2d(C, C, 1, groups=C)),
    "two for each channel, then depthwise 1x1": (nn.Conv2d(C, 12, 3, groups=C), nn.Conv2d(12, 12, 1, groups=12)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_with_a_1x1_becomes_one(name: str) -> None:
    first, second = SEQUENCES[name]
    norm = nn.BatchNorm2d(second.out_channels)  # type: ignore[arg-type]
    folding = merged(net(lambda s, y: s.bn(s.two(s.one(y))), one=first, two=second, bn=norm))
    decision = only_merge(folding)
    assert decision.kind == "sequence"
    assert {decision.into, *decision.merged} == {"one", "two"}
    assert decision.macs_before is not None
    assert decision.macs_after is not None
    assert decision.macs_after < decision.macs_before
    before, after = folding.counts()
    assert before.macs is not None
    assert before.macs - decision.macs_before + decision.macs_after == after.macs


def test_multiplications_by_constants_go_into_the_convolution() -> None:
    parts = {"conv": nn.Conv2d(C, 4, 3), "g": nn.Parameter(torch.randn(1, 4, 1, 1))}
    folding = merged(net(lambda s, y: s.conv(y) * s.g / 2, **parts))
    assert only_merge(folding).kind == "factor"
    assert "mul" not in folding.module.code


@pytest.mark.parametrize("pooled", [False, True])
def test_constants_of_a_wider_type_stay_since_the_sum_is_of_that_type(pooled: bool) -> None:
    parts: dict[str, Any] = {
        "conv": nn.Conv2d(3, 3, 3, padding=1),
        "pool": nn.AvgPool2d(3, 1, 1),
        "g": torch.randn(3, 1, 1),
    }
    model = Net(lambda s, x: s.conv(x) + (s.pool(x) if pooled else x) * s.g, **parts).eval()
    model.g = model.g.double()
    x = torch.randn(2, 3, 6, 6)
    folding = bnfold.fold(model, x, merge=True)
    assert folding.module(x).dtype == model(x).dtype == torch.float64
    assert convolutions(folding.module) == 1
    assert "mul" in folding.module.code or " * " in folding.module.code


def test_an_addition_of_zero_after_a_convolution_is_not_computed() -> None:
    """MobileOne's ``out = 0; out += conv(x)``."""
    folding = merged(net(lambda s, y: 0 + s.bn(s.conv(y)), conv=nn.Conv2d(C, 4, 3), bn=nn.BatchNorm2d(4)))
    assert only_merge(folding).detail == "an addition of zero merged into conv."
    assert "add" not in folding.module.code
    assert " + " not in folding.module.code


def test_two_groups_of_branches_in_one_sum() -> None:
    parts = {f"conv{i}": nn.Conv2d(C, C, 3, padding=1) for i in range(4)}
    model = net(lambda s, y: s.conv0(y) + s.conv1(torch.tanh(y)) + s.conv2(y) - s.conv3(torch.tanh(y)), **parts)
    tanh_twice = merged(model)
    assert [merge.action for merge in tanh_twice.plan.merges] == ["merge", *["refuse"] * 2]  # two calls of tanh

    def once(s: Any, y: Tensor) -> Tensor:
        z = torch.tanh(y)
        return s.conv0(y) + s.conv1(z) + s.conv2(y) - s.conv3(z)

    folding = merged(net(once, **parts))
    assert [(merge.into, merge.merged) for merge in folding.plan.merges] == [
        ("conv0", ("conv2",)),
        ("conv1", ("conv3",)),
    ]
    assert convolutions(folding.module) == 3


def test_functions_and_exported_graphs_merge_too() -> None:
    parts = {
        "w": nn.Parameter(torch.randn(C, C, 3, 3)),
        "v": nn.Parameter(torch.randn(C, C, 1, 1)),
        "bn": nn.BatchNorm2d(C),
    }
    model = net(lambda s, y: s.bn(F.conv2d(y, s.w, padding=1)) + F.conv2d(y, s.v, groups=1), **parts)
    folding = merged(model)
    assert convolutions(folding.module) == 2
    assert "conv2d" in only_merge(folding).into
    exported = bnfold.fold(model, values(*IMAGES), merge=True, capture="export")
    assert_same_function(model, exported, values(*IMAGES))
    assert convolutions(exported.module) == 1  # the stem is a function there


def test_a_parametrized_weight_merges_where_it_is_constant() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(C, C, 3, padding=1))
    folding = merged(net(lambda s, y: s.large(y) + s.small(y), large=layer, small=nn.Conv2d(C, C, 1)))
    assert only_merge(folding).merged == ("small",)


def test_a_shared_layer_keeps_its_weights_for_its_other_call() -> None:
    """Written into the layer itself, the merged weights would change the other call."""

    def twice(s: Any, y: Tensor) -> Tensor:
        z = torch.tanh(s.large(y) + s.small(y))
        return s.large(z)

    parts = {"large": nn.Conv2d(C, C, 3, padding=1), "small": nn.Conv2d(C, C, 1)}
    model = net(twice, **parts)
    folding = merged(model)
    assert only_merge(folding).into == "large"
    wrong = copy.deepcopy(model)
    wrong.function = lambda s, x: torch.relu(s.large(torch.tanh(s.large(torch.relu(s.first(x))))))
    with torch.no_grad():
        wrong.large.weight[..., 1, 1] += wrong.small.weight[..., 0, 0]
        wrong.large.bias += wrong.small.bias
    assert error_of_peak(run(folding.module, values(*IMAGES)), run(wrong, values(*IMAGES))) > 1e-3


def test_the_model_keeps_its_weights_and_the_fold_has_one_rounding() -> None:
    model = pair("3x3 and 1x1", lambda s, y: s.a(s.small(y)) + s.b(s.large(y)) + y).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folding = bnfold.fold(model, values(*IMAGES).float(), merge=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _, exact = folding.in_float64()
    state = folding.module.state_dict()
    assert state.keys() == exact.state_dict().keys()
    for name, value in exact.state_dict().items():
        assert torch.equal(state[name], value.float())  # rounded once, and nothing before


def test_a_merge_that_overflows_is_left_out() -> None:
    model = net(
        lambda s, y: s.large(y) + s.small(y), large=nn.Conv2d(C, C, 3, padding=1), small=nn.Conv2d(C, C, 1)
    ).half()
    with torch.no_grad():
        model.large.weight[0, 0, 1, 1] = model.small.weight[0, 0, 0, 0] = 4e4
    folding = bnfold.fold(model, merge=True)
    (refused,) = folding.plan.merges
    assert (refused.action, refused.reason) == ("refuse", "weight-not-finite")
    assert bnfold.plan(model, merge=True).merges == folding.plan.merges
    assert convolutions(folding.module) == 3
    assert all(bool(tensor.isfinite().all()) for tensor in folding.module.state_dict().values())


@pytest.mark.parametrize("name", ["large", "small", "a", "b"])
def test_keep_undoes_a_merge_by_the_name_of_a_layer_in_a_branch(name: str) -> None:
    model = pair("3x3 and 1x1", lambda s, y: s.a(s.small(y)) + s.b(s.large(y)))
    folding = merged(model, keep=[name])
    assert all(merge.action == "refuse" for merge in folding.plan.merges)
    assert folding.plan.merges[0].reason == ("kept-batchnorm" if name in "ab" else "kept-by-request")
    assert convolutions(folding.module) == 3
    assert folding.plan.summary["keep"] == (1 if name in "ab" else 0)


def test_keep_of_an_unknown_name_is_an_error_with_merge_too() -> None:
    model = pair("3x3 and 1x1", lambda s, y: s.a(s.small(y)) + s.b(s.large(y)))
    with pytest.raises(bnfold.UnknownNameError, match="large"):
        bnfold.fold(model, merge=True, keep=["larg"])
    with pytest.raises(bnfold.UnknownNameError):
        bnfold.fold(model, keep=["large"])


def test_merges_are_data_and_only_on_request() -> None:
    model = pair("3x3 and 1x1", lambda s, y: s.a(s.small(y)) + s.b(s.large(y)))
    assert bnfold.plan(model).merges == ()
    plan = bnfold.plan(model, values(*IMAGES), merge=True)
    (told,) = json.loads(json.dumps(plan.to_dict()))["merges"]
    macs = 2 * C * C * 9 * 8 // 2
    assert told == {
        "into": "large",
        "merged": ["small"],
        "action": "merge",
        "kind": "sum",
        "reason": None,
        "detail": "small merged into large.",
        "macs_before": 10 * macs,
        "macs_after": 9 * macs,
        "site": "add",
    }


def test_parts_that_are_captured_on_their_own_merge_too() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = pair("3x3 and 1x1", lambda s, y: s.a(s.small(y)) + s.b(s.large(y)))

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x)
            return y if float(y.sum().item()) > 0 else -y

    model = Odd().eval()
    folding = bnfold.fold(model, values(*IMAGES), merge=True)
    assert folding.plan.capture == "piecewise"
    assert only_merge(folding).into == "block.large"
    assert only_merge(folding).detail == "block.small merged into block.large."
    assert error_of_peak(run(model, values(*IMAGES)), run(folding.module, values(*IMAGES))) <= ALGEBRA
    kept = bnfold.fold(model, values(*IMAGES), merge=True, keep=["block.small"])
    assert {merge.action for merge in kept.plan.merges} == {"refuse"}


def test_parts_whose_names_begin_alike_are_each_told_by_their_whole_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "conv1": nn.Conv2d(3, 4, 1), "bn": nn.BatchNorm2d(4)}
            self.p = Net(lambda s, y: s.conv1(y) + s.bn(s.conv(y)), **layers)

        def forward(self, x: Tensor) -> Tensor:
            y = self.p(x)
            return y if float(y.sum().item()) > 0 else -y

    folding = bnfold.fold(double(Odd()), values(2, 3, 9, 9), merge=True)
    assert folding.plan.capture == "piecewise"
    assert only_merge(folding).detail == "p.conv1 merged into p.conv."
    assert (only_merge(folding).merged, only_merge(folding).into) == (("p.conv1",), "p.conv")


def test_a_merged_model_verifies_and_a_wrong_one_does_not() -> None:
    model = pair("3x3 and 1x1", lambda s, y: s.a(s.small(y)) + s.b(s.large(y)) + y).float()
    x = values(*IMAGES).float()
    folding = bnfold.fold(model, x, merge=True)
    assert bnfold.verify(model, folding.module, x, onnx=False).passed
    with torch.no_grad():
        folding.module.get_submodule("large").weight[0, 0, 0, 0] += 0.05
    report = bnfold.verify(model, folding.module, x, onnx=False)
    assert not report.passed
