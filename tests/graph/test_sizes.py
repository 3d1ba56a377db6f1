"""What the graph is said to tell of sizes holds for inputs that nobody has shown."""

from __future__ import annotations

import contextlib
import zlib
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from bnfold.capture.ways import capture
from bnfold.graph.facts import Facts
from bnfold.ops.symbolic import Size, number
from tests.fold.support import Net, double, values
from tests.fold.test_rules import ROWS, Row, built


class _Values(Interpreter):
    """Runs a graph and keeps all values."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts.capture.root, graph=facts.capture.graph)
        self.facts = facts
        self.found: dict[Node, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        constant = self.facts.capture.constants.get(target)
        return super().fetch_attr(target) if constant is None else constant

    def run_node(self, n: Node) -> Any:
        self.found[n] = super().run_node(n)
        return self.found[n]


def told(size: Size, found: dict[Node, Any]) -> Fraction:
    """The size in one run."""
    total = size.factor
    for name, power in size.powers:
        value = found[name] if isinstance(name, Node) else found[name[0]].shape[name[1]]  # type: ignore[index]
        total *= Fraction(value) ** power
    return total


@pytest.mark.parametrize("case", [row for row in ROWS if row.dims in (0, 2)], ids=lambda case: case.name)
def test_each_size_told_is_that_of_an_input_of_another_size(case: Row) -> None:
    net, x = built(case, zlib.crc32(case.name.encode()))
    facts = Facts.of(capture(net, x, "recorded"))
    other = values(3, 3, *[14, 16][: case.dims]) if case.dims else values(4, 5, 3)
    runner = _Values(facts)
    with torch.no_grad(), contextlib.suppress(RuntimeError, ValueError):  # a size may be written down in the model
        runner.run(other)
    known = 0
    for node, value in runner.found.items():
        sizes = facts.sizes(node)
        if isinstance(value, Tensor) and sizes is not None:
            assert [told(size, runner.found) for size in sizes] == list(value.shape), node
            known += any(size.number for size in sizes)
    assert known


def test_a_size_divides_only_where_it_does_so_for_every_input() -> None:
    height, width = Size.unknown("h"), Size.unknown("w")
    assert (height * width).in_units_of(height) == width
    assert (number(6) * height).in_units_of(number(4)) is None
    assert (number(8) * height).in_units_of(number(4)) == number(2) * height
    assert height.in_units_of(width) is None
    assert (height / height).number == 1
    assert (height / number(2)).number is None


def test_what_is_reshaped_in_place_has_no_one_size() -> None:
    net = double(Net(lambda s, x: s.conv(x).unsqueeze_(2), conv=nn.Conv2d(3, 4, 3)))
    facts = Facts.of(capture(net, values(2, 3, 9, 9), "recorded"))
    assert all(facts.sizes(node) is None for node in facts.index)
