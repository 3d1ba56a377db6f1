"""Graphs of thousands of layers in a row are planned and folded without recursion."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import bnfold


class Row(nn.Module):
    """One convolution and one BatchNorm called at either end of a row of functions."""

    def __init__(self, count: int, function: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.count, self.function = count, function
        nn.init.uniform_(self.bn.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(self.count):
            x = x.contiguous() if self.function == "contiguous" else torch.sin(x)
        return self.bn(x)


@pytest.mark.parametrize(("function", "action"), [("contiguous", "fold"), ("sin", "affine")])
def test_a_row_longer_than_pythons_stack_is_no_recursion(function: str, action: str) -> None:
    model = Row(2 * sys.getrecursionlimit(), function).eval()
    folding = bnfold.fold(model)
    assert [decision.action for decision in folding.plan] == [action]
    x = torch.randn(1, 2, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(folding.module(x), model(x), rtol=1e-5, atol=1e-6)
