"""Tensors whose numbers are made for a call: right, gone after it, and not to be written."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.on_demand import OnDemand, WrittenError, writes_refused
from bnfold.verify.reference import everything_in_float64, lent_in_float64
from tests.networks import normal


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.on_demand.SMALL", 1)


def test_questions_about_it_make_no_numbers() -> None:
    def make() -> Tensor:
        raise AssertionError

    source = nn.Parameter(normal(4, 3, 5, 5).to(memory_format=torch.channels_last))
    weight = OnDemand(source, torch.float64, make)
    assert isinstance(weight, nn.Parameter)
    assert (weight.shape, weight.stride(), weight.dtype) == (source.shape, source.stride(), torch.float64)
    assert (weight.detach().shape, weight.data.dtype, weight.numel()) == (source.shape, torch.float64, 300)
    assert "OnDemand" in repr(weight)


def test_the_numbers_go_when_the_call_ends() -> None:
    source, seen = nn.Parameter(normal(4, 3)), []

    def make() -> Tensor:
        numbers = source.detach().double()
        seen.append(weakref.ref(numbers))
        return numbers

    x = normal(2, 3).double()
    answer = F.linear(x, OnDemand(source, torch.float64, make))
    assert torch.equal(answer, F.linear(x, source.detach().double()))
    assert seen
    assert all(reference() is None for reference in seen)


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.fill_(1),
        lambda weight: weight.data.clamp_(0),
        lambda weight: weight.data[0].clamp_(0),
        lambda weight: weight.t()[1:].reshape(2, -1).zero_(),
        lambda weight: torch.add(weight, 1, out=weight),
        lambda weight: F.relu(weight.view(-1), inplace=True),
    ],
)
def test_writing_into_it_or_a_view_of_it_is_refused(write) -> None:
    weight = OnDemand.of(nn.Parameter(normal(4, 3)), torch.float64)
    before = writes_refused()
    with torch.no_grad(), everything_in_float64(), pytest.raises(WrittenError, match="writes into its weights"):
        write(weight)
    assert writes_refused() == before + 1


def test_what_is_computed_with_it_may_be_written() -> None:
    weight = OnDemand.of(nn.Parameter(normal(40, 40)), torch.float64)
    with torch.no_grad(), everything_in_float64():
        for _ in range(20):  # memory that held a weight is soon used for something else
            row = weight[0].clone().fill_(2)
            answer = F.linear(normal(40, 40).double(), weight).relu_().add_(1)
    assert float(row.sum()) == 80
    assert float(answer.min()) == 1


LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 9)),
    "lstm": (lambda: nn.LSTM(5, 4, bidirectional=True), (3, 2, 5)),
    "prelu": (lambda: nn.PReLU(3), (2, 3, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), (2, 3, 7)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 5)),
    "bilinear": (lambda: nn.Bilinear(3, 3, 4), None),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_compute_with_it_as_with_a_copy_in_float64(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().eval()
    inputs = (normal(2, 3), normal(2, 3, seed=1)) if shape is None else (normal(*shape),)
    wide = [value.double() for value in inputs]
    with torch.no_grad():
        expected = copy.deepcopy(layer).double()(*wide)
        lean = lent_in_float64(layer)
        assert any(isinstance(parameter, OnDemand) for parameter in lean.parameters())
        with everything_in_float64():
            answer = lean(*wide)
    torch.testing.assert_close(answer, expected, rtol=1e-13, atol=1e-13)
