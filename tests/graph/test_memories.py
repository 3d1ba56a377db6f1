"""A model that remembers, or draws, where nobody looks: it is refused, and what it holds stays as it was."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import CaptureError
from tests.networks import built, normal


class Remembers(nn.Module):
    """A convolution, its BatchNorm, and a factor that its code computes from what it keeps."""

    def __init__(self, kept: Callable[[], Any], factor: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("buffer", torch.ones(1))
        self.kept, self.factor = kept(), factor

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x)) * self.factor(self)


def counts(self: Any) -> int:
    self.kept["runs"] += 1
    return int(self.kept["runs"])


def queues(self: Any) -> int:
    self.kept.append(1)
    return len(self.kept)


def counts_deep_down(self: Any) -> int:
    self.kept[0][0] += 1
    return int(self.kept[0][0])


def through_data(self: Any) -> Tensor:
    self.buffer.data.add_(1)
    return self.buffer  # type: ignore[no-any-return]


def through_numpy(self: Any) -> Tensor:
    self.buffer.numpy()[0] += 1
    return self.buffer  # type: ignore[no-any-return]


def weight_through_data(self: Any) -> float:
    self.conv.weight.data.mul_(1.5)
    return 1.0


def weight_replaced(self: Any) -> float:
    self.conv.weight.data = self.conv.weight.data * 1.5
    return 1.0


def weight(self: Any) -> float:
    with torch.no_grad():
        self.conv.weight.mul_(1.5)
    return 1.0


def held_in_a_list(self: Any) -> Tensor:
    self.kept[0].add_(1)
    return self.kept[0]  # type: ignore[no-any-return]


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a counter": (collections.Counter, counts),
    "a queue": (lambda: collections.deque(maxlen=9), queues),
    "a buffer's data": (lambda: None, through_data),
    "a buffer's memory": (lambda: None, through_numpy),
    "a weight's data": (lambda: None, weight_through_data),
    "a weight's memory": (lambda: None, weight_replaced),
    "a weight": (lambda: None, weight),
    "a tensor in a list": (lambda: [torch.ones(1)], held_in_a_list),
}


@pytest.mark.parametrize("searched", [True, False], ids=["searched", "given"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_writes_is_refused_and_undone(name: str, searched: bool) -> None:
    model: Any = built(lambda: Remembers(*CHANGES[name]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = [*model.kept] if model.kept is not None else []
    held = [value.clone() for value in kept if isinstance(value, Tensor)]
    with pytest.raises(CaptureError, match=r"writes into|the next run answers otherwise"):
        bnfold.fold(model, None if searched else normal(2, 3, 8, 8), check=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ([*model.kept] if model.kept is not None else []) == kept
    assert all(torch.equal(value, one) for value, one in zip(kept, held, strict=False))


ANSWERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a list in a tuple": (lambda: ([0],), counts_deep_down),
    "a generator of its own": (lambda: random.Random(1), lambda self: self.kept.random()),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_model_that_does_not_agree_with_itself_is_not_believed(name: str) -> None:
    model = built(lambda: Remembers(*ANSWERS[name]))
    with pytest.raises(CaptureError, match="the model itself answers otherwise in its next run"):
        bnfold.fold(model, normal(2, 3, 8, 8))
