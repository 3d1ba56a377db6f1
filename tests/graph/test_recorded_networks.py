"""What networks of other libraries do in ``forward``, in small: each is recorded, or refused in a sentence."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.capture.ways import capture
from bnfold.errors import CaptureError
from tests.graph.questions import Asks, image
from tests.graph.test_recorded import folded_as, network, same

WIDE = ((2, 3, 16, 16), (1, 3, 16, 16), (5, 3, 24, 20))


def recorded(model: nn.Module, *shapes: tuple[int, ...]) -> Any:
    """Fold a model; the capture must be a recorded run, the shapes other batches and sizes."""
    folding = folded_as(model, shapes=shapes or WIDE)
    assert folding.plan.capture == "recorded"
    return folding


# --- calls -------------------------------------------------------------------------------------------------------


def test_a_number_may_be_given_as_a_tensor() -> None:
    """ultralytics: ``feats[0].new_full((h * w, 1), stride)``, with a stride that is a tensor."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.features(x)
        return x * x.new_full((x.shape[2], 1), self.stride[1])

    recorded(network(forward, stride=torch.tensor([8.0, 16.0])))


def test_a_conversion_that_changes_nothing_yet_is_part_of_the_graph() -> None:
    """kornia: a kernel made in float32 is converted to the type of the image, which is float32, too."""

    def forward(self: Any, x: Tensor) -> Tensor:
        kernel = torch.ones(6, 1, 3, 3)
        x = self.features(x)
        return torch.conv2d(x, kernel.to(x.device, x.dtype), groups=6)

    model = network(forward).float()
    folding = bnfold.fold(model, image((2, 3, 16, 16)).float())
    same(model.double(), folding.in_float64()[1], *WIDE)


def test_a_buffer_may_be_replaced_by_itself_in_the_type_of_the_input() -> None:
    """speechbrain: ``self.drop_mask_te = self.drop_mask_te.to(w.device)``."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.features(x)
        self.mask = self.mask.to(x.device, x.dtype)
        return x * self.mask

    recorded(network(forward, mask=torch.tensor([0.5])))


def test_a_selection_by_values_is_refused_as_a_question_about_data() -> None:
    """torchvision's detectors: ``boxes[scores > threshold]``."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.features(x)
        return x[x > 0]

    with pytest.raises(CaptureError, match=r"asks for the places of a value that depends on its input, at .*:\d+: no"):
        capture(network(forward), image((2, 3, 16, 16)), "recorded")


# --- what a model keeps of an earlier run ------------------------------------------------------------------------


class Anchored(Asks):
    """ultralytics' heads: anchors are kept for the shape of the last run."""

    shape = None
    anchors = torch.empty(0)
    mode = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.shape != x.shape:
            self.anchors = torch.arange(x.shape[3], dtype=x.dtype, device=x.device)
            self.shape = x.shape
        return x * self.anchors if self.mode is None else x + self.anchors


def test_what_is_kept_of_an_earlier_run_does_not_pin_the_sizes() -> None:
    model = network(Anchored)
    model(image((2, 3, 16, 16)))
    shape, anchors = model.shape, model.anchors
    folding = bnfold.fold(model, image((2, 3, 16, 16)), check=False)
    assert model.shape is shape
    assert model.anchors is anchors
    same(copy.deepcopy(model), folding.module, *WIDE)


def test_a_setting_is_not_taken_for_something_kept() -> None:
    model = network(Anchored)
    model.mode = "add"
    model(image((2, 3, 16, 16)))
    same(copy.deepcopy(model), bnfold.fold(model, image((2, 3, 16, 16))).module, *WIDE)


class Batched(Asks):
    """speechbrain's recurrent layers: the batch of the last run is kept; ``block`` looks the same and is a setting."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.block = 16, 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.shape[0] == 0:
            return x
        if self.batch != x.shape[0]:
            self.batch = x.shape[0]
            self.start = torch.ones(self.batch, 1, 1, 1, dtype=x.dtype)
        return x * self.start * self.block


@pytest.mark.parametrize("batch", [2, 5])
def test_a_batch_that_is_kept_as_a_number_does_not_pin_the_batch(batch: int) -> None:
    model = network(Batched)
    model(image((batch, 3, 16, 16)))
    same(copy.deepcopy(model), bnfold.fold(model, image((2, 3, 16, 16))).module, *WIDE)
    assert model.batch == batch


class Remembers(Asks):
    """What it answers depends on the run before."""

    last = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if self.last is None:
            self.last = torch.ones(x.shape[3], dtype=x.dtype)
        return y * self.last


def test_what_is_kept_and_not_what_a_first_run_computes_is_what_the_graph_holds() -> None:
    model = network(Remembers)
    model.last = torch.full((16,), 3.0, dtype=torch.float64)
    same(copy.deepcopy(model), bnfold.fold(model, image((2, 3, 16, 16))).module, (2, 3, 16, 16), (5, 3, 16, 16))


# --- numbers made of sizes ---------------------------------------------------------------------------------------


def resized(x: Tensor, sizes: list[int]) -> Tensor:
    return torch.nn.functional.interpolate(x, sizes)


PLAIN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "int": lambda _, x: resized(x, [int(x.shape[2] * 0.5), int(x.shape[3] / 1.5)]),
    "float": lambda _, x: resized(x, [int(float(size) / 2) for size in x.shape[2:]]),
    "len": lambda _, x: x.reshape(len(x), -1).repeat(1, len(x.mT[0])),
    "numpy": lambda _, x: resized(x, [int(np.floor(np.float64(1.5) * x.shape[2])), int(x.shape[3] * np.int64(2) - 1)]),
    "ceil": lambda _, x: resized(x, [int(np.ceil(x.shape[2] / 7)) * 7, int(math.sqrt(x.shape[1]))]),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its bytecode does not tell what is called")
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_number_made_of_a_size_follows_the_size(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return PLAIN[name](self, self.features(x))

    code = PLAIN[name].__code__
    recorded(network(forward))
    assert PLAIN[name].__code__ is code


def test_a_function_that_means_the_type_is_left_alone() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.features(x)
        height = int(x.shape[2] / 2)
        return resized(x, [height, 4]) if type(height) is int and isinstance(height, int) else x

    recorded(network(forward), (2, 3, 16, 16), (5, 3, 16, 16))
