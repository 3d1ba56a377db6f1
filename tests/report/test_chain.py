"""Pictures made of characters: bars, spreads, and the chain of calls that an affine moves along."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnfold
import bnfold.report.bars
from bnfold.report.bars import bar, spread
from bnfold.report.chain import Link, render_chain
from bnfold.report.gather import chain_of
from tests.networks import NETWORKS

FINITE = st.floats(-10, 10)


def test_the_examples_in_the_docstrings_are_so() -> None:
    found = doctest.testmod(bnfold.report.bars)
    assert found.attempted >= 4
    assert found.failed == 0


@given(FINITE, st.floats(0, 10), st.booleans())
def test_a_bar_has_its_width_whatever_it_shows_and_its_side_tells_the_sign(v: float, top: float, plain: bool) -> None:
    drawn = bar(v, top, width=6, plain=plain)
    assert len(drawn) == 13
    assert drawn[6] in "|│"
    assert not (drawn[:6].strip() and drawn[7:].strip())
    assert not (v > 0 and drawn[:6].strip())
    assert not (v < 0 and drawn[7:].strip())
    assert not plain or drawn.isascii()


@given(st.lists(FINITE, min_size=1, max_size=60), st.booleans())
def test_a_spread_shows_every_number_and_where_zero_is(values: list[float], plain: bool) -> None:
    heights, mark = spread(values, width=20, plain=plain)
    assert len(heights) == 20
    shown = [place for place, height in enumerate(heights) if height != " "]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    zero = mark.index("|" if plain else "│")
    if high > low:
        assert {min(int((value - low) / (high - low) * 20), 19) for value in values} == set(shown)
    if max(values) < 0 and high > low:
        assert zero == 19
    assert not plain or heights.isascii()


def links(name: str, batchnorm: str) -> dict[str, Link]:
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    number = [decision.batchnorm for decision in folding.plan].index(batchnorm)
    return {link.label: link for link in chain_of(folding, number)}


def test_the_chain_names_what_takes_the_affine_and_the_rule_it_passes_by() -> None:
    chain = links("seed", "bn1")
    assert {label: link.part for label, link in chain.items()} == {
        "x": "near",
        "conv1": "takes",
        "pool": "passes",
        "bn1": "site",
        "relu": "near",
    }
    assert "max(a x + b) = a max(x) + b for a >= 0" in chain["pool"].words


def test_a_sideways_chain_runs_through_the_sum() -> None:
    chain = links("repvgg", "identity")
    assert chain["conv3"].part == "takes"
    assert "one convolution" in chain["add"].words


def test_one_that_does_not_fold_is_shown_where_it_stands() -> None:
    chain = links("seed-negative", "bn1")
    assert chain["bn1"].words == "becomes an explicit affine"
    assert {link.part for link in chain.values()} == {"near", "site"}


@pytest.mark.parametrize("plain", [True, False])
def test_a_line_joins_the_ends_of_the_way(plain: bool) -> None:
    chain = [
        Link("x", "input", "near"),
        Link("conv", "Conv2d 1→2, 3×3", "takes", "takes bn"),
        Link("pool", "MaxPool2d 2", "passes", "why"),
        Link("bn\x1b[31m", "BatchNorm2d 2", "site", "is gone"),
    ]
    lines = [line.plain for line in render_chain(chain, plain=plain)]
    top, middle, bottom = ("<+", " |", "-+") if plain else ("<┐", " │", "─┘")
    assert lines[0].split() == ["x", "input"]
    assert f"{top} takes bn" in lines[1]
    assert f"{middle} why" in lines[2]
    assert f"{bottom} is gone" in lines[3]
    assert "\x1b" not in lines[3]
    assert not plain or all(line.isascii() for line in lines)
