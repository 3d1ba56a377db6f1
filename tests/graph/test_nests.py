"""Outputs of any nest as a flat list of named leaves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from bnfold.capture.nests import flatten, nest_difference, structure_difference


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Boxes:
    where: Any
    score: Any = None


ZERO, ONE = torch.zeros(2), torch.ones(3)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (ZERO, ["output"]),
        ((ZERO, ONE), ["output[0]", "output[1]"]),
        ([ZERO], ["output[0]"]),
        ({"a": ZERO, 3: ONE}, ["output['a']", "output[3]"]),
        (OrderedDict(a=ZERO), ["output['a']"]),
        (Point(ZERO, [ONE]), ["output.x", "output.y[0]"]),
        (Boxes({"b": ZERO}), ["output.where['b']", "output.score"]),
        (None, ["output"]),
        ((), []),
    ],
)
def test_each_leaf_is_named_by_the_way_to_it(output, names):
    assert [leaf.name for leaf in flatten(output)] == names


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ((ZERO, ONE), [ZERO, ONE], "list(Tensor, Tensor) instead of tuple(Tensor, Tensor)"),
        (ZERO, (ZERO,), "tuple(Tensor) instead of Tensor"),
        ({"a": ZERO}, {"b": ZERO}, "dict('b': Tensor) instead of dict('a': Tensor)"),
        ((ZERO,), (ZERO, ZERO), "instead of tuple(Tensor)"),
        (Point(1, 2), (1, 2), "tuple(int, int) instead of Point(int, int)"),
        (ZERO, None, "NoneType instead of Tensor"),
        ((), None, "NoneType instead of tuple()"),
        (Boxes(ZERO), Boxes(ZERO, ONE), "Boxes(Tensor, Tensor) instead of Boxes(Tensor, NoneType)"),
    ],
)
def test_a_different_nest_is_said(left, right, words):
    difference = nest_difference(flatten(left), flatten(right))
    assert difference is not None
    assert words in difference
    assert structure_difference(flatten(left), flatten(right)) == difference


def test_an_ordered_dict_is_as_good_as_a_dict():
    assert structure_difference(flatten({"a": ZERO}), flatten(OrderedDict(a=ZERO))) is None


def test_shapes_are_the_structure_s_and_not_the_nest_s():
    assert nest_difference(flatten(ZERO), flatten(ONE)) is None
    assert structure_difference(flatten(ZERO), flatten(ONE)) == "output has shape (3,) instead of (2,)"


def test_a_very_long_structure_is_told_in_short():
    difference = structure_difference(flatten([ZERO] * 500), flatten([ZERO] * 501))
    assert difference is not None
    assert len(difference) < 400
