"""Decisions that say the same stand in one row; those that say something else do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bnfold.fold.decision import Decision
from bnfold.report.console import render_decisions
from bnfold.report.groups import FEWEST, grouped, pattern
from tests.report.samples import NASTY, decision, document
from tests.report.test_console import printed


def affine(name: str, why: str, **changes: Any) -> Decision:
    words = f"{name} became an explicit affine: {why}"
    return decision(name, "affine", detail=words, because=why.removesuffix("."), **changes)


def dense(count: int) -> list[Decision]:
    return [
        affine(
            f"block{n}.norm",
            f"the output of `block{n}.conv` is also read by `cat_{n}`"
            + (f" and {n} more" if n % 2 else "")
            + f"; and forward, {n + 2} of {32 * n} scales are negative.",
        )
        for n in range(1, count + 1)
    ]


def test_what_differs_in_names_and_numbers_alone_is_one_row_with_patterns_and_ranges() -> None:
    (group,) = grouped(dense(6))
    assert group.members == tuple(range(6))
    assert group.names == "block*.norm"
    assert group.reason == (
        "the output of `block*.conv` is also read by `cat_*`; and forward, 3 to 8 of 32 to 192 scales are negative."
    )


def test_one_scale_and_several_are_the_same_reason() -> None:
    few = [affine(f"n{n}", f"{n} of 8 scales {'is' if n == 1 else 'are'} negative.") for n in (1, 2, 3)]
    (group,) = grouped(few)
    assert group.reason == "1 to 3 of 8 scales are negative."


def test_numbers_that_are_the_same_stay_in_the_pattern() -> None:
    assert pattern(["stage1.block2.bn3", "stage4.block2.bn3"]) == "stage*.block2.bn3"


@pytest.mark.parametrize(
    "other",
    [
        affine("block9.norm", "it has an output of its own."),
        affine(dense(9)[8].batchnorm, dense(9)[8].because + ".", reason="hooks"),
        decision("block9.norm"),
    ],
)
def test_another_reason_or_sentence_stands_for_itself(other: Decision) -> None:
    every = [*dense(4), other, *dense(8)[4:]]
    assert [group.members for group in grouped(every)] == [(0, 1, 2, 3, 5, 6, 7, 8), (4,)]


def test_fewer_than_a_group_stand_for_themselves() -> None:
    assert [group.members for group in grouped(dense(FEWEST - 1))] == [(n,) for n in range(FEWEST - 1)]


def test_those_that_folded_are_grouped_by_what_took_them() -> None:
    folds = [decision(f"s{n}.bn1", into=(f"s{n}.conv1",), through=()) for n in range(4)]
    elsewhere = [decision(f"s{n}.bn1", into=(f"s{n}.side.conv",), through=()) for n in range(4, 8)]
    first, second = grouped([*folds, *elsewhere])
    assert (first.names, first.into) == ("s*.bn1", "s*.conv1")
    assert (second.names, second.into) == ("s*.bn1", "s*.side.conv")


names = st.from_regex(r"[a-c]\d{0,2}(\.[a-c]\d{0,2}){0,2}", fullmatch=True)
decisions_made = st.lists(
    st.builds(
        lambda name, listed, count, end: affine(name, f"`{listed}` has {count} of 9{end}."),
        names,
        names,
        st.integers(0, 9),
        st.sampled_from(["", " scales", " and 3 more"]),
    ),
    max_size=20,
)


@given(decisions_made)
def test_every_decision_is_in_one_group_and_groups_stand_where_their_first_stands(every: Sequence[Decision]) -> None:
    groups = grouped(every)
    assert sorted(number for group in groups for number in group.members) == list(range(len(every)))
    assert [group.members[0] for group in groups] == sorted(group.members[0] for group in groups)
    assert all(len(group.members) in {1, *range(FEWEST, 21)} for group in groups)


def test_names_with_backticks_and_control_characters_are_told_too() -> None:
    hostile = [affine(f"{NASTY}{n}", f"`{NASTY}` and `\0{n}` are read {n} times.") for n in range(5)]
    members = [number for group in grouped(hostile) for number in group.members]
    assert sorted(members) == list(range(5))


def test_the_terminal_tells_what_repeats_once_and_each_with_verbose() -> None:
    told = document(batchnorms=(*(decision(f"bn{n}") for n in range(30)), *dense(40)))
    text = printed(render_decisions(told, every=False))
    (row,) = [line for line in text.splitlines() if line.startswith("block")]
    assert row.split()[:4] == ["block*.norm", "40", "explicit", "affines"]
    assert "-v lists each of them" in text
    assert "block17.norm" in printed(render_decisions(told, every=True))
