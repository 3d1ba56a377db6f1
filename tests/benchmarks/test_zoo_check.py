"""The check itself, on networks of our own: each outcome is reached, and a wrong fold is called wrong."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo_build import Subject, _calibrate, _damp, _jitter, _move_constants, _randomise
from benchmarks.zoo_check import examine
from benchmarks.zoo_list import Entry
from bnfold.affine import affine_of_statistics
from bnfold.fold import api
from tests.networks import randomise

ENTRY = Entry("none", "none", "none", 0, 2, ("BatchNorm2d",), (), True)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.BatchNorm2d(4),
    )


def examined(model: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> dict[str, Any]:
    record: dict[str, Any] = {"seconds": {}}
    examine(Subject(model, shape, ENTRY, 0), record)
    return record


def test_a_fold_that_is_right_is_equivalent_and_its_calls_are_counted() -> None:
    record = examined(randomise(network()))
    assert record["outcome"] == "equivalent"
    assert (record["capture"], record["calls"], record["left"]) == ("recorded", 3, 0)
    assert record["actions"] == {"fold": 2, "affine": 1, "keep": 0}
    assert sum(record["reasons"].values()) == 1
    assert record["unfolded"][0][:2] == ["3", "affine"]
    assert record["error"]["algebra"] <= record["error"]["float64"] <= 1e-12 <= record["error"]["folded32"]
    assert {"capture", "plan", "rewrite", "fold"} <= record["seconds"].keys()
    assert record["fuse"] | {"seconds": 0, "error": 0} == {
        "takes": True,
        "left": 1,
        "wrong": False,
        "seconds": 0,
        "error": 0,
    }


def test_a_slightly_wrong_eps_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        return affine_of_statistics(mean, variance, weight, bias, eps * 1.01)

    monkeypatch.setattr(import_module("bnfold.affine"), "affine_of_statistics", off)
    record = examined(randomise(network()))
    assert record["outcome"] == "wrong"
    assert "the fold is off by" in record["message"]


def test_a_fold_that_changes_the_model_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    original = api.fold

    def careless(model: nn.Module, *args: Any, **kwargs: Any) -> api.Folding:
        folding = original(model, *args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return folding

    monkeypatch.setattr(api, "fold", careless)
    record = examined(randomise(network()))
    assert (record["outcome"], record["message"]) == ("wrong", "the fold changed the model it was given")


def test_a_batch_norm_that_is_left_although_the_plan_folds_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = api.fold

    def untidy(model: nn.Module, *args: Any, **kwargs: Any) -> api.Folding:
        folding = original(model, *args, **kwargs)
        graph = folding.module.graph
        folding.module.add_module("left", nn.BatchNorm2d(4).eval())
        output = next(node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(output):
            graph.call_module("left", (output.args[0],))  # nobody reads it, and it runs all the same
        folding.module.recompile()
        return folding

    monkeypatch.setattr(api, "fold", untidy)
    record = examined(randomise(network()))
    assert (record["outcome"], record["message"]) == ("incomplete", "1 BatchNorms are left, the plan keeps 0")


def test_an_error_that_bnfold_did_not_mean_to_raise_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("node")

    monkeypatch.setattr(api, "plan_model", broken)
    record = examined(randomise(network()))
    assert (record["outcome"], record["stage"]) == ("crash", "fold")
    assert "broken" in record["traceback"]


def test_a_model_that_is_in_training_mode_is_refused() -> None:
    record = examined(randomise(network()).train())
    assert record["outcome"] == "refused"
    assert record["message"].startswith("TrainingModeError: ")


def captured_for(shape: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch, otherwise: Any) -> None:
    """Let the folded module take the example's shape alone, and do something else at any other."""
    original = api.fold

    class Wrapped(nn.Module):
        def __init__(self, folded: nn.Module) -> None:
            super().__init__()
            self.folded = folded

        def forward(self, x: Tensor) -> Tensor:
            here = x.shape if shape is None else x.shape[2:]
            return self.folded(x) if here == (shape or (2, 3, 8, 8)) else otherwise(self.folded(x))

    def narrow(model: nn.Module, *args: Any, **kwargs: Any) -> api.Folding:
        folding = original(model, *args, **kwargs)
        wrapped = Wrapped(folding.module)
        monkeypatch.setattr(api.Folding, "in_float64", lambda self: tuple(Wrapped(g) for g in in_float64(self)))
        return replace(folding, module=wrapped)

    in_float64 = api.Folding.in_float64
    monkeypatch.setattr(api, "fold", narrow)


def other_size(_: Tensor) -> Tensor:
    raise ValueError("captured for another size")


def test_a_fold_that_takes_other_batches_and_sizes_says_so() -> None:
    record = examined(randomise(network()))
    assert (record["batch_free"], record["size_free"]) == (True, True)
    assert record["export_seconds"] > 0


def test_a_fold_that_refuses_another_batch_or_size_is_compared_at_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    captured_for(None, monkeypatch, other_size)
    record = examined(randomise(network()))
    assert (record["outcome"], record["batch_free"], record["size_free"]) == ("equivalent", False, False)
    assert record["batch_message"] == record["size_message"] == "ValueError: captured for another size"


def test_a_fold_that_computes_something_else_at_another_size_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    captured_for((8, 8), monkeypatch, lambda y: y * 1.001)
    record = examined(randomise(network()))
    assert (record["outcome"], record["batch_free"]) == ("wrong", True)
    assert record["message"].startswith("at another size it is off by 1.00e-03")


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(network(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_where_the_model_itself_takes_no_other_size_that_says_nothing_of_the_fold() -> None:
    record = examined(randomise(OneSize()))
    assert (record["outcome"], record["size_free"]) == ("equivalent", None)


class Remembers(nn.Module):
    """Computes a scale once for each size, as RT-DETR its anchors: in float32, when first called so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.size, self.scale = network(), (0, 0), torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape[2:]:
            self.size, self.scale = x.shape[2:], torch.full((), 1 / 3, dtype=x.dtype)
        return self.inner(x) * self.scale  # type: ignore[no-any-return]


def test_what_a_model_keeps_in_float32_is_not_held_against_the_fold() -> None:
    record = examined(randomise(Remembers()))
    assert record["outcome"] == "equivalent", record["message"]
    assert record["error"]["float64"] <= 1e-12


class OnItsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        while float(x.abs().max()) > 1:
            x = x / 2
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_captured_says_so_and_fuse_does_not_take_it() -> None:
    record = examined(randomise(OnItsValues()))
    assert record["outcome"] in ("capture-failed", "equivalent")  # equivalent once parts are captured on their own
    assert record["fuse"]["takes"] is False
    assert record["export_seconds"] is None


def test_calibration_gives_each_layer_the_statistics_of_its_own_input() -> None:
    torch.manual_seed(0)
    model = network().eval()
    generator = torch.Generator().manual_seed(1)
    inputs = (torch.randn(4, 3, 16, 16, generator=generator),)
    _move_constants(model, generator)
    _randomise(model, generator)
    momentum = [layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    _calibrate(model, inputs)
    assert [layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)] == momentum
    assert not any(layer.training for layer in model.modules())
    with torch.no_grad():
        before = model[0](*inputs)
        assert torch.allclose(model[1].running_mean, before.mean((0, 2, 3)), atol=1e-6)
        assert torch.allclose(model[1].running_var, before.var((0, 2, 3)), rtol=1e-5)
        # what the second layer saw was normalised by the first in training mode, by the biased variance
        seen = nn.functional.batch_norm(before, None, None, model[1].weight, model[1].bias, True).relu()
        assert torch.allclose(model[3].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    calibrated = model[1].running_mean.clone()
    _jitter(model, generator)
    assert not torch.equal(model[1].running_mean, calibrated)
    assert float(model[3].running_var.min()) > 0


class Chaotic(nn.Module):
    """Each layer doubles small differences: a tent map of what a BatchNorm gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.BatchNorm2d(1) for _ in range(60))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (3 * layer(x)).sin()
        return x


def test_a_chaotic_model_is_damped_until_it_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(2, 1, 8, 8, generator=generator),)
    model = Chaotic().eval()
    _calibrate(model, inputs)
    assert _damp(model, inputs, ENTRY, generator) > 1
    with torch.no_grad():
        assert float((model(inputs[0] * (1 + 1e-6)) - model(*inputs)).abs().max()) < 1e-2


def test_a_model_that_is_not_chaotic_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    model = randomise(network())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert _damp(model, (torch.randn(2, 3, 8, 8, generator=generator),), ENTRY, generator) == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
