"""What a person sees in a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from bnfold.report.console import (
    MANY,
    render_comparisons,
    render_counts,
    render_decisions,
    render_outcome,
    render_outputs,
    render_seconds,
)
from bnfold.report.equation import explain
from bnfold.report.explained import render_explanation
from tests.networks import seed_network
from tests.report.samples import decision, document, failing, nasty


def printed(parts: Iterable[Any], width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def line_with(text: str, word: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(word)]
    return line.split()


def test_a_folded_batchnorm_tells_where_it_went_and_through_what() -> None:
    text = printed(render_decisions(document(), every=False))
    assert line_with(text, "bn1") == ["bn1", "folded", "backward", "conv1", "pool"]


def test_one_that_did_not_fold_tells_why() -> None:
    text = printed(render_decisions(document(), every=False))
    assert line_with(text, "bn2")[1:] == "explicit affine 1 of 32 scales is negative.".split()


def test_where_a_layer_is_called_is_told_when_every_row_is_wanted() -> None:
    told = document(batchnorms=(decision(source="net.py:32"),))
    assert "net.py:32" in printed(render_decisions(told, every=True))
    assert "net.py:32" not in printed(render_decisions(told, every=False))


def test_the_sums_are_told_with_the_way_of_capture() -> None:
    text = printed(render_decisions(document(), every=False))
    assert "2 BatchNorms: 1 folded, 1 explicit affine, 0 kept (symbolic capture)" in text


def test_a_layer_called_twice_has_a_row_for_each_call() -> None:
    twice = (decision("bn", site="bn"), decision("bn", site="bn_1"))
    text = printed(render_decisions(document(batchnorms=twice), every=False))
    assert "bn at bn_1" in text


def test_hundreds_that_folded_are_summed_up_and_the_others_all_shown() -> None:
    many = (*(decision(f"bn{number}") for number in range(300)), decision("last", "affine"))
    text = printed(render_decisions(document(batchnorms=many), every=False))
    assert "bn7 " not in text
    assert "last" in text
    assert "The folded ones (300 backward; 300 of them through other layers) are listed with -v." in text
    assert len(text.splitlines()) < 10
    assert "bn7 " in printed(render_decisions(document(batchnorms=many), every=True))


def test_a_few_are_all_shown() -> None:
    few = tuple(decision(f"bn{number}") for number in range(MANY))
    assert f"bn{MANY - 1} " in printed(render_decisions(document(batchnorms=few), every=False))


def test_copied_layers_tell_their_bytes() -> None:
    told = document(batchnorms=(decision(added_bytes=2_000_000),))
    assert "2 MB more" in printed(render_decisions(told, every=False))


def test_a_comparison_tells_its_error_beside_its_noise_floor() -> None:
    text = printed(render_comparisons(document()))
    assert line_with(text, "torch")[-4:] == ["1.50e-07", "2.50e-07", "1.00e-06", "ok"]


def test_a_failed_comparison_says_why() -> None:
    text = printed(render_comparisons(failing()))
    assert "FAILED the error is 40 times what rounding makes" in text


def test_a_failure_names_the_first_batchnorm_that_differs() -> None:
    assert "The first BatchNorm that differs is bn1." in printed([render_outcome(failing())])


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    parts = [*render_decisions(document(), every=False), *render_comparisons(document())]
    text = printed(parts, width=80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert len(line_with(text, "torch")) > 4


def test_what_a_run_costs_is_told_before_and_after() -> None:
    text = printed(render_counts(document()))
    assert line_with(text, "multiply-accumulates") == ["multiply-accumulates", "2.5", "M", "1.25", "M"]
    assert line_with(text, "memory of the weights")[-4:] == ["300", "bytes", "128", "bytes"]
    assert line_with(text, "  batch_norm") == ["batch_norm", "2", "0"]
    assert printed(render_counts(document(counts=None))) == ""


def test_files_and_times_are_told() -> None:
    assert "wrote model.folded.onnx  254 kB" in printed(render_outputs(document()))
    assert line_with(printed(render_seconds(document(seconds={"fold": 1.5, "verify": 0.25}))), "total") == [
        "total",
        "1.75",
    ]


def test_the_parts_of_a_stage_are_told_under_it_and_not_counted_twice() -> None:
    seconds = {"import": 1.0, "fold.capture": 0.25, "fold.plan": 0.5, "fold": 1.5, "verify": 0.25}
    lines = [line.split() for line in printed(render_seconds(document(seconds=seconds))).splitlines()[2:]]
    assert lines == [
        ["import", "1.00"],
        ["fold", "1.50"],
        ["capture", "0.25"],
        ["plan", "0.50"],
        ["verify", "0.25"],
        ["total", "2.75"],
    ]


def test_hostile_names_reach_the_terminal_as_text() -> None:
    told = nasty()
    parts = [
        *render_decisions(told, every=True),
        *render_comparisons(told),
        render_outcome(told),
        *render_outputs(told),
    ]
    text = printed(parts)
    assert "\x1b" not in text
    assert "\r" not in text
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    assert "##[" not in text
    assert "\\x1b[31m" in text.replace("\n", "")


def test_an_explanation_holds_the_equation_the_roundings_training_mode_and_the_ways() -> None:
    text = printed(render_explanation(explain(seed_network().bn1, "bn1"), (decision(),)))
    assert "bn1: BatchNorm2d, 32 channels, eps 1e-05" in text
    assert "bn1 folded into conv1 through pool." in text
    assert "y     = fma(x, alpha, beta)" in text
    assert "biased_variance(batch)" in text
    assert "0.9 of the old value plus 0.1 of the batch's" in text
    assert line_with(text, "w * (x - m)")[-4:] == ["as", "people", "write", "it"]
    assert line_with(text, "fma(x, alpha, beta)")[3:7] == ["0", "0", "0", "0.0%"]


def test_a_layer_that_is_never_called_says_so() -> None:
    assert "never calls it" in printed(render_explanation(explain(seed_network().bn1, "bn1"), ()))
