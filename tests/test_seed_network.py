"""The question this project answers, end to end, beside the usual tool."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import bnfold
from bnfold.export import to_onnx
from tests.networks import normal, seed_network, seed_network_negative


def batchnorms(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def test_the_usual_tool_leaves_the_batchnorm_and_bnfold_does_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.fx.experimental.optimization import fuse

        fused = fuse(copy.deepcopy(seed_network()))
    folded = bnfold.fold(seed_network()).module
    assert batchnorms(fused) == ["bn1"]
    assert batchnorms(folded) == []
    images = normal(3, 1, 28, 28)
    with torch.no_grad():
        expected, found = seed_network()(images), folded(images)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (seed_network, ["Conv", "MaxPool", "Relu", "Gemm"]),
        (seed_network_negative, ["Conv", "MaxPool", "Conv", "Relu", "Gemm"]),  # the affine is a depthwise 1x1 Conv
    ],
)
def test_the_export_holds_these_operators_and_nothing_else(network: Callable[[], nn.Module], kinds: list[str]) -> None:
    images = normal(2, 1, 28, 28)
    model = to_onnx(bnfold.fold(network(), images).module, images)
    found = [node.op_type for node in model.graph.node]
    assert [kind for kind in found if kind not in ("Reshape", "Flatten")] == kinds
    assert len(found) == len(kinds) + 1


@pytest.mark.parametrize("network", [seed_network, seed_network_negative])
def test_both_variants_are_proved_equivalent(network: Callable[[], nn.Module]) -> None:
    images = normal(2, 1, 28, 28)
    folding = bnfold.fold(network(), images)
    report = bnfold.verify(network(), folding.module, images, folding=folding)
    assert report.passed, str(report)


def test_the_original_is_left_as_it_was() -> None:
    network = seed_network()
    before = copy.deepcopy(network.state_dict())
    bnfold.fold(network)
    assert batchnorms(network) == ["bn1"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
