"""A module beside itself: it shares the weights of the caller's if its code writes none, and never changes them."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.export import to_program
from bnfold.graph.quiet import quiet
from bnfold.graph.torch_versions import unguarded_module
from bnfold.verify import original
from bnfold.verify.original import moved_by_an_ulp
from bnfold.verify.reference import copied
from bnfold.verify.twins import Twins, running_as_it_is
from tests.networks import NETWORKS, built, normal
from tests.verify.mutants import MUTANTS, apply, sites_of


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.on_demand.SMALL", 1)
    monkeypatch.setattr("bnfold.on_demand.MANY", 1)


class Clamps(nn.Module):
    """Writes into its weight; a second run finds other weights than the first."""

    def __init__(self, *, quietly: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.quietly = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), quietly

    def forward(self, x: Tensor) -> Tensor:
        try:
            self.conv.weight.data[0].mul_(0.5)
        except Exception:
            if not self.quietly:
                raise
        return self.bn(self.conv(x))


@pytest.mark.parametrize("quietly", [False, True])
def test_a_model_that_writes_into_its_weights_runs_on_copies(quietly: bool) -> None:
    model, x = built(lambda: Clamps(quietly=quietly)), normal(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twins = Twins(model)
    with torch.no_grad():
        first = twins.exact((x,))[0].value
        own = twins.run((x,))[0].value
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        expected = model(x)  # now it does
    torch.testing.assert_close(own, expected, rtol=0, atol=0)
    assert not torch.equal(model.conv.weight, before["conv.weight"])
    assert (first - expected).abs().max() < 1e-5


def _in_one_precision(model: Any, x: Tensor) -> None:
    if x.dtype == torch.float32:
        model.conv.weight.data.mul_(0.5)


def _in_the_second_run(model: Any, _: Tensor) -> None:
    if model.runs == 1:
        with torch.no_grad():
            model.conv.weight[0].mul_(0.5)
    model.runs += 1


def _through_numpy(model: Any, _: Tensor) -> None:
    model.conv.weight.detach()[0].numpy()[...] *= 0.5


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("write", [_in_one_precision, _in_the_second_run, _through_numpy])
def test_a_model_that_writes_now_and_then_is_not_changed(write: Any, double: bool) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.runs = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), 0

        def forward(self, x: Tensor) -> Tensor:
            write(self, x)
            return self.bn(self.conv(x))

    model, x = built(Writes), normal(2, 3, 8, 8)
    if double:
        model, x = model.double(), x.double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bnfold.verify(model, copy.deepcopy(model), x, onnx=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    twins = Twins(model)
    with torch.no_grad():
        twins.exact((x,))
        own = [twins.run((x,))[0].value for _ in range(2)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(own[0], model(x), rtol=0, atol=0)  # which may write into it


def test_code_that_asks_whether_weights_are_one_gets_the_answer_of_the_model() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            tied = self.one.weight.data_ptr() == self.other.weight.data_ptr()
            return self.one(x) if tied else self.other(x)

    model, x = built(Tied), normal(2, 3)
    with torch.no_grad():
        answer = Twins(model).exact((x,))[0].value
        torch.testing.assert_close(answer, model.double()(x.double()), rtol=1e-12, atol=1e-12)


def test_a_model_that_writes_none_shares_them() -> None:
    model, inputs = NETWORKS["lenet"]()
    twins = Twins(model)
    with torch.no_grad():
        twins.exact(inputs)
        twins.run(inputs)
    assert twins._plain is not None
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in twins._plain.parameters()} == shared


def test_without_a_run_in_float64_before_it_nothing_is_shared() -> None:
    model, inputs = NETWORKS["lenet"]()
    twins = Twins(model)
    with torch.no_grad():
        twins.run(inputs)
    assert twins._plain is not None
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in twins._plain.parameters()}


@pytest.mark.parametrize("writes", [False, True])
def test_a_program_shares_the_weights_until_it_writes_into_one(writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            if writes:
                self.scale.mul_(0.5)
            return self.fc(x) * self.scale

    copies: list[nn.Module] = []
    monkeypatch.setattr(
        import_module("bnfold.verify.twins"), "copied", lambda module: copies.append(module) or copied(module)
    )
    model, x = built(Halves), normal(2, 3)
    module = unguarded_module(to_program(model, x))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad(), quiet():
        run = running_as_it_is(module)
        answers = [run((x,))[0].value for _ in range(2)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert copies == [module] * writes
    with torch.no_grad():  # the model writes into the buffer of its program, so it runs last
        torch.testing.assert_close(answers, [model(x), model(x)], rtol=0, atol=0)


def test_code_that_a_weight_without_numbers_does_not_suit_runs_on_copies() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * float(self.fc.weight.detach().numpy().max())

    model, x = built(Asks), normal(2, 3)
    with torch.no_grad():
        answer = Twins(model).exact((x,))[0].value
        torch.testing.assert_close(answer, model.double()(x.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mutant", sorted(MUTANTS)[::7])
def test_a_wrong_fold_is_caught_where_every_weight_is_made_on_demand(mutant: str) -> None:
    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)
    assert bnfold.verify(model, folding.module, inputs, onnx=False, folding=folding).passed
    site = next(site for site in sites_of(model, folding) if apply(MUTANTS[mutant], site))
    report = bnfold.verify(model, folding.module, inputs, onnx=False, folding=folding)
    assert (report.verdict, report.blame, report.located) == ("failed", "fold", site.name)


def test_an_embedding_that_writes_its_norm_into_its_weight_is_proved_on_copies() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.names = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(9, 4, max_norm=0.5)

        def forward(self, x: Tensor, name: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.names(name)[:, :, None, None]

    model, inputs = built(Named), (normal(2, 3, 8, 8), torch.tensor([1, 2]))
    before = model.names.weight.clone()
    folding = bnfold.fold(model, inputs, check=False)
    report = bnfold.verify(model, folding.module, inputs, onnx=False, folding=folding)
    assert report.passed, str(report)
    assert torch.equal(model.names.weight, before)


def test_a_merged_kernel_is_made_on_demand_too() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three, self.one = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.three(x)) + self.b(self.one(x))

    model, x = built(Block), normal(2, 4, 6, 6)
    folding = bnfold.fold(model, x, merge=True)
    assert len(list(folding.module.children())) == 1
    report = bnfold.verify(model, folding.module, x, onnx=False, folding=folding)
    assert report.passed, str(report)


def test_weights_are_moved_in_pieces_as_they_would_be_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor in (
        normal(7, 6, 3, 3).to(memory_format=torch.channels_last),
        normal(5),
        torch.tensor(3.0),
        normal(0, 2),
    ):
        whole = moved_by_an_ulp(tensor, torch.Generator().manual_seed(1), 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(original, "_PIECE", 100)
            pieces = moved_by_an_ulp(tensor, torch.Generator().manual_seed(1), 0.3)
        assert torch.equal(pieces, whole)
        assert pieces.stride() == tensor.stride()
    assert (moved_by_an_ulp(normal(5000), torch.Generator().manual_seed(1), 0.3) != normal(5000)).sum() > 2500
