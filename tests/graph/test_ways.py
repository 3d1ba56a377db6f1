"""The ways to a graph: a recorded run, torch.export, piece by piece; and layers of unknown code that are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import CaptureError, OtherInputError
from tests.fold.support import Net, assert_same_function, double, error_of_peak, run, values


class PadsToEven(nn.Module):
    """Control flow on the shape: only a run answers it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[-1] % 2:
            x = nn.functional.pad(x, (0, 1))
        features = self.bn(self.conv(x))
        with torch.no_grad():
            return {"features": features, "head": self.head(features)}


@pytest.mark.parametrize(("way", "captured"), [("auto", "recorded"), ("export", "export")])
def test_a_model_with_control_flow_is_captured_and_keeps_its_outputs(way: str, captured: str) -> None:
    model, x = double(PadsToEven()), values(2, 3, 9, 9)
    folding = bnfold.fold(model, x, capture=way)
    assert folding.plan.capture == captured
    assert [(d.batchnorm, d.action) for d in folding.plan] == [("bn", "fold"), ("head.1", "fold")]
    assert all(d.source is not None and "test_ways.py" in d.source for d in folding.plan[:1])
    assert_same_function(model, folding, x)
    assert_same_function(model, folding, values(5, 3, 9, 9))


def test_a_recorded_graph_takes_all_sizes_that_get_the_same_answers_and_refuses_the_others() -> None:
    model = double(PadsToEven())
    for example, others, other in ((9, (3, 5, 13), 8), (8, (4, 6, 12), 9)):
        folding = bnfold.fold(model, values(2, 3, 9, example))
        assert folding.plan.notes == ()
        for width in others:
            assert_same_function(model, folding, values(3, 3, 7, width))
        holds = "holds" if example % 2 else "does not hold"
        asked = rf"`\(x\.shape\[3\] % 2\) != 0` {holds}, at .*test_ways\.py:\d+, where \d != 0 is {example % 2 == 0}"
        with pytest.raises(OtherInputError, match=rf"captured for inputs of other sizes: {asked}\. Fold .* again"):
            folding.module(values(2, 3, 9, other))


def test_an_exported_graph_refuses_another_size_than_it_was_made_for() -> None:
    folding = bnfold.fold(double(PadsToEven()), values(2, 3, 9, 9), capture="export")
    with pytest.raises(ValueError, match=r"captured by torch\.export for") as caught:
        folding.module(values(2, 3, 8, 8))
    assert isinstance(caught.value, OtherInputError)
    assert "takes inputs of (N, 3, 9, 9)" in folding.plan.notes[0]


def test_without_example_inputs_some_are_found_and_the_run_on_them_is_recorded() -> None:
    model = double(PadsToEven())
    folding = bnfold.fold(model)
    assert folding.plan.capture == "recorded"
    assert_same_function(model, folding, values(3, 3, 12, 12))


def refused_without_inputs(model: nn.Module, way: str) -> None:
    where = r"forward asks for \(x\.shape\[-1\] % 2\) != 0, at .*test_ways\.py:\d+, which only an input tells"
    with pytest.raises(bnfold.NeedsInputsError, match=rf"{where}\. Pass example_inputs\."):
        bnfold.fold(model, capture=way)


def test_a_question_about_a_size_has_no_answer_without_a_run() -> None:
    refused_without_inputs(double(PadsToEven()), "symbolic")


def test_where_no_inputs_are_found_the_error_asks_for_them() -> None:
    class OneRow(PadsToEven):
        """Keeps no batch, so that no shape is believed."""

        def forward(self, x: Tensor) -> Any:
            return super().forward(x)["head"].sum(0)

    refused_without_inputs(double(OneRow()), "auto")


@pytest.mark.parametrize("way", ["recorded", "export", "piecewise"])
def test_a_way_that_runs_the_model_asks_for_inputs_where_none_are_found(way: str) -> None:
    model = double(Net(lambda s, x: s.bn(s.conv(x)).sum(0), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    with pytest.raises(bnfold.NeedsInputsError, match=r"Pass example_inputs\.$"):
        bnfold.fold(model, capture=way)


class Loops(nn.Module):
    """The data decides: neither a recorded run nor export take it, but its parts can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh())
        self.out = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for _ in range(int(y.sum().abs().item()) % 3 + 1):
            y = self.block(y)
        return self.out(y)


def test_a_model_that_cannot_be_captured_whole_is_folded_in_pieces() -> None:
    model, x = double(Loops()), values(2, 3, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folding = bnfold.fold(model, x)
    assert folding.plan.capture == "piecewise"
    found = {d.batchnorm: (d.action, d.into, d.reason) for d in folding.plan}
    assert found["stem.1"] == ("fold", ("stem.0",), None)
    assert found["block.1"] == ("fold", ("block.0",), None)
    assert found["out"] == ("affine", (), "not-captured")
    assert_same_function(model, folding, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_part_whose_inside_is_also_called_from_outside_is_no_piece() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.stem(x)
        y = s.body(x)
        return y + s.body[0](x) if float(y.sum().detach()) > -1e30 else y

    def part(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, 4, 1), nn.BatchNorm2d(4))

    model = double(Net(forward, stem=part(3), body=part(4)))
    x = values(2, 3, 5, 5)
    folding = bnfold.fold(model, x, capture="piecewise")
    assert error_of_peak(run(model, x), run(folding.module, x)) <= 1e-12
    assert {d.batchnorm: d.action for d in folding.plan} == {"stem.1": "fold", "body.1": "affine"}


class Frozen(nn.Module):
    """A frozen BatchNorm as detection frameworks write it: buffers, and an eps of its own."""

    def __init__(self, channels: int, eps: float = 1e-3, wrong: bool = False) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value) + 0.3 * torch.randn(channels).abs())
        self.eps, self.wrong = eps, wrong

    def forward(self, x: Tensor) -> Any:
        root = (self.running_var + self.eps) ** 0.5
        scale = self.weight / (self.running_var + self.eps if self.wrong else root)
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


def test_a_frozen_batch_norm_is_recognised_by_what_it_computes() -> None:
    model = double(Net(lambda s, x: s.frozen(s.conv(x)), conv=nn.Conv2d(3, 4, 3), frozen=Frozen(4)))
    folding = bnfold.fold(model)
    (decision,) = folding.plan
    assert (decision.batchnorm, decision.into) == ("frozen", ("conv",))
    assert_same_function(model, folding, values(2, 3, 6, 6))


def test_a_layer_that_only_looks_like_one_is_not_taken_for_one() -> None:
    model = double(Net(lambda s, x: s.frozen(s.conv(x)), conv=nn.Conv2d(3, 4, 3), frozen=Frozen(4, wrong=True)))
    folding = bnfold.fold(model)
    assert len(folding.plan) == 0
    assert_same_function(model, folding, values(2, 3, 6, 6))


class WithActivation(nn.BatchNorm2d):
    """A subclass that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_a_subclass_with_an_activation_keeps_it() -> None:
    model = double(Net(lambda s, x: s.bn(s.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=WithActivation(4)))
    folding = bnfold.fold(model)
    assert [(d.batchnorm, d.action) for d in folding.plan] == [("bn", "fold")]
    assert_same_function(model, folding, values(2, 3, 6, 6))


@pytest.mark.parametrize("way", ["recorded", "symbolic"])
def test_autocast_in_forward_is_not_lost_in_silence(way: str) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return s.bn(s.conv(x))

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)).eval()
    with pytest.raises(bnfold.CaptureError, match=r"enters torch\.autocast, at .*test_ways\.py:\d+"):
        bnfold.fold(model, values(2, 3, 6, 6).float(), capture=way)


class Asks(nn.Module):
    """Asks whether its value is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y * 2 if isinstance(y, Tensor) and not isinstance(y.shape[0], Tensor) else y


@pytest.mark.parametrize("way", ["recorded", "symbolic"])
def test_a_recorded_value_is_a_tensor_to_the_model_s_code(way: str) -> None:
    model = double(Asks())
    assert_same_function(model, bnfold.fold(model, capture=way), values(2, 3, 4, 4))
    assert "isinstance" not in globals()


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_a_hook_on_every_layer_is_refused(register: str) -> None:
    """It may change what a BatchNorm takes or gives, and a graph would not run it."""

    def doubled(module: nn.Module, *values: object) -> None:
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    handle = getattr(nn.modules.module, register)(doubled)
    try:
        with pytest.raises(CaptureError, match=r"on every layer of every model \(`.*doubled`\)"):
            bnfold.fold(model)
    finally:
        handle.remove()
    assert bnfold.fold(model).plan[0].action == "fold"
