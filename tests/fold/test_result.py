"""What the folded module is: shares memory, leaves the model alone, pickles, folds again to itself."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.fold.support import assert_same_function, double, error_of_peak, folds, run, values
from tests.networks import NETWORKS, seed_network

IMAGES = (2, 3, 8, 8)


def mixed() -> nn.Module:
    """A conv that takes an affine, one that takes none, and a BatchNorm that becomes explicit."""
    return double(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(4),
        )
    )


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a model holds: tensors by bytes and by identity, attributes as they print."""
    held: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if key not in ("_parameters", "_buffers", "_modules"):
                held[f"{name}:{key}"] = (id(value), repr(value))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        numbers = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        held[name] = (id(tensor), tensor.dtype, tensor.stride(), tensor.requires_grad, tensor._version, numbers)
    return held


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_untouched_whatever_is_done_to_its_fold(name: str) -> None:
    model, inputs = NETWORKS[name]()
    before = snapshot(model)
    folding = bnfold.fold(model, inputs)
    folding.in_float64()
    assert snapshot(model) == before
    folding.module(*inputs)
    folding.module.requires_grad_(False)
    folding.module.half()
    folding.module.to(torch.float64)
    folding.module.to(memory_format=torch.channels_last) if name not in ("conv1d", "conv3d", "perceptron") else None
    folding.module.train()
    assert snapshot(model) == before


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_suite_fold_to_the_same_function(name: str) -> None:
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    assert_same_function(model, folding, *inputs, tolerance=1e-4)
    if not any(d.action == "keep" for d in folding.plan):
        assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in folding.module.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_twice_changes_nothing(name: str) -> None:
    model, inputs = NETWORKS[name]()
    once = bnfold.fold(model, inputs)
    twice = bnfold.fold(once.module, inputs)
    assert [d for d in twice.plan if d.action != "keep"] == []
    first, second = once.module.state_dict(), twice.module.state_dict()
    assert list(first) == list(second)
    for key in first:
        assert torch.equal(first[key], second[key])
    for right, other in zip(tensors(once.module(*inputs)), tensors(twice.module(*inputs)), strict=True):
        assert torch.equal(right, other)


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.values())


def test_weights_that_no_fold_touches_share_their_memory_and_the_others_do_not() -> None:
    model = mixed()
    module = bnfold.fold(model).module
    assert module.get_parameter("3.weight").data_ptr() == model.get_parameter("3.weight").data_ptr()
    assert module.get_parameter("3.weight") is not model.get_parameter("3.weight")
    assert module.get_parameter("0.weight").data_ptr() != model.get_parameter("0.weight").data_ptr()


def test_names_stay_and_those_of_folded_batchnorms_go() -> None:
    module = bnfold.fold(mixed()).module
    expected = ["0.weight", "0.bias", "3.weight", "3.bias", "5.weight", "5.bias"]
    assert sorted(module.state_dict()) == sorted(expected)


def test_a_convolution_without_bias_gets_one() -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    module = folds(net, values(*IMAGES)).module
    assert module.get_parameter("0.bias").shape == (4,)
    assert net[0].bias is None


@pytest.mark.parametrize("frozen", [True, False])
def test_requires_grad_is_kept(frozen: bool) -> None:
    model = mixed().requires_grad_(not frozen)
    module = bnfold.fold(model).module
    assert [p.requires_grad for p in module.parameters()] == [not frozen] * len(list(module.parameters()))


def test_requires_grad_is_kept_per_parameter() -> None:
    model = mixed()
    model[0].weight.requires_grad_(False)
    module = bnfold.fold(model).module
    assert not module.get_parameter("0.weight").requires_grad
    assert module.get_parameter("0.bias").requires_grad
    assert module.get_parameter("0.weight").is_leaf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))).to(dtype)
    module = bnfold.fold(net).module
    assert {p.dtype for p in module.parameters()} == {dtype}
    x = values(*IMAGES).to(dtype)
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 6e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert error_of_peak(run(net, x), run(module, x)) < tolerance


def test_float32_statistics_beside_half_precision_weights() -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    net[0].half()
    net[1].float()
    module = bnfold.fold(net).module
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    x = values(*IMAGES).half()
    assert error_of_peak(run(net, x), run(module, x)) < 5e-3


def test_the_memory_format_of_weights_is_kept() -> None:
    model = mixed().to(memory_format=torch.channels_last)
    weight = bnfold.fold(model).module.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    volumes = double(nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4))).to(memory_format=torch.channels_last_3d)
    weight = bnfold.fold(volumes).module.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_device_is_kept() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()).eval()
    assert {p.device.type for p in bnfold.fold(net).module.parameters()} == {"meta"}


def test_the_result_is_in_eval_mode_in_every_part() -> None:
    assert not any(part.training for part in bnfold.fold(mixed()).module.modules())


# --- copies ------------------------------------------------------------------------------------------------------


class WithDefaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = self.bn(self.conv(x))
        return (y if mask is None else y * mask) * scale


def guarded() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))


COPIED = {
    "plain": (mixed, IMAGES),
    "guarded rank": (guarded, (2, 3, 9)),
    "guarded default": (WithDefaults, IMAGES),
}


def folded_copy(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = COPIED[name]
    return bnfold.fold(double(build())).module, values(*shape)


@pytest.mark.parametrize("name", COPIED)
def test_a_deepcopy_computes_the_same_on_its_own_memory(name: str) -> None:
    module, x = folded_copy(name)
    other = copy.deepcopy(module)
    assert torch.equal(run(module, x), run(other, x))
    expected = run(module, x)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert torch.equal(run(module, x), expected)


def test_nothing_stands_between_a_call_and_forward() -> None:
    folding = bnfold.fold(double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
    again = copy.deepcopy(folding.module)
    again.recompile()
    for module in (folding.module, again):
        assert type(module).__call__ is nn.Module.__call__


@pytest.mark.parametrize("name", COPIED)
def test_a_pickled_fold_computes_the_same(name: str) -> None:
    module, x = folded_copy(name)
    assert torch.equal(run(module, x), run(pickle.loads(pickle.dumps(module)), x))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert torch.equal(run(module, x), run(torch.load(buffer, weights_only=False), x))


@pytest.mark.parametrize("name", COPIED)
def test_a_fold_without_example_inputs_folds_again(name: str) -> None:
    module, x = folded_copy(name)
    again = bnfold.fold(module)
    assert len(again.plan) == 0 or {d.action for d in again.plan} == {"affine"}
    assert torch.equal(run(module, x), run(again.module, x))


@pytest.mark.parametrize("name", COPIED)
def test_torch_export_takes_the_folded_module(name: str) -> None:
    module, x = folded_copy(name)
    program = torch.export.export(module, (x,), strict=False)
    assert torch.equal(run(module, x), program.module()(x))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes) or name == "plain"


def test_a_state_dict_round_trips_between_two_folds_of_one_architecture() -> None:
    first, second = bnfold.fold(mixed()).module, bnfold.fold(mixed()).module
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1.5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(first, values(*IMAGES)), run(second, values(*IMAGES)))


# --- how it is called --------------------------------------------------------------------------------------------


def test_keyword_arguments_and_defaults_work_as_in_the_original() -> None:
    net = double(WithDefaults())
    module = bnfold.fold(net).module
    x = values(*IMAGES)
    assert error_of_peak(run(net, x), run(module, x)) < 1e-12
    with torch.no_grad():
        assert torch.equal(module(x=x), module(x))
        assert torch.equal(module(x, None, scale=1.0), module(x))


@pytest.mark.parametrize("given", [{"mask": torch.ones(())}, {"scale": 2.0}])
def test_an_argument_that_was_captured_at_its_default_refuses_another_value(given: dict[str, Any]) -> None:
    module = bnfold.fold(double(WithDefaults())).module
    (name,) = given
    with pytest.raises(ValueError, match=rf"argument '{name}' was captured as"):
        module(values(*IMAGES), **given)


def test_an_optional_argument_given_as_example_stays_an_input() -> None:
    net = double(WithDefaults())
    x, mask = values(*IMAGES), values(2, 4, 6, 6)
    folding = folds(net, x, mask)
    assert error_of_peak(run(net, x, mask * 2), run(folding.module, x, mask * 2)) < 1e-12


def test_several_inputs_and_a_dict_of_outputs_are_kept() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, image: Tensor, scale: Tensor) -> dict[str, Any]:
            return {"y": self.bn(self.conv(image)) * scale, "none": None, "pair": (scale, [image])}

    folds(double(Both()), values(*IMAGES), values(1))


def test_the_guard_of_a_rank_speaks_for_the_layer() -> None:
    module = bnfold.fold(double(guarded())).module
    with pytest.raises(ValueError, match=r"expected 3D input to 0 \(got 2D input\)"):
        module(values(3, 9))


def test_in_float64_gives_the_original_and_its_fold_for_a_float32_model() -> None:
    model = mixed().float()
    original, folded = bnfold.fold(model).in_float64()
    assert {p.dtype for p in (*original.parameters(), *folded.parameters())} == {torch.float64}
    x = values(*IMAGES)
    reference = run(copy.deepcopy(model).double(), x)
    assert error_of_peak(reference, run(original, x)) == 0.0
    assert error_of_peak(reference, run(folded, x)) < 1e-12


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_in_float64_of_an_old_weight_norm_that_has_run() -> None:
    net = double(nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    net(values(*IMAGES))  # with gradients: the computed weight is no leaf
    original, folded = bnfold.fold(net).in_float64()
    assert error_of_peak(run(original, values(*IMAGES)), run(folded, values(*IMAGES))) < 1e-10


def test_a_folding_says_how_long_each_step_took() -> None:
    folding = bnfold.fold(seed_network())
    assert list(folding.seconds) == ["capture", "check", "plan", "rewrite"]
    assert all(seconds > 0 for seconds in folding.seconds.values())
