"""Denormal weights that a fold made are counted, told, and set to zero if asked; others are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.fold.support import double, run, set_affine, values

TINY = 1e-30  # normal in float32; times SMALL it is not
SMALL = 1e-10


def dying(dtype: torch.dtype = torch.float32, *, tiny: float = TINY, small: float = SMALL) -> Any:
    """Conv -> BatchNorm with a scale of 1e-10 in channel 1, where 5 weights are tiny and one is denormal already."""
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    set_affine(net[1], scale=torch.tensor([1.0, small, -2.0, 0.5]).double(), shift=0.25)
    with torch.no_grad():
        net[0].weight[1] = 1.0
        net[0].weight[1].view(-1)[:5] = tiny
        net[0].weight[1].view(-1)[5] = float(torch.finfo(dtype).smallest_normal) / 2
    return net.to(dtype)


def denormals(tensor: torch.Tensor) -> int:
    return int(((tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_denormals_that_the_fold_made_are_counted(dtype: torch.dtype) -> None:
    folding = bnfold.fold(dying(dtype))
    assert folding.denormals() == {"0.weight": 5}
    assert not any("denormal" in note for note in folding.plan.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_those_and_only_those_are_flushed_and_the_plan_says_so(dtype: torch.dtype) -> None:
    net = dying(dtype)
    kept, flushed = bnfold.fold(net), bnfold.fold(net, flush_denormals=True)
    before, after = kept.module.get_parameter("0.weight"), flushed.module.get_parameter("0.weight")
    assert torch.equal(after[1].view(-1)[:5], torch.zeros(5, dtype=dtype))
    assert torch.equal(after[1].view(-1)[5:], before[1].view(-1)[5:])
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert flushed.denormals() == {}
    assert flushed.plan.notes == ("5 weights that the fold made denormal were set to zero: 0.weight (5).",)


def test_a_flush_stays_far_below_rounding_and_passes_the_proof() -> None:
    net = dying()
    folding = bnfold.fold(net, flush_denormals=True)
    x = values(2, 3, 8, 8).float()
    error = float((run(net, x) - run(folding.module, x)).abs().max())
    assert error <= 1e-6 * float(run(net, x).abs().max())
    assert bnfold.verify(net, folding.module, x, onnx=False).passed


def test_denormals_of_float16_are_ordinary_weights_and_left_alone() -> None:
    net = dying(torch.float16, tiny=1e-3, small=1e-2)  # 1e-5 is denormal in float16
    folding = bnfold.fold(net, flush_denormals=True)
    assert denormals(folding.module.get_parameter("0.weight").detach()) >= 5
    assert folding.denormals() == {}
    assert folding.plan.notes == ()


def test_weights_that_no_fold_touched_and_the_model_itself_are_left_alone() -> None:
    net = nn.Sequential(dying(), nn.Tanh(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        net[2].weight.fill_(1e-40)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folding = bnfold.fold(net, flush_denormals=True)
    assert denormals(folding.module.get_parameter("2.weight").detach()) == 16
    assert denormals(folding.module.get_parameter("0.0.weight").detach()) == 0
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_explicit_affines_keep_the_numbers_of_their_batchnorm() -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.BatchNorm2d(4))).float()
    with torch.no_grad():
        net[2].weight[0] = 1e-40
    folding = bnfold.fold(net, flush_denormals=True)
    assert folding.denormals() == {}
    x = values(2, 3, 8, 8).float()
    assert torch.equal(run(net, x), run(folding.module, x))


def test_a_layer_at_two_sites_and_a_piece_are_counted_under_their_own_names() -> None:
    net = dying()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = net

        def forward(self, x: Any) -> Any:
            return self.pair(x), self.pair[0](x)

    folding = bnfold.fold(Twice().eval())
    assert folding.denormals() == {"pair.0_folded1.weight": 5}
