"""What a model returns keeps its form: dicts of any kind, dataclasses, named and plain tuples, None and numbers."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.fold.support import ALGEBRA, Net, double, error_of_peak, run, values

X = values(2, 3, 8, 8)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Record:
    value: Any
    extra: Any = None


class Answer(OrderedDict):  # type: ignore[type-arg]
    """A dict with attributes, as large libraries return."""

    @property
    def logits(self) -> Any:
        return self["logits"]


@dataclass
class Both(OrderedDict):  # type: ignore[type-arg]
    """A dict that is a dataclass too."""

    value: Any = None
    extra: Any = None

    def __post_init__(self) -> None:
        self.update(value=self.value)


FORMS: dict[str, Any] = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, None, 3),
    "list": lambda y: [y, [y * 2, "a word"]],
    "named tuple": lambda y: Pair(y, [y, None]),
    "dict": lambda y: {"a": y, "b": None, "c": {"d": (y + 1,)}},
    "ordered dict": lambda y: OrderedDict(out=y, aux=y * 2),
    "a kind of dict": lambda y: Answer(logits=y),
    "dataclass": lambda y: Record(y, {"a": y}),
    "dataclass and dict": lambda y: Both(value=y),
}


def parts(value: Any) -> Any:
    """Take apart what the comparison of plain containers does not look into."""
    if isinstance(value, dict):
        return {**value, **vars(value)} if hasattr(value, "__dict__") else value
    return vars(value) if hasattr(value, "__dict__") and not isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("examples", [True, False])
def test_the_form_of_the_output_is_kept(name: str, examples: bool) -> None:
    form = FORMS[name]
    model = double(Net(lambda s, x: form(s.bn(s.conv(x))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    folding = bnfold.fold(model, X if examples else None, capture="symbolic")
    expected, got = run(model, X), run(folding.module, X)
    assert type(got) is type(expected)
    assert error_of_peak(parts(expected), parts(got)) <= ALGEBRA
    assert [d.action for d in folding.plan] == ["fold"]


def test_a_kind_of_dict_that_cannot_be_made_of_a_dict_is_not_traced() -> None:
    def forward(s: Any, x: Any) -> Any:
        answer = defaultdict(list)
        answer["a"] = s.bn(s.conv(x))
        return answer

    model = double(Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    with pytest.raises(bnfold.CaptureError, match="defaultdict"):
        bnfold.fold(model, capture="symbolic")


def test_a_tensor_that_is_returned_untouched_is_the_input() -> None:
    model = double(Net(lambda s, x: (x, s.bn(s.conv(x))), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    folded = bnfold.fold(model).module
    assert folded(X)[0] is X
    assert torch.is_tensor(folded(X)[1])
