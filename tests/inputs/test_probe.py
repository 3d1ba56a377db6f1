"""A probe runs shapes without values, and tells where a run stopped."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from bnfold.inputs.probe import Guess, Hint, Need, Probe, Trial, kept_batch, required_inputs
from tests.networks import seed_network


def test_a_run_gives_the_shapes_of_the_outputs() -> None:
    assert Probe(seed_network()).run((Guess(1, 2),), 3, 28).outputs == [(3, 10)]


def test_a_run_tells_what_the_first_layer_wants() -> None:
    trial = Probe(seed_network()).run((Guess(3, 2),), 2, 28)
    assert trial.outputs is None
    assert trial.unmet == Need(0, "conv", have=3, want=1, space=2)


def test_a_run_tells_where_a_sample_must_hold_how_many_numbers() -> None:
    trial = Probe(seed_network()).run((Guess(1, 2),), 2, 56)
    assert trial.outputs == [(8, 10)]
    assert trial.hints[0] == Hint(have=32 * 28 * 28, want=32 * 14 * 14)


def test_a_probe_takes_no_memory_for_parameters() -> None:
    with torch.device("meta"):
        large = nn.Linear(1_000_000, 1_000_000)  # 4 terabytes
    assert Probe(large).run((Guess(1_000_000, 0),), 2, 1).outputs == [(2, 1_000_000)]


def test_failing_runs_log_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        trial = Probe(nn.Sequential(nn.Flatten(), nn.Linear(5, 5)).eval()).run((Guess(3, 2),), 2, 4)
    assert trial.outputs is None
    assert trial.error
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("runs", "kept"),
    [
        ([[(2, 5)], [(3, 5)]], True),
        ([[(2, 5), (7,)], [(3, 5), (7,)]], True),
        ([[(128, 5)], [(192, 5)]], False),
        ([[(2, 5)], [(2, 5)]], False),
        ([[(7,)], [(7,)]], False),
        ([[()], [()]], False),
        ([[(2, 5)], None], False),
        ([[(2, 5)], [(3, 5), (3, 5)]], False),
        ([[(2, 4)], [(3, 6)]], False),
        ([[], []], False),
    ],
)
def test_the_batch_is_kept_where_each_output_has_it_in_front_or_does_not_depend_on_it(
    runs: list[list[tuple[int, ...]] | None], kept: bool
) -> None:
    assert kept_batch(zip((2, 3), (Trial(outputs=run) for run in runs), strict=True)) is kept


def test_arguments_with_a_default_need_not_be_given() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            return x

    class AllOptional(nn.Module):
        def forward(self, x: Tensor | None = None) -> Tensor | None:
            return x

    class Many(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0]

    assert required_inputs(Model()) == ["x"]
    assert required_inputs(AllOptional()) == ["x"]
    assert required_inputs(Many()) == ["inputs"]
