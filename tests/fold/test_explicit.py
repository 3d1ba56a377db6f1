"""The explicit affine: the BatchNorm's bits in torch, and no BatchNormalization in ONNX."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bnfold
from bnfold.affine import exact_terms
from bnfold.fold.explicit import ExplicitAffine
from tests.fold.support import double, run, values

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def explicit_net(rank: int, channels: int = 5, *, affine: bool = True) -> nn.Module:
    """A BatchNorm that nothing can absorb."""
    return double(nn.Sequential(nn.Tanh(), NORMS[rank](channels, affine=affine), nn.Tanh()))


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    channels=st.integers(1, 40),
    affine=st.booleans(),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    own_statistics=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_batchnorm_to_the_last_bit(
    shape: list[int],
    channels: int,
    affine: bool,
    channels_last: bool,
    dtype: torch.dtype,
    own_statistics: bool,
    seed: int,
) -> None:
    rank = len(shape) + 1
    half = dtype in (torch.float16, torch.bfloat16)
    net = explicit_net(rank, channels, affine=affine).to(torch.float32 if half and not own_statistics else dtype)
    x = values(shape[0], channels, *shape[1:], seed=seed).to(dtype)
    if channels_last and rank == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    module = bnfold.fold(net, x).module
    expected, got = run(net, x), run(module, x)
    assert got.dtype == dtype
    assert same_bits(expected, got)
    assert expected.stride() == got.stride()
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def test_on_an_input_that_is_not_contiguous_torch_itself_rounds_otherwise_and_the_two_stay_close() -> None:
    # torch then runs another kernel, (x - mean) * (invstd * weight) + bias: the layer's own bits depend on the layout
    layer = explicit_net(4, 4).float()[1]
    module = bnfold.fold(nn.Sequential(nn.Identity(), layer).eval()).module
    x = values(2, 8, 60, 60).float()
    for part in (x[:, 2:6], x[:, ::2], x[:, :4].transpose(2, 3), x[:, :4, 1:]):
        expected = run(layer, part)
        assert not same_bits(expected, run(layer, part.contiguous()))
        assert float((expected - run(module, part)).abs().max()) <= 4 * 2**-24 * float(expected.abs().max())
    assert same_bits(run(layer, x[:, :4].contiguous()), run(module, x[:, :4].contiguous()))


def test_its_parameters_are_the_exact_terms_under_the_names_of_the_batchnorm() -> None:
    net = explicit_net(4).float()
    layer: Any = net[1]
    module = bnfold.fold(net).module
    explicit = module.get_submodule("1")
    assert isinstance(explicit, ExplicitAffine)
    terms = exact_terms(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    assert torch.equal(explicit.weight, terms[0])
    assert torch.equal(explicit.bias, terms[1])
    assert list(module.state_dict()) == ["1.weight", "1.bias"]


def test_several_batchnorms_in_a_row_compose_into_one() -> None:
    net = double(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), nn.Identity(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    folding = bnfold.fold(net)
    assert [d.action for d in folding.plan] == ["affine", "fold", "fold"]
    assert folding.plan[1].into == ("1",)
    assert len([layer for layer in folding.module.modules() if isinstance(layer, ExplicitAffine)]) == 1
    x = values(2, 3, 4, 4)
    assert torch.allclose(run(net, x), run(folding.module, x), rtol=1e-12, atol=1e-12)


def test_it_trains_like_the_affine_that_it_is() -> None:
    net = explicit_net(4, 3)
    module = bnfold.fold(net).module
    module(values(2, 3, 4, 4)).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert len(gradients) == 2
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def exported(module: nn.Module, *inputs: Tensor, dynamo: bool, optimize: bool = True) -> onnx.ModelProto:
    buffer = io.BytesIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if dynamo:
                program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, optimize=optimize)
                assert program is not None
                return program.model_proto
            folding: Any = {"do_constant_folding": optimize}
            torch.onnx.export(module, inputs, buffer, dynamo=False, **folding)
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_the_user_s_own_onnx_export_has_no_batch_normalization(rank: int, dynamo: bool) -> None:
    net = explicit_net(rank).float()
    x = values(*[2, 5, 4, 4, 4][:rank]).float()
    module = bnfold.fold(net, x).module
    ops = {node.op_type for node in exported(module, x, dynamo=dynamo, optimize=False).graph.node}
    assert "BatchNormalization" not in ops
    assert "Conv" in ops if rank > 2 else {"Mul", "Add"} <= ops
    control = {node.op_type for node in exported(net, x, dynamo=dynamo, optimize=False).graph.node}
    assert "BatchNormalization" in control


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("rank", [2, 4])
def test_the_onnx_form_computes_the_same_under_onnxruntime(rank: int, dynamo: bool) -> None:
    import onnxruntime

    net = explicit_net(rank).float()
    x = values(*[2, 5, 4, 4][:rank]).float()
    module = bnfold.fold(net, x).module
    model = exported(module, x, dynamo=dynamo)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(run(net, x), torch.from_numpy(got), rtol=1e-5, atol=1e-6)


def test_the_model_s_copy_in_float16_keeps_the_layer_in_step() -> None:
    module = bnfold.fold(explicit_net(4).float()).module
    half = copy.deepcopy(module).half()
    x = values(2, 5, 4, 4)
    assert torch.allclose(run(half, x.half()).float(), run(module, x.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("infinite", [False, True])
def test_it_can_be_scripted(infinite: bool) -> None:
    net = explicit_net(4).float()
    if infinite:
        net[1].bias.data[2] = torch.inf
        x = torch.tensor([0.5, -1.0]).reshape(2, 1, 1, 1).expand(2, 5, 3, 4).contiguous()
    else:
        x = values(2, 5, 3, 4).float()
    module = bnfold.fold(net).module
    assert [type(part) for part in module.modules()].count(ExplicitAffine) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module)
    assert same_bits(scripted(x), module(x))
    assert same_bits(module(x), net(x))
