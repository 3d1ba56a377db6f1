"""``bench``: what is run, on what, and what is refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.bench import targets
from bnfold.bench.api import bench
from bnfold.bench.targets import NotReadyError, make_target
from bnfold.errors import TrainingModeError, UsageError
from bnfold.witness import registry
from tests.networks import seed_network

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")  # each measurement collects garbage before


class Watched(nn.Module):
    """Notes the inputs of each call and the threads that torch has."""

    def __init__(self, seen: list[Any], name: str, rank: int = 2) -> None:
        super().__init__()
        self.seen, self.name, self.rank = seen, name, rank

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == self.rank
        dense = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((self.name, x.shape[0], torch.get_num_threads(), torch.is_grad_enabled(), dense))
        return x * 2


def pair(rank: int = 2) -> tuple[list[Any], Watched, Watched]:
    seen: list[Any] = []
    return seen, Watched(seen, "original", rank).eval(), Watched(seen, "folded", rank).eval()


def test_both_run_at_each_batch_size_with_the_threads_asked_for_and_without_gradients() -> None:
    seen, original, folded = pair()
    before = torch.get_num_threads()
    found = bench(original, folded, torch.ones(2, 3), targets=["eager"], batches=[1, 5], threads=2, seconds=0)
    assert torch.get_num_threads() == before
    assert {call[0] for call in seen} == {"original", "folded"}
    assert {call[1] for call in seen} == {2, 1, 5}  # 2: that both give the same is looked at on the example
    assert {call[2:4] for call in seen} == {(2, False)}
    assert [(timing.target, timing.batch) for timing in found.timings] == [("eager", 1), ("eager", 5)]
    assert found.threads == 2
    assert found.difference == 0.0
    assert all(timing.original.runs == timing.folded.runs >= 15 for timing in found.timings)


def test_channels_last_gets_images_in_that_format_and_leaves_the_model_alone() -> None:
    original = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    seen, watched, _ = pair(4)
    bench(watched, watched, torch.ones(2, 3, 4, 4), targets=["channels-last"], seconds=0)
    assert not seen[0][4]
    copied = make_target("channels-last", original, torch.ones(2, 3, 4, 4), 1)
    assert copied.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert original[0].weight.is_contiguous()


def test_channels_last_of_what_is_no_image_is_left_out_with_a_sentence() -> None:
    _, original, folded = pair()
    found = bench(original, folded, torch.ones(2, 3), targets=["channels-last", "eager"], seconds=0)
    assert [timing.target for timing in found.timings] == ["eager"]
    assert [(skip.target, skip.batch) for skip in found.skipped] == [("channels-last", None)]
    assert found.skipped[0].reason == "channels_last is a format of images, and no input has 4 dimensions."


def test_the_seed_network_is_measured_under_onnx_runtime_in_a_session_for_each_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bnfold.verify import runtime

    made: list[Any] = []
    real = runtime.OrtModel.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(kwargs["threads"])
        real(self, *args, **kwargs)

    monkeypatch.setattr(runtime.OrtModel, "__init__", counted)
    model = seed_network()
    x = torch.randn(1, 1, 28, 28)
    folded = bnfold.fold(model, x).module
    found = bench(model, folded, x, targets=["onnxruntime"], batches=[3], threads=1, seconds=0)
    assert [(timing.target, timing.batch) for timing in found.timings] == [("onnxruntime", 3)]
    assert found.skipped == ()
    assert made == [1] * 2 * 3  # models, trials
    assert found.difference is not None
    assert 0 < found.difference < 1e-5


def test_a_batch_that_the_model_does_not_take_is_left_out_and_the_others_are_measured() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3)

    found = bench(Fixed().eval(), Fixed().eval(), torch.ones(2, 3), targets=["eager"], batches=[2, 4], seconds=0)
    assert [timing.batch for timing in found.timings] == [2]
    (skip,) = found.skipped
    assert skip.batch == 4
    assert skip.reason.startswith("the model does not run at batch 4: shape '[2, 3]' is invalid")


def test_inputs_without_a_batch_are_measured_as_they_are() -> None:
    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    found = bench(Scalar().eval(), Scalar().eval(), torch.tensor(1.0), targets=["eager"], batches=[1, 8], seconds=0)
    assert [timing.batch for timing in found.timings] == [None]


def test_a_compiler_that_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("No C++ compiler was found\nlong story")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    _, original, folded = pair()
    found = bench(original, folded, torch.ones(2, 3), targets=["compile", "eager"], seconds=0)
    assert [timing.target for timing in found.timings] == ["eager"]
    assert found.skipped[0].reason == "the model does not run at batch 1: No C++ compiler was found."


def test_torch_compile_is_given_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: given.append(module) or module)
    _, original, folded = pair()
    found = bench(original, folded, torch.ones(2, 3), targets=["compile"], seconds=0)
    assert given == [original, folded]
    assert [timing.target for timing in found.timings] == ["compile"]


def test_without_onnx_runtime_that_target_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else real(name, *a))
    _, original, folded = pair()
    found = bench(original, folded, torch.ones(2, 3), targets=["onnxruntime"], seconds=0)
    assert found.timings == ()
    assert "onnxruntime, which is not installed" in found.skipped[0].reason


def test_another_function_shows_in_the_difference() -> None:
    _, original, _ = pair()
    found = bench(original, nn.Identity().eval(), torch.ones(2, 3), targets=["eager"], seconds=0)
    assert found.difference == 0.5


def test_progress_only_grows_and_names_what_is_done() -> None:
    told: list[tuple[str, float]] = []
    _, original, folded = pair()
    bench(
        original,
        folded,
        torch.ones(2, 3),
        targets=["eager", "channels-last"],
        batches=[1, 2],
        seconds=0,
        progress=lambda what, done: told.append((what, done)),
    )
    parts = [done for _, done in told]
    assert parts == sorted(parts)
    assert 0 <= parts[0] <= parts[-1] <= 1
    assert {"preparing torch eager", "measuring torch eager"} <= {what for what, _ in told}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"targets": []}, "nothing to measure"),
        ({"targets": ["gpu"]}, "no target called 'gpu'"),
        ({"batches": []}, "nothing to measure"),
        ({"batches": [0]}, "batch size of 0"),
        ({"threads": 0}, "0 threads"),
        ({"seconds": -1.0}, "cannot take -1.0 seconds"),
        ({"seconds": float("nan")}, "cannot take nan seconds"),
        ({"clock": "sun"}, "no clock called 'sun'"),
    ],
)
def test_an_invalid_request_is_refused_before_anything_runs(wrong: dict[str, Any], said: str) -> None:
    seen, original, folded = pair()
    with pytest.raises(UsageError, match=said):
        bench(original, folded, torch.ones(2, 3), **wrong)
    assert seen == []


def test_inputs_that_the_model_does_not_take_are_refused() -> None:
    _, original, folded = pair()
    with pytest.raises(UsageError, match="does not run on these inputs"):
        bench(original, folded, torch.ones(2, 3, 4), seconds=0)


def test_a_model_in_training_mode_is_refused() -> None:
    _, original, folded = pair()
    folded.add_module("drop", torch.nn.Dropout())
    with pytest.raises(TrainingModeError, match=r"folded model .* \(drop: drops values at random\)"):
        bench(original, folded, torch.ones(2, 3), seconds=0)


def test_every_target_of_the_command_line_exists() -> None:
    from bnfold.cli.commands import bench as command

    (choice,) = [parameter.type for parameter in command.params if parameter.name == "targets"]
    assert list(choice.choices) == [*targets.TARGETS, *registry.known()]


def test_a_reason_is_one_short_line() -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("\n\n" + "x" * 1000 + "\nmore")

    with pytest.raises(NotReadyError) as caught:
        make_target("eager", Long().eval(), torch.ones(2, 3), 1).run(1)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.long  # four processes that import torch
def test_a_witness_is_timed_too_and_one_that_crashes_is_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    names = ["tests.witness.fakes:right", "tests.witness.fakes:crashes"]
    found = bench(model, model, torch.ones(2, 3, 4, 4), targets=names, threads=1, seconds=0)
    assert [timing.target for timing in found.timings] == names[:1]
    (skip,) = found.skipped
    assert (skip.target, skip.batch) == (names[1], 1)
    assert "ended with SIGSEGV" in skip.reason
