"""Affines by constants in torch models: folded where asked for, like BatchNorms; refused where that would be wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.fold.api import Folding
from tests.fold.support import ALGEBRA, Net, double, error_of_peak, run, values

C = 6
IMAGES = (2, 3, 9, 8)


def scales(*shape: int, seed: int = 5) -> Tensor:
    """Numbers of both signs, none of them small."""
    drawn = values(*shape, seed=seed)
    return drawn + 0.3 * torch.sign(drawn)


def folded(model: nn.Module, *shape: int, **options: Any) -> Folding:
    """Fold, and hold the fold to what it must be: of a model in float64, and of the same in float32."""
    x = values(*(shape or IMAGES))
    expected = run(model, x)
    folding = bnfold.fold(model, x, affines=True, **options)
    found = run(folding.module, x)
    assert error_of_peak(expected, found) <= ALGEBRA
    narrow = bnfold.fold(model.float(), x.float(), affines=True, **options)
    assert told(narrow) == told(folding)
    original, exact = narrow.in_float64()
    assert error_of_peak(run(original, x), run(exact, x)) <= ALGEBRA
    with torch.no_grad():
        assert model(x.float()).dtype == narrow.module(x.float()).dtype
    model.double()
    return folding


def told(folding: Folding) -> list[tuple[str, str, str | None]]:
    return [(decision.batchnorm, decision.action, decision.reason) for decision in folding.plan]


SPELLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "x * c": lambda s, y: y * s.c,
    "c * x": lambda s, y: s.c * y,
    "x / c": lambda s, y: y / s.c,
    "x + c": lambda s, y: y + s.c,
    "c + x": lambda s, y: s.c + y,
    "x - c": lambda s, y: y - s.c,
    "c - x": lambda s, y: s.c - y,
    "torch.mul": lambda s, y: torch.mul(y, s.c),
    "torch.div": lambda s, y: torch.true_divide(y, s.c),
    "torch.sub": lambda s, y: torch.sub(s.c, y),
    "x.add": lambda s, y: y.add(s.c),
    "x.mul_": lambda s, y: y.mul_(s.c),
    "x.div_": lambda s, y: y.div_(s.c),
    "x -= c": lambda s, y: _less(y, s.c),
    "computed": lambda s, y: y * (s.c.flatten() * (s.v + 1e-3).rsqrt()).view(1, -1, 1, 1),
    "of other shapes": lambda s, y: y * s.c.unsqueeze(0),
}


def _less(y: Tensor, c: Tensor) -> Tensor:
    y -= c
    return y


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_folds_into_the_layer_before_it(name: str) -> None:
    c: Any = scales(C, 1, 1)
    parts = {
        "c": nn.Parameter(c) if name in ("x * c", "c - x", "x.mul_") else c,
        "v": scales(C).abs(),
        "conv": nn.Conv2d(3, C, 3),
    }
    model = double(Net(lambda s, x: torch.tanh(SPELLINGS[name](s, F.avg_pool2d(s.conv(x), 2))), **parts))
    folding = folded(model)
    (decision,) = folding.plan
    assert (decision.kind, decision.action, decision.into) == ("affine", "fold", ("conv",))
    assert decision.batchnorm == ("mul_1" if name == "computed" else "c")
    assert [node.op for node in folding.module.graph.nodes if node.op == "get_attr"] == []
    off = bnfold.plan(model, values(*IMAGES))
    assert len(off) == 0


def test_a_batchnorm_written_by_hand_folds_whole() -> None:
    def by_hand(s: Any, x: Tensor) -> Tensor:
        y = s.pool(s.conv(x))
        return torch.relu((y - s.mean) / torch.sqrt(s.var + 1e-3).view(1, -1, 1, 1) * s.weight + s.bias)

    parts = {"mean": scales(1, C, 1, 1), "var": scales(C).abs(), "weight": scales(C, 1, 1), "bias": scales(C, 1, 1)}
    folding = folded(double(Net(by_hand, conv=nn.Conv2d(3, C, 3), pool=nn.AvgPool2d(2), **parts)))
    assert told(folding) == [(name, "fold", None) for name in ("mean", "var", "weight", "bias")]


def test_layer_scales_fold_in_the_last_dimension_and_keep_may_name_one() -> None:
    def block(s: Any, x: Tensor) -> Tensor:
        y = x + s.one(x) * s.gamma
        return y + s.gamma2 * s.two(torch.nn.functional.gelu(y))

    parts = {"gamma": nn.Parameter(scales(8)), "gamma2": nn.Parameter(scales(8, seed=6))}
    model = double(Net(block, one=nn.Linear(8, 8), two=nn.Linear(8, 8), **parts))
    assert told(folded(model, 2, 5, 8)) == [("gamma", "fold", None), ("gamma2", "fold", None)]
    kept = folded(model, 2, 5, 8, keep=["gamma2"])
    assert told(kept) == [("gamma", "fold", None), ("gamma2", "keep", "kept-by-request")]
    with pytest.raises(bnfold.UnknownNameError):
        bnfold.plan(model, values(2, 5, 8), keep=["gamma"])


def test_the_normalisation_of_an_input_goes_into_the_first_layer_where_it_pads_nothing() -> None:
    for padding, expected in ((0, "fold"), (1, "affine")):
        parts = {"mean": scales(1, 3, 1, 1), "std": scales(3, 1, 1).abs(), "conv": nn.Conv2d(3, C, 3, padding=padding)}
        folding = folded(double(Net(lambda s, x: s.conv((x - s.mean) / s.std), **parts)))
        assert [decision.action for decision in folding.plan] == [expected, "fold"]


def test_what_nothing_absorbs_takes_in_the_next_one_in_any_dimension() -> None:
    for shape, dim in (((C, 1, 1), 1), ((8,), 3)):
        parts = {"a": scales(*shape), "b": scales(*shape, seed=7), "conv": nn.Conv2d(3, C, 2, padding=1)}
        model = double(Net(lambda s, x: torch.sigmoid(torch.sigmoid(s.conv(x)) * s.a - s.b), **parts))
        folding = folded(model, 2, 3, 8, 7)
        assert [(d.action, d.into) for d in folding.plan] == [("affine", ()), ("fold", ("a",))], dim


def test_one_number_is_arithmetic_that_a_batchnorm_passes() -> None:
    parts = {"conv": nn.Conv2d(3, C, 3), "bn": nn.BatchNorm2d(C), "t": scales(1), "u": torch.tensor(0.7).double()}
    model = double(Net(lambda s, x: torch.relu(s.bn((s.conv(x) + s.t) / s.u)), **parts))
    assert told(folded(model)) == [("bn", "fold", None)]
    assert bnfold.plan(model, values(*IMAGES))[0].action == "affine"


def test_keep_leaves_one_in_its_place_where_a_merge_would_take_it() -> None:
    """Also one of another dimension than the channels, as in an image without a batch, stays out of a merge."""
    parts = {"conv": nn.Conv2d(4, 4, 3, padding=1), "other": nn.Conv2d(4, 4, 1), "g": scales(4, 1, 1)}
    model = double(Net(lambda s, x: s.conv(x) + s.g * s.other(x) + x, **parts))
    for keep, convolutions in (((), 1), (("g",), 2)):
        folding = folded(model, 2, 4, 5, 5, merge=True, keep=keep)
        assert sum(isinstance(part, nn.Conv2d) for part in folding.module.modules()) == convolutions
        assert told(folding) == [("g", "keep" if keep else "fold", "kept-by-request" if keep else None)]
    model.g = scales(4, 1)  # along the height, which is as large as there are channels
    for combine in (lambda s, x: s.conv(x) * s.g, lambda s, x: s.conv(x) + s.g * x, lambda s, x: s.g * x + s.conv(x)):
        model.function = combine
        assert told(folded(model, 4, 4, 4, merge=True))[0][1] == "affine"


def test_a_fold_of_one_layer_called_twice_and_of_an_exported_graph() -> None:
    parts = {"conv": nn.Conv2d(3, 3, 3, padding=1), "g": scales(3, 1, 1)}
    model = double(Net(lambda s, x: s.conv(torch.relu(s.conv(x) * s.g)) * s.g, **parts))
    assert [action for _, action, _ in told(folded(model))] == ["fold", "fold"]
    exported = bnfold.fold(model, values(*IMAGES), affines=True, capture="export")
    assert [decision.action for decision in exported.plan] == ["fold", "fold"]
    assert error_of_peak(run(model, values(*IMAGES)), run(exported.module, values(*IMAGES))) <= ALGEBRA


def test_a_part_that_is_captured_on_its_own_names_its_affines_as_the_model_does() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = {"conv": nn.Conv2d(3, C, 3), "bn": nn.BatchNorm2d(C), "gamma": scales(C, 1, 1)}
            self.block = Net(lambda s, x: s.bn(s.conv(x)) * s.gamma, **parts)

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x)
            return y if float(y.sum().item()) > 0 else -y

    folding = folded(double(Odd()))
    assert folding.plan.capture == "piecewise"
    assert told(folding) == [("block.bn", "fold", None), ("block.gamma", "fold", None)]
    assert told(folded(double(Odd()), keep=["block.gamma"]))[1] == ("block.gamma", "keep", "kept-by-request")


def test_the_kind_stands_in_the_report() -> None:
    parts = {"conv": nn.Conv2d(3, C, 3), "bn": nn.BatchNorm2d(C), "g": scales(C, 1, 1)}
    folding = folded(double(Net(lambda s, x: torch.relu(s.bn(s.conv(x)) * s.g), **parts)))
    kinds = [decision["kind"] for decision in json.loads(json.dumps(folding.plan.to_dict()))["batchnorms"]]
    assert kinds == ["batchnorm", "affine"]


# --- what is refused, each shown to be wrong -------------------------------------------------------------------------


def test_constants_of_a_wider_type_stay_since_the_result_is_of_that_type() -> None:
    model = Net(lambda s, x: s.conv(x) * s.g, conv=nn.Conv2d(3, C, 3), g=scales(C, 1, 1)).eval()
    x = values(*IMAGES).float()
    folding = bnfold.fold(model, x, affines=True)
    assert told(folding) == [("g", "keep", "wider-constants")]
    assert folding.module(x).dtype == model(x).dtype == torch.float64  # the convolution's own is float32
    model.g = model.g.half()  # a narrower one changes no type, and is exact
    assert told(bnfold.fold(model, x, affines=True)) == [("g", "fold", None)]


def test_constants_that_are_rounded_on_the_way_stay_rounded() -> None:
    x = values(*IMAGES).float()
    for cast in (lambda c: c.half(), lambda c: c.bfloat16().float(), lambda c: c.to(torch.half)):
        parts = {"conv": nn.Conv2d(3, C, 3), "g": scales(C, 1, 1).float()}
        model = Net(lambda s, x, cast=cast: s.conv(x) * cast(s.g), **parts).eval()
        folding = bnfold.fold(model, x, affines=True)
        assert told(folding) == [("g", "keep", "rounded-constants")]
        exact = bnfold.fold(Net(lambda s, x: s.conv(x) * s.g, conv=model.conv, g=model.g).eval(), x, affines=True)
        assert error_of_peak(run(model, x), run(exact.module, x)) > 1e-5


OTHERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Any]] = {  # no affines per channel at all
    "over two dimensions": (lambda s, y: y * s.c, scales(C, 1, 6)),
    "over the batch": (lambda s, y: y * s.c, scales(2, 1, 1, 1)),
    "of whole numbers": (lambda s, y: y * s.c, torch.arange(1, C + 1).view(C, 1, 1)),
    "a division by the value": (lambda s, y: s.c / (y + 9.0), scales(C, 1, 1)),
    "a division by zero": (lambda s, y: torch.atan(y / s.c), torch.tensor([1.0, 0, 2, 3, 4, 5]).double().view(C, 1, 1)),
    "an infinite one": (
        lambda s, y: torch.atan(y + s.c),
        torch.tensor([1, torch.inf, 2, 3, 4, 5]).double().view(C, 1, 1),
    ),
    "rounded": (lambda s, y: torch.div(y, s.c, rounding_mode="floor"), scales(C, 1, 1)),
    "with a factor": (lambda s, y: torch.add(y, s.c, alpha=2), scales(C, 1, 1)),
    "written to": (lambda s, y: y * s.c.clone().add_(y.mean().detach()), scales(C, 1, 1)),
    "more dimensions than the value": (lambda s, y: y.mean((2, 3)) * s.c, scales(C, 1, 1)),
    "of the data": (lambda s, y: y * y.mean((0, 2, 3)).view(C, 1, 1), scales(C)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_affine_per_channel_is_left_alone(name: str) -> None:
    combine, constant = OTHERS[name]
    model = double(Net(lambda s, x: combine(s, s.conv(x)), conv=nn.Conv2d(3, C, 3), c=constant))
    x = values(2, 3, 8, 8)
    folding = bnfold.fold(model, x, affines=True)
    assert len(folding.plan) == 0
    assert error_of_peak(run(model, x), run(folding.module, x)) <= ALGEBRA


def test_a_constant_that_stretches_one_channel_is_no_affine_of_it() -> None:
    model = double(Net(lambda s, x: s.conv(x) * s.c, conv=nn.Conv2d(3, 1, 3), c=scales(C, 1, 1)))
    x = values(*IMAGES)
    folding = bnfold.fold(model, x, affines=True)
    assert len(folding.plan) == 0
    assert folding.module(x).shape[1] == C  # and the convolution has one channel


def seen_in_place(s: Any, x: Tensor) -> Tensor:
    y = torch.relu(s.conv(x))
    part = y[:, :2]
    return s.after(y.mul_(s.c)).sum((2, 3)) + part.sum()


def into_the_input(s: Any, x: Tensor) -> Tensor:
    return s.conv(x.mul_(s.c))


@pytest.mark.parametrize("combine", [seen_in_place, into_the_input])
def test_what_is_written_in_place_stays_where_somebody_else_sees_it(combine: Callable[[Any, Tensor], Tensor]) -> None:
    channels = C if combine is seen_in_place else 3
    parts = {"conv": nn.Conv2d(3, C, 1), "after": nn.Conv2d(C, C, 1), "c": scales(channels, 1, 1)}
    model = double(Net(combine, **parts))
    x = values(*IMAGES)
    folding = bnfold.fold(model, x, affines=True, check=False)
    assert told(folding) == [("c", "keep", "mutated")]
    one, other = x.clone(), x.clone()
    assert error_of_peak(run(model, one), run(folding.module, other)) <= ALGEBRA
    assert torch.equal(one, other)  # what it writes into its input it still writes
    plain = double(Net(combine, **{**parts, "c": torch.ones(channels, 1, 1).double()}))
    with torch.no_grad():
        (plain.after if combine is seen_in_place else plain.conv).weight.mul_(parts["c"])
    if combine is seen_in_place:  # moved into the convolution, the other reader would see other numbers
        assert error_of_peak(run(model, x.clone()), run(plain, x.clone())) > 1e-3


def test_a_trained_constant_that_is_used_elsewhere_stays_one_parameter() -> None:
    parts = {"conv": nn.Conv2d(3, C, 3), "g": nn.Parameter(scales(C, 1, 1))}
    model = double(Net(lambda s, x: s.conv(x) * s.g + s.g.mean(), **parts))
    folding = bnfold.fold(model, values(*IMAGES), affines=True)
    assert told(folding) == [("g", "keep", "shared")]
    assert {name for name, _ in folding.module.named_parameters()} == {"conv.weight", "conv.bias", "g"}
    model.g.requires_grad_(False)  # nobody trains it
    assert told(bnfold.fold(model, values(*IMAGES), affines=True)) == [("g", "fold", None)]


def test_without_example_inputs_an_affine_of_unknown_dimensions_stays() -> None:
    model = double(Net(lambda s, x: s.conv(x) * s.g, conv=nn.Conv2d(3, C, 3), g=scales(C, 1, 1)))
    assert told(bnfold.fold(model, affines=True, capture="symbolic")) == [("g", "keep", "shapes-unknown")]


def test_an_input_of_fewer_dimensions_is_not_folded_for() -> None:
    """Of an image without a batch the channels stand elsewhere; what was folded says so."""
    model = double(Net(lambda s, x: torch.relu(s.conv(x)) * s.g, conv=nn.Conv2d(3, C, 3), g=scales(C, 1, 1)))
    folding = bnfold.fold(model, values(*IMAGES), affines=True)
    assert told(folding)[0][1] == "affine"
    assert error_of_peak(run(model, values(*IMAGES[1:])), run(folding.module, values(*IMAGES[1:]))) <= ALGEBRA


# --- random ones -----------------------------------------------------------------------------------------------------


class _Random(nn.Module):
    """A few convolutions, pools and activations, with affines and arithmetic after each."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = draw = random.Random(seed)
        self.layers = nn.ModuleList()
        self.constants = nn.ParameterList()
        self.steps: list[Callable[[Tensor], Tensor]] = []
        channels = 3
        for _ in range(draw.choice([2, 3, 4])):
            outputs = draw.choice([2, 4, 6])
            self.layer(nn.Conv2d(channels, outputs, draw.choice([1, 3]), padding=draw.choice([0, 1])))
            channels = outputs
            for _ in range(draw.choice([1, 2, 3])):
                self.between(channels)

    def layer(self, layer: nn.Module) -> None:
        self.layers.append(layer)
        self.steps.append(lambda y, layer=layer: layer(y))

    def between(self, channels: int) -> None:
        draw = self.draw
        kind = draw.choice(["affine", "affine", "affine", "bn", "max", "mean", "relu", "skip", "number"])
        if kind == "affine":
            shape = draw.choice([(channels, 1, 1), (1, channels, 1, 1)])
            self.constants.append(nn.Parameter(scales(*shape, seed=draw.randrange(10**6)), draw.random() < 0.5))
            index, (_, way) = len(self.constants) - 1, draw.choice(list(_WAYS.items()))
            self.steps.append(lambda y: way(y, self.constants[index]))
        elif kind == "bn":
            self.layer(nn.BatchNorm2d(channels))
        elif kind == "skip":
            self.steps.append(lambda y: y + torch.tanh(y))
        elif kind == "number":
            self.steps.append(lambda y: 0.5 - y / 3)
        else:
            self.steps.append({"max": _max, "mean": _mean, "relu": torch.relu}[kind])

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return torch.sigmoid(x)


def _max(y: Tensor) -> Tensor:
    return F.max_pool2d(y, 3, 1, 1)


def _mean(y: Tensor) -> Tensor:
    return F.avg_pool2d(y, 3, 1, 1)


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times": lambda y, c: y * c,
    "over": lambda y, c: y / c,
    "plus": lambda y, c: c + y,
    "less": lambda y, c: c - y,
    "in place": lambda y, c: y.mul_(c),
}


def test_random_affines_keep_the_function() -> None:
    torch.set_num_threads(1)
    seen: set[tuple[str, str | None]] = set()
    for seed in range(40):
        model = double(_Random(seed), seed=seed)
        x = values(2, 3, 11, 12)
        folding = bnfold.fold(model, x, affines=True, merge=seed % 2 == 0, check=False)
        for given in (x, values(3, 3, 14, 13)):
            assert error_of_peak(run(model, given), run(folding.module, given)) <= ALGEBRA, seed
        if seed % 4 == 0:
            original, exact = bnfold.fold(model.float(), x.float(), affines=True, check=False).in_float64()
            assert error_of_peak(run(original, x), run(exact, x)) <= ALGEBRA, seed
        seen |= {(decision.action, decision.direction) for decision in folding.plan if decision.kind == "affine"}
    assert {("fold", "backward"), ("fold", "forward"), ("affine", None)} <= seen
