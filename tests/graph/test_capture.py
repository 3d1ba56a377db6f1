"""Capture: what counts as reading a value, where errors point, what is refused."""

from __future__ import annotations

import inspect
import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.capture.ways import as_inputs, capture
from bnfold.graph.facts import Facts
from tests.fold.support import ALGEBRA, Net, double, error_of_peak, folds, run, values

IMAGES = (2, 3, 8, 8)


def pair(forward: Any, **parts: Any) -> nn.Module:
    return double(Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), **parts))


# --- metadata ----------------------------------------------------------------------------------------------------


def ndim_asserted(bn: Any, y: Tensor) -> Tensor:
    torch._assert(y.ndim == 4, f"expected 4D input (got {y.ndim}D)")
    return bn(y)  # type: ignore[no-any-return]


METADATA: dict[str, Any] = {
    "shape": lambda bn, y: bn(y).reshape(y.shape[0], -1),
    "size": lambda bn, y: bn(y).reshape(y.size(0), -1),
    "whole size": lambda bn, y: bn(y).reshape(y.size()),
    "dtype": lambda bn, y: bn(y).to(y.dtype),
    "device": lambda bn, y: bn(y).to(y.device),
    "numel": lambda bn, y: bn(y) * y.numel(),
    "dim": lambda bn, y: bn(y) * y.dim(),
    "assert on ndim": ndim_asserted,
    "floating point": lambda bn, y: bn(y) * torch.is_floating_point(y),
}


def reading(function: Any) -> nn.Module:
    """A model that does ``function(bn, y)`` with the output ``y`` of a convolution."""
    return pair(lambda s, x: function(s.bn, s.conv(x)))


@pytest.mark.parametrize("name", METADATA)
def test_reading_metadata_is_not_reading_the_value(name: str) -> None:
    folding = folds(reading(METADATA[name]), values(*IMAGES))
    assert [d.action for d in folding.plan] == ["fold"]


ONLY_A_RUN_TELLS = {"whole size": "the shape", "dim": "the number of dimensions"}
ONLY_A_RUN_TELLS["assert on ndim"] = ONLY_A_RUN_TELLS["dim"]


@pytest.mark.parametrize("name", METADATA)
def test_without_a_run_metadata_is_computed_with_or_asked_for(name: str) -> None:
    model = reading(METADATA[name])
    if name in ONLY_A_RUN_TELLS:
        asks = rf"forward asks for {ONLY_A_RUN_TELLS[name]}, at .*test_capture\.py:\d+, which only an input tells"
        with pytest.raises(bnfold.NeedsInputsError, match=asks):
            bnfold.plan(model, capture="symbolic")
    else:
        assert [d.action for d in folds(model, values(*IMAGES), capture="symbolic").plan] == ["fold"]


@pytest.mark.parametrize("name", METADATA)
def test_the_convolution_s_only_reader_is_the_batchnorm(name: str) -> None:
    captured = capture(reading(METADATA[name]))
    assert captured.way == "recorded"
    facts = Facts(captured)
    (conv,) = [node for node in facts.index if node.op == "call_module" and node.target == "conv"]
    assert [reader.target for reader in facts.readers(conv)] == ["bn"]


def test_reading_a_number_of_the_value_is_reading_it() -> None:
    folding = folds(reading(lambda bn, y: bn(y) * y.sum()), values(*IMAGES))
    assert [(d.action, d.reason) for d in folding.plan] == [("affine", "several-readers")]


# --- errors ------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if y.sum() > 0:  # the line that the error names
            return y
        return -y


def line_of(kind: Any, text: str) -> int:
    source, start = inspect.getsourcelines(kind)
    return start + next(index for index, line in enumerate(source) if text in line)


@pytest.mark.parametrize("how", ["auto", "recorded", "symbolic"])
@pytest.mark.parametrize("inputs", [None, torch.zeros(IMAGES)], ids=["searched", "given"])
def test_a_capture_error_names_the_line_of_the_user_s_code(inputs: Tensor | None, how: str) -> None:
    line = line_of(Branching, "the line that the error names")
    asks = rf"^Branching\.forward asks for the truth of a value that .*, at .*test_capture\.py:{line}: no graph"
    with pytest.raises(bnfold.CaptureError, match=asks):
        capture(Branching().eval(), inputs, how=how)


def test_a_model_without_a_layer_of_batch_norm_is_not_said_to_have_none_where_it_calls_the_function() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(s.conv(x), s.mean, s.variance)
        return y if y.sum() > 0 else -y

    net = Net(forward, conv=nn.Conv2d(3, 4, 3), mean=torch.zeros(4), variance=torch.ones(4)).eval()
    with pytest.raises(bnfold.CaptureError, match="asks for the truth of a value that depends on its input"):
        bnfold.plan(net, torch.zeros(IMAGES))


@pytest.mark.parametrize("way", ["auto", "recorded", "symbolic"])
def test_a_hook_may_look_at_the_data_since_its_layer_is_called_as_a_whole(way: str) -> None:
    seen: list[float] = []
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    net[0].register_forward_hook(lambda _module, _args, output: seen.append(float(output.max())))
    folding = folds(net, values(*IMAGES), capture=way)
    assert folding.plan[1].action == "fold"
    seen.clear()
    run(folding.module, values(*IMAGES))
    assert len(seen) == 1


def test_a_decision_names_the_line_of_its_call() -> None:
    class Plain(Branching):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y)  # the line of the BatchNorm

    (decision,) = bnfold.plan(Plain().eval())
    assert decision.source is not None
    assert decision.source.endswith(f"test_capture.py:{line_of(Plain, 'the line of the BatchNorm')}")


def test_a_decision_inside_a_sequential_names_the_line_that_calls_the_sequential() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)  # through torch's own code

    (decision,) = bnfold.plan(Outer().eval())
    assert decision.source is not None
    assert decision.source.endswith(f":{line_of(Outer, 'through torch')}")


def test_training_mode_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net[1].train()
    with pytest.raises(bnfold.TrainingModeError, match=re.escape("(1: normalises by its batch)")) as caught:
        bnfold.fold(net)
    assert str(caught.value).endswith("Call .eval() on it first.")
    with pytest.raises(bnfold.TrainingModeError):
        bnfold.plan(net)


def test_of_many_modules_in_training_mode_five_are_named() -> None:
    with pytest.raises(bnfold.TrainingModeError, match=r"0, 1, 2, 3, 4: drops values at random; and 5 more\)\."):
        bnfold.plan(nn.Sequential(*[nn.Dropout() for _ in range(10)]))


def test_a_part_whose_mode_changes_nothing_does_not_stop_a_fold_and_comes_out_in_eval_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net.append(nn.Identity())
    net.training = True
    folding = bnfold.fold(net)
    assert [decision.action for decision in folding.plan] == ["fold"]
    assert not any(part.training for part in folding.module.modules())
    assert net.training
    assert net[2].training


def test_wrappers_are_refused_with_what_to_pass_instead() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(bnfold.CaptureError, match=r"wrapped by torch\.compile.*_orig_mod"):
        bnfold.plan(torch.compile(net, backend="eager"))
    with pytest.raises(bnfold.CaptureError, match=r"wrapped in DataParallel.*model\.module"):
        bnfold.plan(nn.DataParallel(net).eval())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*jit.*")
def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(bnfold.CaptureError, match="TorchScript"):
        bnfold.plan(traced)


def test_a_forward_replaced_on_the_model_is_refused() -> None:
    net = pair(lambda s, x: s.bn(s.conv(x)))
    original = net.forward
    net.forward = lambda x: original(x) * 2  # type: ignore[method-assign, assignment]
    with pytest.raises(bnfold.CaptureError, match=r"forward of this Net was replaced on the instance"):
        bnfold.fold(net)


class Chooses(nn.Module):
    """Picks one of its own methods as ``forward``, as timm's FasterNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.forward = self.forward_doubled  # type: ignore[method-assign]

    def forward_doubled(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * 2


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("way", ["recorded", "symbolic", "export"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_forward_that_is_another_method_of_the_class_is_captured(way: str, inside: bool) -> None:
    net = double(nn.Sequential(Chooses(), nn.Tanh()) if inside else Chooses())
    assert [d.action for d in folds(net, values(*IMAGES), capture=way).plan] == ["fold"]


def test_a_piece_whose_forward_is_another_method_of_its_class_is_folded() -> None:
    folding = folds(double(Around(Chooses())), values(*IMAGES), capture="piecewise")
    assert [d.action for d in folding.plan] == ["fold"]
    assert "forward" not in folding.module.inner.__dict__  # type: ignore[operator, union-attr]


def test_a_method_of_its_own_that_is_not_recorded_belongs_to_the_folded_model() -> None:
    inner = Chooses()
    inner.register_forward_hook(lambda *_: None)  # a leaf
    net = double(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), inner))
    folding = folds(net, values(*IMAGES))
    for parameter in folding.module.parameters():
        parameter.data.zero_()
    assert not run(folding.module, values(*IMAGES)).any()


@pytest.mark.parametrize("inputs", [values(*IMAGES), [values(*IMAGES), values(*IMAGES)]], ids=["tensor", "list"])
def test_a_branch_on_the_class_of_an_input_is_taken_as_the_example_takes_it(inputs: Any) -> None:
    net = pair(lambda s, x: s.bn(s.conv(x)) if isinstance(x, Tensor) else s.bn(s.conv(x[0] + x[1])))
    folding = bnfold.fold(net, (inputs,))
    assert [d.action for d in folding.plan] == ["fold"]
    assert error_of_peak(run(net, inputs), run(folding.module, inputs)) <= ALGEBRA


def test_what_is_no_module_and_ways_that_do_not_exist_are_usage_errors() -> None:
    with pytest.raises(bnfold.UsageError, match="this is a int"):
        bnfold.plan(3)  # type: ignore[arg-type]
    with pytest.raises(bnfold.UsageError, match="no capture called 'magic'"):
        bnfold.plan(nn.Sequential().eval(), capture="magic")


class TakesAny(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.net(inputs[0])


def test_more_inputs_than_forward_takes_are_a_usage_error() -> None:
    net = pair(lambda s, x: s.bn(s.conv(x)))
    with pytest.raises(bnfold.UsageError, match=r"2 example inputs are given, and .* takes 1"):
        bnfold.plan(net, (values(*IMAGES), torch.zeros(3)))
    assert bnfold.plan(TakesAny(net), (values(*IMAGES), torch.zeros(3))).summary["fold"] == 1


def test_channels_that_cannot_fit_are_named() -> None:
    net = pair(lambda s, x: s.bn(s.conv(x)))
    net.bn = nn.BatchNorm2d(5).eval()
    (decision,) = bnfold.plan(net)
    assert "gives 4 channels, and the affine is of 5" in decision.detail


@pytest.mark.parametrize("how", ["auto", "recorded", "symbolic"])
@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random], ids=["torch", "random"])
def test_a_number_drawn_in_forward_is_refused(draw: Any, how: str) -> None:
    with pytest.raises(bnfold.CaptureError, match="draws random numbers"):
        capture(pair(lambda s, x: s.bn(s.conv(x)) * draw()), values(*IMAGES), how=how)


def test_noise_drawn_like_a_value_stays_noise() -> None:
    net = pair(lambda s, x: s.bn(s.conv(x) + torch.randn_like(s.conv(x))))
    folding = bnfold.fold(net, values(*IMAGES))
    torch.manual_seed(0)
    expected = net(values(*IMAGES))
    torch.manual_seed(0)
    got = folding.module(values(*IMAGES))
    assert torch.allclose(expected, got, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(got, folding.module(values(*IMAGES)))


def test_example_inputs_are_a_tensor_or_a_tuple() -> None:
    x = torch.zeros(1)
    assert as_inputs(None) is None
    assert as_inputs(x) == (x,)
    assert as_inputs((x, 3)) == (x, 3)
    assert as_inputs([x]) == (x,)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("way", ["recorded", "symbolic", "export"])
def test_a_capture_moves_no_random_state_and_no_attribute(way: str, given: bool) -> None:
    net = pair(lambda s, x: _remember(s, s.bn(s.conv(x))))
    before = torch.random.get_rng_state()
    bnfold.fold(net, values(*IMAGES) if given else None, capture=way)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not hasattr(net, "last")


def _remember(s: Any, y: Tensor) -> Tensor:
    s.last = y
    return y


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a device that is there is seeded")
@pytest.mark.parametrize("way", ["auto", "export"])
def test_no_seed_is_kept_for_a_device_that_is_not_there(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds_all(seed: int) -> None:
        raise AssertionError("torch keeps it, and the stack, until the device is first used")

    monkeypatch.setattr(torch, "manual_seed", seeds_all)
    net = pair(lambda s, x: s.bn(s.conv(x)))
    assert bnfold.fold(net, values(*IMAGES), capture=way).plan.summary["fold"] == 1


def test_constants_made_in_forward_are_held_and_the_model_gets_no_attribute() -> None:
    net = pair(lambda s, x: s.bn(s.conv(x)) + torch.arange(4.0, dtype=torch.float64).view(1, 4, 1, 1))
    names = set(net.__dict__) | set(net._buffers)
    folds(net, values(*IMAGES))
    assert set(net.__dict__) | set(net._buffers) == names


def test_a_batchnorm_of_a_parameter_is_computed_once() -> None:
    net = double(Net(lambda s, x: s.bn(s.token) + x, token=nn.Parameter(values(2, 4)), bn=nn.BatchNorm1d(4)))
    folding = folds(net, values(2, 4))
    assert [(d.action, d.into) for d in folding.plan] == [("fold", ("token",))]
