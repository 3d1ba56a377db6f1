"""The first BatchNorm that went wrong is found by name, in one run."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnfold
from bnfold.verify import verify
from bnfold.verify.blame import blame_of_export
from bnfold.verify.exercise import unreached
from bnfold.verify.floor import NoiseFloor
from bnfold.verify.locate import locate
from bnfold.verify.weights import compare_weights
from tests.networks import NETWORKS, built, normal
from tests.verify.mutants import MUTANTS, apply, sites_of


def test_a_right_fold_has_no_site_that_differs():
    for name in NETWORKS:
        model, inputs = NETWORKS[name]()
        folding = bnfold.fold(model, inputs)
        exact = tuple(x.double() for x in inputs)
        graph, folded = folding.in_float64()
        with torch.no_grad():
            assert locate(graph, folded, folding.plan, exact, exact=True) is None, name
            rounded = copy.deepcopy(folding.module).double()
            assert locate(graph, rounded, folding.plan, exact, exact=False) is None, name


@pytest.mark.parametrize("pick", [0, 9, 19])
def test_of_many_sites_the_wrong_one_is_named_and_keeping_it_helps(pick):
    model, inputs = NETWORKS["resnet18"]()
    folding = bnfold.fold(model, inputs)
    site = sites_of(model, folding)[pick]
    assert apply(MUTANTS["eps_of_another_default"], site)
    report = verify(model, folding.module, inputs, onnx=False, folding=folding)
    assert report.located == site.name
    assert f"--keep {site.name}" in report.reason
    kept = bnfold.fold(model, inputs, keep=[site.name])
    assert verify(model, kept.module, inputs, onnx=False, folding=kept).passed


def test_of_several_wrong_sites_the_first_is_named():
    model, inputs = NETWORKS["resnet18"]()
    folding = bnfold.fold(model, inputs)
    sites = sites_of(model, folding)
    for pick in (12, 7, 16):
        assert apply(MUTANTS["beta_forgotten"], sites[pick])
    assert verify(model, folding.module, inputs, onnx=False, folding=folding).located == sites[7].name


@pytest.mark.parametrize("name", ["dense", "vgg-mixed-signs", "seed-negative", "pre-activation"])
def test_a_wrong_explicit_affine_is_named(name):
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    decision = [d for d in folding.plan if d.action == "affine"][-1]
    layer = folding.module.get_submodule(decision.batchnorm)
    with torch.no_grad():
        layer.weight[0] *= 1.01
    report = verify(model, folding.module, inputs, onnx=False, folding=folding)
    assert (report.verdict, report.located) == ("failed", decision.batchnorm)


def test_without_a_plan_the_first_layer_of_the_same_name_that_differs_is_named():
    model, inputs = NETWORKS["lenet"]()
    wrong = copy.deepcopy(model)
    wrong.bn2.eps = 0.1
    report = verify(model, wrong, inputs, onnx=False)
    assert report.located == "bn2"
    assert "`bn2` is the first to differ" in report.reason


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_weights_of_a_right_fold_are_the_plan_s_rounded_once():
    for name in NETWORKS:
        model, inputs = NETWORKS[name]()
        folding = bnfold.fold(model, inputs)
        comparison = compare_weights(model, folding.in_float64()[1], folding.module)
        assert comparison is not None, name
        assert comparison.passed, f"{name}: {comparison}"


def test_a_channel_that_no_input_brings_to_life_is_checked_by_its_weights():
    network = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        network[1].bias[2] = -1e4  # never above zero: dead behind the relu
    x = normal(2, 3, 8, 8)
    folding = bnfold.fold(network, x)
    with torch.no_grad():
        folding.module.get_submodule("0").weight[2] *= 1.5
    assert verify(network, folding.module, x, onnx=False).passed
    report = verify(network, folding.module, x, onnx=False, folding=folding)
    assert report.verdict == "failed"
    assert "`0.weight`" in report.reason
    assert report.located == "1"


def test_the_shift_of_an_explicit_affine_may_be_off_by_what_cancels_in_it():
    network = built(lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.BatchNorm2d(1)))
    with torch.no_grad():
        network[2].running_mean.fill_(1000.1)
        network[2].bias.copy_(bnfold.affine_of(network[2]).scale * 1000.1 + 1e-3)  # the shift is what is left: 1e-3
    x = normal(2, 3, 8, 8)
    folding = bnfold.fold(network, x)
    assert folding.plan[0].action == "affine"
    comparison = compare_weights(network, folding.in_float64()[1], folding.module)
    assert comparison is not None
    assert comparison.passed, str(comparison)
    with torch.no_grad():
        folding.module.get_submodule("2").bias.add_(1.0)
    comparison = compare_weights(network, folding.in_float64()[1], folding.module)
    assert comparison is not None
    assert not comparison.passed


def test_another_module_s_weights_are_not_compared():
    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)
    assert compare_weights(model, folding.in_float64()[1], model) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_fails(value):
    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)
    with torch.no_grad():
        folding.module.conv1.weight[0, 0, 0, 0] = value
    comparison = compare_weights(model, folding.in_float64()[1], folding.module)
    assert comparison is not None
    assert not comparison.passed


# --- reach ------------------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.threshold = threshold

    def forward(self, x):
        return self.first(x) + torch.relu(self.second(x) - self.threshold)


@pytest.mark.parametrize(("threshold", "silent"), [(0.0, []), (1e9, ["second"])])
def test_a_batchnorm_behind_a_shut_gate_is_found(threshold, silent):
    model = built(lambda: Gate(threshold)).double()
    with torch.no_grad():
        assert unreached(model, (normal(2, 3, 4, 4).double(),)) == silent
    assert not model.first._forward_hooks


class BareGate(Gate):
    """The same without layers' own forwards: both spellings of a bare call."""

    def forward(self, x):
        one, two = self.first, self.second
        first = torch.batch_norm(
            x,
            one.weight,
            one.bias,
            one.running_mean,
            one.running_var,
            False,
            0.1,
            one.eps,
            torch.backends.cudnn.enabled,
        )
        second = F.batch_norm(x, two.running_mean, two.running_var, weight=two.weight, bias=two.bias, eps=two.eps)
        return first + torch.relu(second - self.threshold)


@pytest.mark.parametrize(("threshold", "silent"), [(0.0, []), (1e9, ["second"])])
def test_a_bare_call_behind_a_shut_gate_is_found(threshold, silent):
    model = built(lambda: BareGate(threshold)).double()
    x = normal(2, 3, 4, 4).double()
    with torch.no_grad():
        assert unreached(model, (x,)) == silent
        assert torch.equal(model(x), Gate.forward(model, x))  # it computes what the layers do, with and without


def test_a_fold_of_a_bare_call_that_nothing_shows_is_unverifiable_without_its_plan():
    model = built(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), BareGate(1e9)))
    folding = bnfold.fold(model, normal(2, 3, 4, 4))
    report = verify(model, folding.module, normal(2, 3, 4, 4), onnx=False)
    assert report.verdict == "unverifiable"
    assert "1.second does not reach the output on any input" in report.reason


class Bare(nn.Module):
    """Bare calls on statistics of the model itself, of which the second has no effect."""

    def __init__(self, *, shut: bool = True):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for name in ("one", "two"):
            self.register_buffer(f"{name}_mean", torch.randn(3))
            self.register_buffer(f"{name}_var", torch.rand(3) + 0.5)
        self.gain = 0.0 if shut else 1.0

    def forward(self, x):
        first = F.batch_norm(self.conv(x), self.one_mean, self.one_var)
        own = F.batch_norm(x, None, None, training=True)  # has no fixed affine, and is no fold's business
        return first + own + self.gain * F.batch_norm(self.other(x), self.two_mean, self.two_var)


def test_each_bare_call_is_asked_for_itself():
    x = normal(2, 3, 4, 4)
    for shut, silent in ((True, ["two_mean"]), (False, [])):
        model = built(lambda shut=shut: Bare(shut=shut)).double()
        with torch.no_grad():
            assert unreached(model, (x.double(),)) == silent
    inside = built(lambda: nn.Sequential(Bare())).double()
    with torch.no_grad():
        assert unreached(inside, (x.double(),)) == ["0"]


def test_bare_calls_on_the_model_s_own_buffers_are_proved_where_they_stand():
    model, x = built(Bare), normal(2, 3, 4, 4)
    folding = bnfold.fold(model, x)
    report = verify(model, folding.module, x, folding=folding, onnx=False)
    assert report.verdict == "passed", report.reason
    assert verify(model, folding.module, x, onnx=False).verdict == "unverifiable"


def test_a_layer_that_raises_hides_no_call_after_it():
    class Tries(Bare):
        def __init__(self):
            super().__init__()
            self.picky = nn.BatchNorm2d(7)

        def forward(self, x):
            try:
                return self.picky(x)
            except (RuntimeError, ValueError):
                return super().forward(x)

    model = built(Tries).double()
    with torch.no_grad():
        assert unreached(model, (normal(2, 3, 4, 4).double(),)) == ["two_mean"]


def test_one_open_channel_is_enough():
    model = built(lambda: Gate(0.0)).double()
    with torch.no_grad():
        model.second.bias[:2] = -1e9
        assert unreached(model, (normal(2, 3, 4, 4).double(),)) == []


# --- blame ------------------------------------------------------------------------------------------------------------


def test_a_failure_with_optimisations_on_alone_blames_the_optimiser(monkeypatch):
    from bnfold.verify import witness

    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)

    class Breaks(witness.OrtModel):
        def __init__(self, proto, optimisation) -> None:
            super().__init__(proto, optimisation)
            self.factor = 1.01 if optimisation == "full" else 1.0

        def __call__(self, *given, **named):
            return tuple(y * self.factor for y in super().__call__(*given, **named))

    monkeypatch.setattr(witness, "OrtModel", Breaks)
    report = verify(model, folding.module, inputs)
    assert (report.verdict, report.blame) == ("failed", "optimizer")
    assert "optimiser is to blame" in report.reason
    assert [c.passed for c in report.comparisons] == [True, True, True, False]


def test_an_export_that_is_wrong_for_the_original_too_is_not_the_fold_s_fault(monkeypatch):
    from bnfold.verify import witness

    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)

    class Breaks(witness.OrtModel):
        def __call__(self, *given, **named):
            return tuple(y + 1 for y in super().__call__(*given, **named))

    monkeypatch.setattr(witness, "OrtModel", Breaks)
    report = verify(model, folding.module, inputs)
    assert (report.verdict, report.blame) == ("failed", "export")
    assert "not the fold" in report.reason


def test_without_the_original_s_export_less_is_said():
    failed = verify(nn.Identity().eval(), nn.ReLU().eval(), normal(2, 3), onnx=False).comparisons[0]
    from dataclasses import replace

    words = blame_of_export(replace(failed, stage="export"), None, [], NoiseFloor([])).sentence
    assert words == "The torch module agrees: the exporter or ONNX Runtime is to blame."


class MixesRows(nn.Module):
    """A matrix product whose rows are dealt out to the channels of a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bn = nn.Parameter(normal(6, 8)), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn((x @ self.weight).reshape(1, 8, -1))


def as_onnx(model: MixesRows) -> onnx.ModelProto:
    """The same by hand: MatMul, Reshape, BatchNormalization."""
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    bn = model.bn
    weights = {"w": model.weight, "s": bn.weight, "b": bn.bias, "m": bn.running_mean, "v": bn.running_var}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["g"]),
        helper.make_node("BatchNormalization", ["g", "s", "b", "m", "v"], ["y"], epsilon=bn.eps),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, "batch"])],
        [
            *(to_tensor(value.detach().numpy(), name) for name, value in weights.items()),
            to_tensor(np.array([1, 8, -1]), "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_onnx_runtime_s_fusion_of_matmul_and_batchnorm_across_a_reshape_is_caught_and_blamed():
    """The real thing: the optimiser scales the columns of the product, whatever the reshape makes of them."""
    model = built(MixesRows)
    report = verify(model, model, normal(2, 6), onnx=as_onnx(model))
    assert (report.verdict, report.blame) == ("failed", "optimizer"), str(report)
    assert [c.passed for c in report.comparisons] == [True, True, True, False]
    assert report.comparisons[-1].max_abs > 0.1
    candidate = verify(model, as_onnx(model), normal(2, 6))
    assert (candidate.verdict, candidate.blame) == ("failed", "optimizer")


class ConstantToo(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": x * 2, "anchors": torch.arange(4.0)}


def test_an_output_that_no_input_changes_is_said_to_prove_little():
    report = verify(ConstantToo().eval(), ConstantToo().eval(), normal(2, 3), onnx=False)
    assert report.passed
    assert {c.name.rpartition(": ")[2]: c.proves for c in report.comparisons} == {
        "output['scores']": True,
        "output['anchors']": False,
    }
    assert any("output['anchors'] is the same for every input" in note for note in report.notes)


def test_a_thorough_verification_with_an_export_compares_that_of_the_original_too():
    model, inputs = NETWORKS["perceptron"]()
    report = verify(model, bnfold.fold(model, inputs).module, inputs, thorough=True)
    assert report.passed, str(report)
    assert report.comparisons[-1].name == "the original's own export, optimisations off"
