"""What networks of other libraries do in ``forward``, in small: each is recorded, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.graph.test_recorded import folded_as, network

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
