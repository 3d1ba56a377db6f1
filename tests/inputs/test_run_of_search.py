"""The run by which a search found a shape is the run that is captured, and its graph tells of another batch.

What three recorded runs told before (the shape, another batch, the graph), one tells now; each question keeps an
answer that is the model's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.capture.ways import capture
from bnfold.errors import CaptureError, OtherInputError, UsageError
from bnfold.graph.facts import Facts
from bnfold.inputs.search import find_inputs
from tests.networks import NETWORKS, built


class Counted(nn.Module):
    """A convolution, its BatchNorm and whatever is said; tells of its runs where no search undoes it."""

    def __init__(self, then: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("buffer", torch.ones(1))
        self.kept: int | None = None
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(tuple(x.size()))
        return self.then(self, self.bn(self.conv(x)))


RUNS: list[Any] = []


def counted(then: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    RUNS.clear()
    return built(lambda: Counted(then)).double()


def batch_of(size: int) -> Tensor:
    return torch.randn(size, 3, 9, 8, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def test_a_fold_without_inputs_runs_the_model_once() -> None:
    model = counted(lambda _, y: y.relu())
    folded = bnfold.fold(model, check=False).module
    assert len(RUNS) == 1
    x = batch_of(5)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_the_one_of_a_run_on_the_inputs_that_were_found(name: str) -> None:
    model, _ = NETWORKS[name]()
    searched = capture(model, check=False)
    given = capture(model, searched.example_inputs, check=False)
    assert str(searched.graph) == str(given.graph)
    assert searched.way == given.way == "recorded"
    assert searched.constants.keys() == given.constants.keys()
    assert [node.meta.get("lines") for node in searched.graph.nodes] == [
        node.meta.get("lines") for node in given.graph.nodes
    ]
    assert all(value.device.type == "cpu" for value in searched.example_inputs or ())
    assert Facts.of(searched).shapes_by_name() == Facts.of(given).shapes_by_name()


def refused(y: Tensor) -> Tensor:
    if y.shape[0] > 2:
        raise ValueError("two at most")
    return y


def summed(y: Tensor) -> Tensor:
    return y if y.shape[0] == 2 else y.sum(0)


@pytest.mark.parametrize(
    "then",
    [refused, summed, lambda y: y.reshape(2, -1), lambda y: y + torch.ones(2, 1, 1, 1)],
    ids=["a branch that raises", "a branch that drops it", "written down", "added to"],
)
def test_a_batch_that_the_model_does_not_keep_at_three_is_not_believed(then: Callable[[Tensor], Tensor]) -> None:
    model = counted(lambda _, y: then(y))
    with pytest.raises(UsageError, match="No input shape was found on which Counted runs and keeps its batch"):
        find_inputs(model)
    assert {2, 3} <= {size[0] for size in RUNS}


def test_where_the_graph_holds_for_two_only_the_model_itself_is_asked_for_three_and_the_graph_refuses_it() -> None:
    model = counted(lambda _, y: y * 2 if y.shape[0] == 2 else y * 3)
    folded = bnfold.fold(model, check=False).module
    assert [size[0] for size in RUNS] == [2, 3]
    x = batch_of(2)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(OtherInputError, match=r"shape\[0\] == 2"):
        folded(batch_of(3))


def test_a_batch_as_a_plain_number_is_followed_in_a_second_run() -> None:
    model = counted(lambda _, y: y * torch.ones(int(y.shape[0]), 1, 1, 1, dtype=y.dtype))
    folded = bnfold.fold(model, check=False).module
    for size in (1, 5):
        x = batch_of(size)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


def remembering(self: Any, y: Tensor) -> Tensor:
    if self.kept != y.shape[0]:
        self.kept = y.shape[0]
        self.start = torch.ones(self.kept, 1, 1, 1, dtype=y.dtype)
    return y * self.start


def test_what_is_kept_of_an_earlier_run_does_not_pin_the_batch_and_is_left() -> None:
    model: Any = counted(remembering)
    model(batch_of(2))
    start = model.start
    folded = bnfold.fold(model, check=False).module
    assert model.start is start
    assert model.kept == 2
    x = batch_of(5)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


def writes(self: Any, y: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # out of the recorder's sight, as compiled code is
        self.buffer.add_(1)
    return y


def draws(_: Any, y: Tensor) -> Tensor:
    return y * random.random()


@pytest.mark.parametrize(("then", "does"), [(writes, "writes into"), (draws, "draws random numbers")])
def test_what_a_run_does_besides_is_refused_though_the_search_found_a_shape(then: Any, does: str) -> None:
    model: Any = counted(then)
    assert find_inputs(model).recorded is None
    state = random.getstate()
    with pytest.raises(CaptureError, match=rf"Counted\.forward {does}"):
        bnfold.fold(model, check=False)
    assert random.getstate() == state or then is draws
    assert float(model.buffer) == 1
