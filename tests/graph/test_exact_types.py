"""What asks for the exact type of a size is answered in a recorded run as in any other."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from bnfold.capture.exact_types import exact_types
from bnfold.errors import OtherInputError
from tests.networks import randomise

_KINDS = (int, float)


class _Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y * 2 if self.is_large(x) else y

    def is_large(self, x: Any) -> bool:
        raise NotImplementedError


class ByIdentity(_Asking):
    def is_large(self, x: Any) -> bool:
        return type(x.shape[2]) is int and x.shape[2] > 16


class ByEquality(_Asking):
    def is_large(self, x: Any) -> bool:
        return type(x.size(2)) == int and x.size(2) > 16  # noqa: E721


class OfAQuotient(_Asking):
    def is_large(self, x: Any) -> bool:
        return type(x.shape[2] / 8) is float and x.shape[2] / 8 > 2


class FromATable(_Asking):
    def is_large(self, x: Any) -> bool:
        return {int: lambda size: size > 16}.get(type(x.shape[2]), lambda _: False)(x.shape[2])


class InAHelper(_Asking):
    def is_large(self, x: Any) -> bool:
        return any(_is_number(size) and size > 16 for size in x.shape[2:])


def _is_number(value: Any) -> bool:
    return type(value) in _KINDS


@pytest.mark.parametrize("kind", [ByIdentity, ByEquality, OfAQuotient, FromATable, InAHelper])
@pytest.mark.parametrize("check", [True, False])
def test_a_size_is_an_int_to_whoever_asks(kind: type[_Asking], check: bool) -> None:
    """The condition behind the question is kept: at the other side of it the fold is refused, and not another."""
    model = randomise(kind()).eval()
    x = torch.randn(2, 3, 8, 8)
    folded = bnfold.fold(model, x, check=check)
    assert folded.plan.capture == "recorded"
    for size in (8, 12):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(folded.module(x), model(x))
    with pytest.raises(OtherInputError):
        folded.module(torch.randn(2, 3, 32, 32))
    assert "type" not in globals()


def test_type_is_otherwise_what_it_is() -> None:
    """It makes classes, is asked by isinstance, and gives the types of all else."""
    with exact_types([ByIdentity()]):
        assert type is not builtins.type
        number, word = 3, ""
        assert type(number) is int
        assert type(word) is str
        assert type(ByIdentity) is type
        assert isinstance(ByIdentity, type)
        assert not isinstance(3, type)
        assert issubclass(builtins.type, type)
        made = type("Made", (nn.Module,), {"size": 3})
        assert made.size == 3

        class Kind(metaclass=type):  # noqa: UP050
            pass

        assert builtins.type(Kind) is builtins.type
        assert type.__name__ == "type"
    assert type is builtins.type


def test_the_name_is_free_again_after_a_run_that_failed() -> None:
    names: list[object] = []
    with pytest.raises(ZeroDivisionError), exact_types([ByIdentity()]):
        names.append("type" in globals() and 1 / 0)  # where it is not there, nothing raises
    assert "type" not in globals()
