"""Names that would not stay names where a graph is written as source, and names that only look odd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import CaptureError
from tests.fold.support import double, folds, values

X = values(2, 3, 5, 5)


class Named(nn.Module):
    """A convolution, a BatchNorm and a factor, one of which has a name that the caller chooses."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__()
        self.parts = {part: name if part == what else part for part in ("conv", "factor")}
        self.add_module(self.parts["conv"], nn.Conv2d(3, 4, 1))
        self.bn = nn.BatchNorm2d(4)
        self.register_parameter(self.parts["factor"], nn.Parameter(torch.randn(4, 1, 1)))

    def forward(self, x: Tensor) -> Any:
        conv, factor = self._modules[self.parts["conv"]], self._parameters[self.parts["factor"]]
        assert conv is not None
        assert factor is not None
        return self.bn(conv(x)) * factor


WHAT = pytest.mark.parametrize("what", ["conv", "factor"])


@WHAT
@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "\0", "\ud800", 'x"), print(1), getattr(self, "bn'])
@pytest.mark.parametrize("way", ["auto", "symbolic", "export"])
def test_a_name_that_would_become_code_is_refused(name: str, what: str, way: str) -> None:
    with pytest.raises(CaptureError, match="no graph can be written with"):
        bnfold.fold(double(Named(name, what)), X, capture=way)


def test_a_name_that_only_a_file_can_give_is_refused() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model._modules["0.weight"] = nn.ReLU().eval()
    with pytest.raises(CaptureError, match=r"'0\.weight'"):
        bnfold.fold(model)


@WHAT
@pytest.mark.parametrize("name", ["class", "in", "None"])
def test_a_word_of_python_s_own_is_told(name: str, what: str) -> None:
    with pytest.raises(CaptureError, match=f"`{name}` in the name .* is a word of Python's own"):
        bnfold.fold(double(Named(name, what)), X)


@WHAT
@pytest.mark.parametrize("name", ["a b", "1", "é", "a'b", "a`{b}", "match", "x)"])
def test_an_odd_name_is_no_trouble(name: str, what: str) -> None:
    folding = folds(double(Named(name, what)), X)
    assert [decision.action for decision in folding.plan] == ["fold"]
