"""Answers that hang on the last bit of float64, and models that answer a list: what detectors do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import UsageError
from bnfold.verify import relax, verify
from tests.networks import built, normal


class TiedOrder(nn.Module):
    """Picks between two sums that are equal but for rounding, and answers with something else for each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.norm(self.conv(x))
        flat = y.flatten(1)
        parts = torch.stack([flat[:, i::7].sum(1) for i in range(7)])
        sums = torch.stack([parts.sum(0), parts.flip(0).sum(0)])
        picked = sums.argmax(0)
        return y, picked, torch.where(picked == 0, sums[0], 3 + sums[0].abs())


@pytest.fixture(scope="module")
def tied() -> tuple[nn.Module, bnfold.Folding, Tensor]:
    model = built(TiedOrder)
    x = normal(8, 3, 12, 12)
    return model, bnfold.fold(model, x), x


def test_what_a_nudge_decides_is_not_compared(tied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folding, x = tied
    report = verify(model, folding.module, x, onnx=False, folding=folding)
    assert report.verdict == "passed", str(report)
    assert any("a nudge of one part in 1e16 moves output[1], output[2]" in note for note in report.notes)
    algebra = [comparison for comparison in report.comparisons if comparison.name.startswith("float64 algebra")]
    assert {comparison.relaxed for comparison in algebra} == {("undecided",)}
    monkeypatch.setattr(relax, "mark_unsteady", lambda *_args, **_named: [])
    assert verify(model, folding.module, x, onnx=False, folding=folding).verdict == "failed"


def test_what_no_nudge_moves_is_compared_still(tied: Any) -> None:
    model, _, x = tied
    other = built(TiedOrder)
    other.load_state_dict(model.state_dict())
    other.norm.eps = 1e-4
    wrong = bnfold.fold(other, x)
    report = verify(model, wrong.module, x, onnx=False, folding=wrong)
    assert report.verdict == "failed"
    assert "float64 algebra: output[0]" in report.reason


class ForEachImage(nn.Module):
    """Takes a list of images, or a batch, and answers a dict for each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        maps = self.body(torch.stack(list(images)))
        return [{"scores": each.mean((1, 2)), "map": each} for each in maps]


@pytest.mark.parametrize("kind", ["batch", "list"])
def test_an_answer_for_each_image_is_compared_for_each(kind: str) -> None:
    model = built(ForEachImage)
    images = normal(3, 3, 9, 9)
    inputs = (images,) if kind == "batch" else ([*images],)
    folding = bnfold.fold(model, inputs)
    assert folding.plan.summary["fold"] == 1
    report = verify(model, folding.module, inputs, onnx=False, folding=folding)
    assert report.verdict == "passed", str(report)
    told = any(note.startswith("The batch is fixed at 3: `images.shape[0] == 3` holds, at ") for note in report.notes)
    assert told == (kind == "batch")
    assert any(comparison.name.endswith("output[2]['map']") for comparison in report.comparisons)
    with torch.no_grad():
        dict(folding.module.named_parameters())["body.0.weight"][3] *= 1.001  # the other is shared with the model
    assert verify(model, folding.module, inputs, onnx=False).verdict == "failed"


def test_inputs_without_any_tensor_are_refused_however_nested() -> None:
    with pytest.raises(UsageError, match="hold no tensor"):
        verify(nn.Identity().eval(), nn.Identity().eval(), ([1, {"a": 2}],), onnx=False)
    with pytest.raises(UsageError, match="holds NaN or infinity"):
        verify(nn.Identity().eval(), nn.Identity().eval(), ([torch.full((2,), torch.nan)],), onnx=False)


class OneByOne(nn.Module):
    """A loop over the images: a fold is captured for one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.stack([y[i] * (i + 1) for i in range(x.shape[0])])


def test_a_fold_for_one_batch_is_not_proved_by_an_example_of_zeros() -> None:
    model = built(OneByOne)
    x = torch.zeros(4, 3, 8, 8)
    folding = bnfold.fold(model, x)
    report = verify(model, folding.module, x, onnx=False)
    assert report.verdict == "passed", str(report)
    assert "normal, batch 4" in report.cases
    with torch.no_grad():
        dict(folding.module.named_parameters())["body.0.weight"] *= 1.001
    assert verify(model, folding.module, x, onnx=False).verdict == "failed"


class Steep(nn.Module):
    """Its second output moves a lot at a nudge, and not by as much as it can be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.two = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), torch.sin(self.two(x) * 1e6)


def test_a_nudge_excuses_no_error_that_is_far_larger() -> None:
    model = built(Steep).double()
    x = normal(2, 3, 8, 8).double()
    right = bnfold.fold(model, x)
    assert verify(model, right.module, x, onnx=False, folding=right).verdict == "passed"
    other = built(Steep).double()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.two[0].weight *= 1.1
    wrong = bnfold.fold(other, x)
    assert verify(model, wrong.module, x, onnx=False, folding=wrong).verdict == "failed"


class SameOrNot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return self.body(q) * (2.0 if q is k else 1.0)


def test_one_tensor_given_twice_is_given_twice_to_both_models() -> None:
    model = built(SameOrNot)
    x = normal(2, 3, 8, 8)
    folding = bnfold.fold(model, (x, x))
    assert not torch.allclose(folding.module(x, x), model(x, x))  # a graph cannot record that question
    assert verify(model, folding.module, (x, x), onnx=False).verdict == "failed"


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(x.mean())
        return self.body(x) + self.last


def test_a_buffer_that_a_run_writes_is_no_wrong_weight() -> None:
    model = built(Remembers)
    x = normal(2, 3, 8, 8)
    other = copy.deepcopy(model)
    assert verify(model, other, x, onnx=False).verdict == "passed"
    assert float(model.last) == float(other.last) == 0
    with pytest.raises(bnfold.CaptureError, match="writes into the buffer `last`"):
        bnfold.fold(model, x)
    assert float(model.last) == 0


def test_a_sparse_output_is_compared() -> None:
    class Sparse(SameOrNot):
        def forward(self, q: Tensor) -> Tensor:  # type: ignore[override]
            return self.body(q).relu().to_sparse()

    model = built(Sparse)
    x = normal(2, 3, 8, 8)
    folding = bnfold.fold(model, x)
    assert verify(model, folding.module, x, onnx=False).verdict == "passed"
    with torch.no_grad():
        dict(folding.module.named_parameters())["body.0.weight"] *= 1.001
    assert verify(model, folding.module, x, onnx=False).verdict == "failed"
