"""Exports of folded models that hold checks and compute sizes: the batch is dynamic, unless a check decides on it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bnfold
from bnfold.export import export_program, onnx_of
from bnfold.graph.requires import require_answer, require_dtype, require_number, require_rank, require_structure
from tests.networks import normal

SIZE = (3, 20, 24)


class Net(nn.Module):
    """A convolution and a BatchNorm, called by code that asks for sizes."""

    def __init__(self, code: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for values in (self.bn.running_mean, self.bn.weight, self.bn.bias):
                assert values is not None
                values.copy_(torch.randn(6, generator=generator))
        self.code = code

    def body(self, x: Tensor) -> Any:
        return self.bn(self.conv(x))

    def forward(self, x: Any) -> Any:
        return self.code(self, x)


def padding_of_the_size(s: Net, x: Tensor) -> Any:
    """As tf_efficientnet pads: as much as the stride leaves over."""
    needs = [max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
    if any(need > 0 for need in needs):
        x = F.pad(x, [needs[1] // 2, needs[1] - needs[1] // 2, needs[0] // 2, needs[0] - needs[0] // 2])
    return s.body(x)


def least_height(s: Net, x: Tensor) -> Any:
    if x.shape[2] < 16:
        raise ValueError("too small")
    return s.body(x)


def positions(s: Net, x: Tensor) -> Any:
    y = s.body(x)
    count, _, height, width = y.shape
    where = torch.arange(height * width, device=x.device, dtype=y.dtype).reshape(1, 1, height, width)
    which = torch.arange(count, device=x.device, dtype=y.dtype)
    return (y + where / (height * width) + which[:, None, None, None]).flatten(2)


def slices_of_zeros(s: Net, x: Tensor) -> Any:
    y = s.body(x)
    out = torch.zeros(y.shape[0], 12, *y.shape[2:], device=y.device, dtype=y.dtype)
    out[:, :6] = y
    out[:, 6:] = y * 2
    return out


def type_and_layout(s: Net, x: Tensor) -> Any:
    x = x.float() if x.dtype == torch.float16 else x
    return s.body(x if x.is_contiguous() else x.contiguous()).to(x.dtype)


def windows(s: Net, x: Tensor) -> Any:
    y = s.body(x)
    count, channels, height, width = y.shape
    y = F.pad(y, (0, -width % 4, 0, -height % 4))
    rows, columns = y.shape[2] // 4, y.shape[3] // 4
    y = y.view(count, channels, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)
    y = y.softmax(1).view(count, rows, columns, 4, 4, channels).permute(0, 5, 1, 3, 2, 4)
    return y.reshape(count, channels, 4 * rows, 4 * columns)[:, :, :height, :width]


def parts_of_a_list(s: Net, parts: list[Tensor]) -> Any:
    return {"all": [s.body(part) for part in parts], "height": parts[0].shape[2]}


CODES = (
    padding_of_the_size,
    least_height,
    positions,
    slices_of_zeros,
    type_and_layout,
    windows,
    parts_of_a_list,
)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def run_onnx(model: onnx.ModelProto, inputs: Any) -> list[Tensor]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, tensors(inputs), strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def close(ones: list[Tensor], others: list[Tensor]) -> None:
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("code", CODES)
@torch.no_grad()
def test_what_holds_checks_is_exported_with_the_batch_dynamic(code: Callable[[Any, Any], Any]) -> None:
    model = Net(code).eval()
    nested = code is parts_of_a_list

    def inputs(batch: int) -> tuple[Any, ...]:
        x = normal(batch, *SIZE)
        return ([x, x + 1],) if nested else (x,)

    folding = bnfold.fold(model, inputs(2))
    assert folding.plan.capture == "recorded"
    assert folding.plan.summary["keep"] == 0
    exported = export_program(folding.module, inputs(2))
    assert bool(exported.dynamic) is not nested
    file = io.BytesIO()
    torch.export.save(exported.program, file)
    file.seek(0)
    program = torch.export.load(file).module()
    made = onnx_of(exported.program, inputs(2))
    assert made.dynamic_batch is not nested
    for batch in (2,) if nested else (1, 2, 5):
        wanted = tensors(model(*inputs(batch)))
        close(tensors(program(*inputs(batch))), wanted)
        close(run_onnx(made.model, inputs(batch)), wanted)


def test_the_networks_above_hold_every_kind_of_check() -> None:
    found = set()
    for code in CODES:
        x = normal(2, *SIZE)
        graph: Any = bnfold.fold(Net(code).eval(), ([x, x],) if code is parts_of_a_list else x).module.graph
        found |= {node.target for node in graph.nodes}
    assert found >= {require_number, require_answer, require_dtype, require_rank, require_structure}


def of_two_and_more(s: Net, x: Tensor) -> Any:
    return s.body(x) if x.shape[0] > 1 else s.body(x) * 2


def below_ten(s: Net, x: Tensor) -> Any:
    return s.body(x) if x.shape[0] < 10 else s.body(x) * 2


def without_ones(s: Net, x: Tensor) -> Any:
    """At a batch of one, its mean loses the batch too; torch.export takes for granted that none comes."""
    y = s.body(x).mean((2, 3))
    return y[0] if y.shape[0] == 1 else y


@pytest.mark.parametrize("code", [of_two_and_more, below_ten, without_ones])
def test_no_export_takes_a_batch_that_the_folded_model_refuses(code: Callable[[Any, Any], Any]) -> None:
    folding = bnfold.fold(Net(code).eval(), normal(2, *SIZE))
    exported = export_program(folding.module, normal(2, *SIZE))
    assert exported.dynamic == ()
    assert exported.fixed is not None
    assert exported.fixed.size == 2
    assert "test_checks.py:" in exported.fixed.why
    made = onnx_of(folding.module, normal(2, *SIZE))
    assert made.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert made.notes == exported.notes == (f"The export runs at batch size 2 only: {exported.fixed.why}.",)
