"""One vocabulary: each spelling of an operation reads as the same call, and what it does not know stays unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold import ops as calls
from bnfold.capture.ways import capture
from bnfold.graph.facts import Facts
from tests.fold.support import Net

aten = torch.ops.aten
MEAN, VAR, WEIGHT = torch.zeros(4), torch.ones(4), torch.ones(4)


def read(function: Callable[[Any, Any], Any], *how: Any, **parts: Any) -> list[calls.Operation | None]:
    """Record ``function(self, x)`` and read each node that computes something; ``how`` are inputs and the way."""
    facts = Facts(capture(Net(function, **parts).eval(), *how))
    return [facts.call(node) for node in facts.index if node.op in ("call_module", "call_function", "call_method")]


def only(function: Callable[[Any, Any], Any], *how: Any, **parts: Any) -> Any:
    (call,) = read(function, *how, **parts)
    return call


def comparable(call: Any) -> dict[str, Any]:
    """A call's facts without the nodes and names that differ between spellings."""
    skip = (
        "node",
        "input",
        "output_size",
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "name",
        "rank",
        "left",
        "right",
        "parts",
    )
    found = {key: value for key, value in vars(call).items() if key not in skip}
    return {key: (value,) * 2 if key in _PAIRS and isinstance(value, int) else value for key, value in found.items()}


_PAIRS = ("stride", "padding", "dilation", "output_padding", "kernel_size")
CONV: dict[str, Any] = {"weight": nn.Parameter(torch.ones(4, 3, 3, 3)), "bias": nn.Parameter(torch.ones(4))}
TRANSPOSED: dict[str, Any] = {"weight": nn.Parameter(torch.ones(3, 4, 3, 3)), "bias": nn.Parameter(torch.ones(4))}
NORM: dict[str, Any] = {"mean": MEAN, "var": VAR, "weight": nn.Parameter(WEIGHT), "bias": nn.Parameter(MEAN.clone())}
SPELLINGS: dict[str, list[tuple[Callable[[Any, Any], Any], dict[str, Any]]]] = {
    "Convolution": [
        (lambda s, x: s.op(x), {"op": nn.Conv2d(3, 4, 3, stride=2, padding=1)}),
        (lambda s, x: F.conv2d(x, s.weight, s.bias, 2, 1), CONV),
        (lambda s, x: torch.conv2d(x, s.weight, bias=s.bias, stride=(2, 2), padding=(1, 1)), CONV),
        (lambda s, x: F.conv2d(weight=s.weight, input=x, bias=s.bias, padding=1, stride=2), CONV),
        (lambda s, x: aten.conv2d.default(x, s.weight, s.bias, [2, 2], [1, 1]), CONV),
        (
            lambda s, x: aten.convolution.default(x, s.weight, s.bias, [2, 2], [1, 1], [1, 1], False, [0, 0], groups=1),
            CONV,
        ),
    ],
    "TransposedConvolution": [
        (lambda s, x: s.op(x), {"op": nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1)}),
        (lambda s, x: F.conv_transpose2d(x, s.weight, s.bias, 2, 0, 1), TRANSPOSED),
        (lambda s, x: aten.conv_transpose2d.input(x, s.weight, s.bias, [2, 2], [0, 0], [1, 1]), TRANSPOSED),
        (
            lambda s, x: aten.convolution.default(x, s.weight, s.bias, [2, 2], [0, 0], [1, 1], True, [1, 1], 1),
            TRANSPOSED,
        ),
    ],
    "Linear": [
        (lambda s, x: s.op(x), {"op": nn.Linear(3, 4)}),
        (lambda s, x: F.linear(x, s.weight, s.bias), {"weight": nn.Parameter(torch.ones(4, 3)), "bias": CONV["bias"]}),
        (lambda s, x: aten.linear.default(x, s.weight), {"weight": nn.Parameter(torch.ones(4, 3))}),
    ],
    "BatchNorm": [
        (lambda s, x: s.op(x), {"op": nn.BatchNorm2d(4, eps=1e-3)}),
        (lambda s, x: s.op(input=x), {"op": nn.BatchNorm2d(4, eps=1e-3)}),
        (lambda s, x: s.op(x), {"op": nn.SyncBatchNorm(4, eps=1e-3)}),
        (lambda s, x: F.batch_norm(x, s.mean, s.var, s.weight, s.bias, False, 0.1, 1e-3), NORM),
        (lambda s, x: F.batch_norm(x, s.mean, s.var, eps=1e-3, weight=s.weight, bias=s.bias), NORM),
        (lambda s, x: torch.batch_norm(x, s.weight, s.bias, s.mean, s.var, False, 0.1, 1e-3, True), NORM),
        (lambda s, x: aten.batch_norm.default(x, s.weight, s.bias, s.mean, s.var, False, 0.1, 1e-3, True), NORM),
        (lambda s, x: F.instance_norm(x, s.mean, s.var, s.weight, s.bias, False, 0.1, 1e-3), NORM),
        (lambda s, x: s.op(x), {"op": nn.InstanceNorm2d(4, eps=1e-3, affine=True, track_running_stats=True)}),
    ],
    "AveragePool": [
        (lambda s, x: s.op(x), {"op": nn.AvgPool2d(3, 2, 1, count_include_pad=False)}),
        (lambda s, x: F.avg_pool2d(x, 3, 2, 1, False, False), {}),
        (lambda s, x: F.avg_pool2d(x, (3, 3), stride=(2, 2), padding=(1, 1), count_include_pad=False), {}),
        (lambda s, x: aten.avg_pool2d.default(x, [3, 3], [2, 2], [1, 1], False, False), {}),
    ],
    "MaxPool": [
        (lambda s, x: s.op(x), {"op": nn.MaxPool2d(2)}),
        (lambda s, x: F.max_pool2d(x, 2), {}),
        (lambda s, x: torch.max_pool2d(x, 2), {}),
        (lambda s, x: F.adaptive_max_pool2d(x, 2), {}),
        (lambda s, x: aten.max_pool2d.default(x, [2, 2]), {}),
    ],
}


@pytest.mark.parametrize("how", ["recorded", "symbolic"])
@pytest.mark.parametrize(
    ("kind", "index"), [(kind, index) for kind, found in SPELLINGS.items() for index in range(1, len(found))]
)
def test_each_spelling_reads_as_the_same_call(kind: str, index: int, how: str) -> None:
    x = torch.zeros({"BatchNorm": (2, 4, 8, 8), "Linear": (2, 3)}.get(kind, (2, 3, 8, 8)))
    first, other = (only(function, x, how, **parts) for function, parts in (SPELLINGS[kind][0], SPELLINGS[kind][index]))
    assert type(first).__name__ == type(other).__name__ == kind
    if index != len(SPELLINGS[kind]) - 1 or kind != "Linear":
        assert comparable(first) == comparable(other)


def test_no_spelling_has_two_rows() -> None:
    tables = [table for family in calls.FAMILIES for table in (family.functions, family.methods, family.layers)]
    spellings = [spelling for table in tables for spelling in table]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("training", "mean", "uses_batch"), [(False, MEAN, False), (True, MEAN, True), (True, None, True)]
)
def test_a_functional_batch_norm_says_whether_it_uses_batch_statistics(
    training: bool, mean: Tensor | None, uses_batch: bool
) -> None:
    variance = None if mean is None else VAR
    call = only(lambda s, x: F.batch_norm(x, mean, variance, training=training))
    assert call.uses_batch_statistics is uses_batch


def test_a_layer_of_batch_norm_is_named_by_its_qualified_name_and_a_function_by_its_statistics() -> None:
    inner = nn.Module()
    inner.register_buffer("running_mean", MEAN)
    inner.register_buffer("running_var", VAR)
    assert only(lambda s, x: s.bn(x), bn=nn.BatchNorm2d(4)).name == "bn"
    assert only(lambda s, x: F.batch_norm(x, s.bn.running_mean, s.bn.running_var), bn=inner).name == "bn"


UNKNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "bits viewed as another type": lambda s, x: x.view(torch.int32),
    "a scaled addition": lambda s, x: torch.add(x, x, alpha=2),
    "a product with a value": lambda s, x: x * x,
    "a product with a truth value": lambda s, x: x * True,
    "a product with zero": lambda s, x: x * 0,
    "a division of a number": lambda s, x: 1 / x,
    "a rounded division": lambda s, x: torch.div(x, 2, rounding_mode="floor"),
    "a roll over all elements": lambda s, x: x.roll(1),
    "an index with a new dimension": lambda s, x: x[:, None],
    "an index by a mask": lambda s, x: x[x > 0],
    "a mean in another type": lambda s, x: x.mean(1, dtype=torch.float64),
    "tanh": lambda s, x: torch.tanh(x),
    "a pool by power average": lambda s, x: F.lp_pool2d(x, 2.0, 2),
}


@pytest.mark.parametrize("how", ["auto", "symbolic"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_looks_like_a_known_call_and_is_not_stays_unknown(name: str, how: str) -> None:
    assert read(UNKNOWN[name], None, how)[-1] is None


def test_a_subclass_of_a_known_layer_is_not_taken_for_it() -> None:
    class Odd(nn.MaxPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(-x)

    assert not any(isinstance(call, calls.MaxPool) and call.node.op == "call_module" for call in read(_op, op=Odd(2)))


def _op(s: Any, x: Any) -> Any:
    return s.op(x)


def test_a_number_computed_at_run_time_makes_a_call_unknown() -> None:
    assert read(lambda s, x: F.avg_pool2d(x, 2, padding=x.shape[-1] // 8))[-1] is None


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Dropout(0.5), "Passing"),
        (nn.Identity(), "Passing"),
        (nn.ReLU(), "PositivelyHomogeneous"),
        (nn.ReLU6(), "NoneType"),
        (nn.Flatten(), "Reshape"),
        (nn.PixelShuffle(2), "PixelShuffle"),
        (nn.ZeroPad2d(1), "Pad"),
        (nn.Upsample(scale_factor=2), "Interpolate"),
        (nn.GroupNorm(2, 4), "AffineNormalization"),
        (nn.LayerNorm(4), "AffineNormalization"),
        (nn.LayerNorm((4, 4)), "NoneType"),
        (nn.Embedding(4, 4, max_norm=1.0), "NoneType"),
        (nn.InstanceNorm2d(4), "AffineNormalization"),
        (nn.Softmax(1), "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_layers_read_as_what_they_are(layer: nn.Module, kind: str) -> None:
    assert type(only(_op, op=layer)).__name__ == kind
