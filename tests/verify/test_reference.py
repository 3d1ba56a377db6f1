"""The oracle is float64 throughout, whatever the model's own code asks for; and nothing of the caller's is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import UsageError
from bnfold.graph.requires import require_dtype
from bnfold.graph.torch_versions import exact_settings
from bnfold.verify.reference import (
    copied,
    copied_in_float64,
    everything_in_float64,
    exact_arithmetic,
    fresh,
    in_float64,
)
from tests.networks import built, normal


class Casts(nn.Module):
    """Asks for lower precisions in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.constant = torch.full((4,), 0.1)  # a plain attribute, no buffer
        self.register_buffer("buffer", torch.full((4,), 0.3, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).float() * self.constant + self.buffer
        x = x.half().to(torch.float32) + torch.zeros(4, dtype=torch.float32) + torch.ones(4)
        x = x.type(torch.float32) + x.to(dtype=torch.bfloat16).type_as(x)
        x = torch.softmax(x, 1, dtype=torch.float32) + x.sum(1, keepdim=True, dtype=torch.float32)
        x = x * torch.tensor([1 / 3]) + torch.linspace(0, 1, 4, dtype=torch.float16)
        x = x + torch.arange(4, dtype=torch.float32).div(7) + x.new_full((4,), 0.7, dtype=torch.float16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x)


def by_hand(model: Casts, x: Tensor) -> Tensor:
    """The same in float64, without a cast."""
    weight, bias = model.linear.weight.double(), model.linear.bias.double()
    buffer, tenth = model.buffer.double(), model.constant.double()
    x = (x.double() @ weight.T + bias) * tenth + buffer
    x = x + 1
    x = x + x
    x = torch.softmax(x, 1) + x.sum(1, keepdim=True)
    x = x * (1 / 3) + torch.linspace(0, 1, 4, dtype=torch.float64)
    x = x + torch.arange(4, dtype=torch.float64) / 7 + 0.7
    return x @ weight.T + bias


def test_hard_coded_lower_precisions_do_not_degrade_the_oracle():
    torch.manual_seed(0)
    model, x = Casts().eval(), normal(3, 4)
    exact = copied_in_float64(model)
    with torch.no_grad(), everything_in_float64():
        y = exact(in_float64(x))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, by_hand(model, x), rtol=1e-14, atol=0)


class Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x / 3).float().to(x.dtype) * 3


def test_converting_the_weights_alone_would_leave_them():
    x = normal(3, 4).double()
    degraded = copied_in_float64(Rounds())(x)
    with everything_in_float64():
        exact = copied_in_float64(Rounds())(x)
    assert (degraded - x).abs().max() > 1e-9
    assert (exact - x).abs().max() < 1e-15


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=torch.float32)
        out.copy_(x).mul_(1 / 3).add_(x.float(), alpha=0.1)
        return torch.cumsum(out, 1, dtype=torch.float32)


def test_what_a_model_writes_in_place_is_float64():
    x = normal(3, 4)
    with everything_in_float64():
        y = InPlace()(x.double())
    torch.testing.assert_close(y, (x.double() / 3 + x.double() * 0.1).cumsum(1), rtol=1e-15, atol=1e-16)


class Seeded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return x + torch.randn(x.shape, dtype=torch.float32) + torch.rand_like(x, dtype=torch.float32)


def test_random_numbers_are_those_of_the_model_s_own_precision():
    x = normal(3, 4)
    own = Seeded()(x)
    with everything_in_float64():
        exact = Seeded()(x.double())
    assert (own.double() - exact).abs().max() < 1e-6


def test_complex_numbers_are_widened():
    x = torch.complex(normal(3), normal(3, seed=8))
    with everything_in_float64():
        y = torch.view_as_real(in_float64(x) * torch.tensor(1j, dtype=torch.complex64))
    assert y.dtype == torch.float64


def test_the_default_dtype_is_restored_even_after_an_error():
    def fails() -> None:
        with everything_in_float64():
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert torch.get_default_dtype() == torch.float32
    assert (torch.ones(2) / 3).dtype == torch.float32


def test_a_copy_shares_no_tensor_and_keeps_what_is_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    for copier, dtype in ((copied, torch.float32), (copied_in_float64, torch.float64)):
        other = copier(model)
        assert other[2].weight is other[0].weight
        assert other[0].weight.dtype == dtype
        assert other[1].running_mean.dtype == dtype
        assert other[1].num_batches_tracked.dtype == torch.int64
        storages = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        assert not storages & {t.untyped_storage().data_ptr() for t in (*other.parameters(), *other.buffers())}


def test_tensors_that_deepcopy_refuses_are_copied():
    model = nn.Linear(3, 3)
    with pytest.warns(FutureWarning):
        model = torch.nn.utils.weight_norm(model)
    model(normal(2, 3))
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    x = normal(2, 3)
    torch.testing.assert_close(copied(model)(x), model(x), rtol=0, atol=0)


def test_what_cannot_be_copied_is_said():
    model = nn.Linear(3, 3)
    model.generator = (i for i in range(3))
    with pytest.raises(UsageError, match=r"Linear cannot be copied"):
        copied(model)


def test_inputs_are_fresh_for_each_run():
    x = normal(2, 3)
    (again, number) = fresh((x, 5))
    again.zero_()
    assert x.abs().sum() > 0
    assert number == 5


def test_exact_arithmetic_restores_what_it_found():
    owner, name, exact = exact_settings()[0]
    before = getattr(owner, name)
    other = "medium" if exact == "highest" else "bf16"
    setattr(owner, name, other)
    try:
        state = torch.get_rng_state()
        with exact_arithmetic():
            assert getattr(owner, name) == exact
            assert not torch.is_grad_enabled()
            torch.rand(3)
        assert getattr(owner, name) == other
        assert torch.is_grad_enabled()
        assert torch.equal(state, torch.get_rng_state())
    finally:
        setattr(owner, name, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tf32_is_off_while_verifying_and_restored():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        with exact_arithmetic():
            assert not matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_the_oracle_of_a_batchnorm_net_is_exact():
    model, x = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), normal(2, 3, 8, 8)
    with torch.no_grad(), everything_in_float64():
        y = copied_in_float64(model)(x.double())
    torch.testing.assert_close(y, model.double()(x.double()), rtol=1e-14, atol=1e-15)


class AsksForItsType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return self.bn(self.conv(wide.to(self.conv.weight.dtype))).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folded_model_that_checks_for_a_type_runs_in_float64(dtype):
    model = AsksForItsType().eval()
    x = normal(2, 3, 8, 8).to(dtype)
    folding = bnfold.fold(model, x)
    checks = [node for node in folding.module.graph.nodes if node.target is require_dtype]
    assert checks
    report = bnfold.verify(model, folding.module, x, onnx=False)
    assert report.passed, str(report)
    with pytest.raises(bnfold.BnfoldError, match="captured where the dtype of `x`"):  # the model itself still checks
        folding.module(x.double())
