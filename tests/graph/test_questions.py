"""What the code in ``forward`` asks of a value is answered as in a run, or the fold is refused: never wrong."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import Tensor

from tests.graph.questions import (
    CRASH,
    EXAMPLE,
    QUESTIONS,
    RIGHT,
    SHAPES,
    WRONG,
    Asks,
    OtherInputError,
    Outcome,
    compare,
    image,
    judge,
    seeded,
    survive,
)

# Networks that the fold may refuse, in either mode, beside those whose answer is a number of the data.
REFUSED = {"torch.vmap", "try: y.view(...) except RuntimeError"}


# Where inputs are searched for, the same code answers: of these each third is asked unless there is much time.
ASKED = [
    pytest.param(text, mode, marks=pytest.mark.long if mode == "found" and number % 3 else ())
    for number, text in enumerate(QUESTIONS)
    for mode in ("given", "found")
]


@pytest.mark.parametrize(("text", "mode"), ASKED)
def test_a_question_is_answered_as_in_a_run_or_the_fold_is_refused(text: str, mode: str) -> None:
    outcomes = judge(QUESTIONS[text], mode)
    told = "\n".join(f"{shape}: {outcome.kind}: {outcome.detail}" for shape, outcome in outcomes.items())
    assert not {WRONG, CRASH} & {outcome.kind for outcome in outcomes.values()}, told
    if text in REFUSED or QUESTIONS[text].of_data:
        return
    assert not outcomes[EXAMPLE].detail.startswith("fold:"), told
    if mode == "given":
        assert outcomes[EXAMPLE].kind == RIGHT, told


def test_no_more_than_three_networks_may_be_refused() -> None:
    assert len(REFUSED) <= 3
    assert set(QUESTIONS) >= REFUSED


def test_the_networks_that_ask_for_data_are_few() -> None:
    assert sum(question.of_data for question in QUESTIONS.values()) == 3


def test_there_are_more_than_forty_questions() -> None:
    assert len(QUESTIONS) >= 44


@pytest.mark.parametrize("text", QUESTIONS)
def test_a_network_takes_every_shape_but_those_that_it_is_said_to_stop_at(text: str) -> None:
    question = QUESTIONS[text]
    for shape in SHAPES:
        outcome = compare(question.build(), question.build(), image(shape), stops=shape in question.stops_at)
        assert outcome == Outcome(RIGHT), shape


def doubles(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * 2


def doubles_nearly(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * (2 + 1e-8)


def raises(s: Asks, x: Tensor) -> Tensor:
    raise KeyError("missing")


def refuses(s: Asks, x: Tensor) -> Tensor:
    raise OtherInputError("another size", **({"fix": "Fold again."} if hasattr(OtherInputError, "exit_code") else {}))


@pytest.mark.parametrize(
    ("folded", "kind"), [(doubles, RIGHT), (doubles_nearly, WRONG), (raises, CRASH), (refuses, "refused")]
)
def test_the_judge_tells_the_outcomes_apart(folded: Any, kind: str) -> None:
    model, other = (seeded(functools.partial(Asks, function)) for function in (doubles, folded))
    assert compare(model, other, image(EXAMPLE)).kind == kind


@pytest.mark.parametrize(("folded", "kind"), [(doubles, WRONG), (raises, RIGHT), (refuses, RIGHT)])
def test_where_the_model_stops_anything_but_an_answer_is_right(folded: Any, kind: str) -> None:
    model, other = (seeded(functools.partial(Asks, function)) for function in (raises, folded))
    assert compare(model, other, image(EXAMPLE), stops=True).kind == kind


@pytest.mark.long
def test_what_ends_its_process_is_named_and_the_others_are_answered() -> None:
    answers = survive("tests.graph.test_questions", ["first", "dies", "sleeps", "last"], limit=8)
    assert answers == {
        "first": "first",
        "dies": "dies: ended the process (exit code -11)",
        "sleeps": "sleeps: took more than 8 s",
        "last": "last",
    }


def _answer(name: str) -> str:
    if name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "sleeps":
        time.sleep(60)
    return name


if __name__ == "__main__":
    import os
    import signal
    import time

    from tests.graph.questions import work

    work(_answer)
