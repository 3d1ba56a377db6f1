"""Weights without values are told; weights made in inference mode are like others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import CaptureError, UsageError
from tests.fold.support import double, folds, values

WITHOUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy convolution": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), "`0.weight` .* lazy"),
    "lazy BatchNorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()), "`1.weight` .* lazy"),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"), nn.BatchNorm2d(4)), "`0.weight` .* meta"),
    "BatchNorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, device="meta")), "`1.weight` .* meta"),
}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("name", WITHOUT)
def test_weights_without_values_are_told(name: str, merge: bool) -> None:
    make, said = WITHOUT[name]
    with pytest.raises(UsageError, match=said):
        bnfold.fold(make().eval(), merge=merge)


class Counting(nn.BatchNorm2d):
    """Counts its calls in a buffer, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        return super().forward(x)


def test_a_model_made_in_inference_mode_folds() -> None:
    with torch.inference_mode():
        model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        model[1].register_buffer("unknown", torch.tensor(float("nan")))
        inside = folds(model, values(2, 3, 8, 8))
    outside = folds(model, values(2, 3, 8, 8))
    for folding in (inside, outside):
        assert [decision.action for decision in folding.plan] == ["fold"]


@pytest.mark.parametrize("way", ["auto", "recorded", "symbolic"])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_what_is_written_is_seen_and_put_back_in_inference_mode_too(inference: bool, given: bool, way: str) -> None:
    with torch.inference_mode(inference):
        model = double(nn.Sequential(nn.Conv2d(3, 4, 3), Counting(4)))
        with pytest.raises(CaptureError, match=r"writes into the buffer `1\.num_batches_tracked`"):
            bnfold.fold(model, values(2, 3, 8, 8) if given else None, capture=way)
        assert int(model[1].num_batches_tracked) == 0
