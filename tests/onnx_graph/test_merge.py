"""Convolutions of an ONNX graph whose sum, or whose sequence, is one convolution become one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import bnfold
from bnfold.cli import main
from bnfold.onnx_graph.api import OnnxFolding, fold_onnx
from tests.fold.random_branches import random_branches
from tests.onnx_graph.from_torch import onnx_of
from tests.onnx_graph.support import ALGEBRA, Net, answers, check, drawn, left, peak_error

IMAGE, LARGER = ((2, 4, 8, 8),), ((3, 4, 12, 10),)
SMALL = ("--input-shape", "2,4,8,8")


def stem(net: Net) -> str:
    return net.node("Relu", [net.input(["batch", 4, "height", "width"])])


def repvgg(net: Net) -> str:
    """The block of RepVGG: 3x3, 1x1, and the BatchNorm of the identity."""
    x = stem(net)
    large, small = net.conv(x, 4, 4, 3, bias=False, pads=[1] * 4), net.conv(x, 4, 4, 1, bias=False)
    total = net.node("Add", [net.node("Add", [net.bn(large, 4), net.bn(small, 4)]), net.bn(x, 4)])
    return net.node("Relu", [total])


def merged(net: Net, *outputs: str, **options: object) -> OnnxFolding:
    return check(net.model(*outputs), IMAGE, LARGER, merge=True, **options)  # type: ignore[arg-type]


def details(folding: OnnxFolding) -> list[str]:
    return [merge.detail for merge in folding.plan.merges]


def test_the_block_of_repvgg_is_one_convolution_with_the_name_of_the_large_one() -> None:
    net = Net(2)
    folding = merged(net, repvgg(net))
    assert [node.op_type for node in folding.model.graph.node] == ["Relu", "Conv", "Relu"]
    (merge,) = folding.plan.merges
    assert (merge.into, merge.merged, merge.kind, merge.action) == ("conv3", ("conv5",), "sum", "merge")
    assert (merge.macs_before, merge.macs_after) == (4 * 4 * 10 * 224 * 224, 4 * 4 * 9 * 224 * 224)
    conv = folding.model.graph.node[1]
    assert (conv.name, list(conv.input)) == ("conv3", ["relu1_out", "w2", "conv3.bias"])
    assert {tensor.name for tensor in folding.model.graph.initializer} == {"w2", "conv3.bias"}


def test_a_chain_of_dbb_and_a_pool_go_into_the_large_kernel() -> None:
    net = Net(4)
    x = stem(net)
    chain = net.conv(net.bn(net.conv(x, 4, 4, 1, bias=False), 4, shift=False), 4, 4, 3, pads=[1] * 4)
    pool = net.node("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    pooled = net.conv(pool, 4, 4, 1)
    total = net.node("Add", [net.node("Add", [net.bn(chain, 4), pooled]), net.conv(x, 4, 4, 3, pads=[1] * 4)])
    folding = merged(net, net.node("Relu", [total]))
    (merge,) = folding.plan.merges
    assert merge.merged == ("conv3", "conv24", "averagepool12", "conv15"), details(folding)
    assert left(folding.model, "Conv") == 1


def test_a_sum_that_keeps_other_terms_and_is_an_output() -> None:
    net = Net(5)
    x = stem(net)
    a, b = net.conv(x, 4, 4, 3, pads=[1] * 4), net.conv(x, 4, 4, 1)
    other = net.node("Sigmoid", [x])
    end = net.node("Sub", [net.node("Sub", [other, a]), b])
    folding = merged(net, end)
    assert [node.op_type for node in folding.model.graph.node].count("Conv") == 1
    assert [value.name for value in folding.model.graph.output] == [end]


def test_two_groups_of_branches_in_one_sum() -> None:
    net = Net(6)
    x = stem(net)
    y = net.node("Tanh", [x])
    terms = [net.conv(value, 4, 4, 3, pads=[1] * 4) for value in (x, y, x, y)]
    left_sum, right_sum = (net.node("Sub", pair) for pair in (terms[:2], terms[2:]))
    folding = merged(net, net.node("Add", [left_sum, right_sum]))
    assert [(merge.action, len(merge.merged)) for merge in folding.plan.merges] == [("merge", 1), ("merge", 1)]
    assert left(folding.model, "Conv") == 2


def test_what_asks_for_the_shape_of_a_branch_gets_it() -> None:
    net = Net(7)
    x = stem(net)
    a, b = net.conv(x, 4, 4, 3, pads=[1] * 4), net.conv(x, 4, 4, 1)
    shape = net.node("Shape", [b])
    other = net.node("Reshape", [net.node("Sigmoid", [x]), shape])
    folding = merged(net, net.node("Add", [net.node("Add", [a, b]), other]))
    assert [merge.action for merge in folding.plan.merges] == ["merge"]
    assert left(folding.model, "Conv") == 1


def test_a_branch_that_is_read_elsewhere_stays() -> None:
    net = Net(8)
    x = stem(net)
    a, b = net.conv(x, 4, 4, 3, pads=[1] * 4), net.conv(x, 4, 4, 1)
    folding = merged(net, net.node("Add", [a, b]), net.node("Relu", [b]))
    assert [(merge.action, merge.reason) for merge in folding.plan.merges] == [("refuse", "several-readers")]
    assert left(folding.model, "Conv") == 2


def test_a_sequence_becomes_one_only_where_no_bias_meets_the_padding() -> None:
    for bias in (False, True):
        net = Net(9)
        x = net.conv(net.conv(stem(net), 4, 8, 1, bias=bias), 8, 4, 3, pads=[1] * 4)
        (merge,) = (folding := merged(net, x)).plan.merges
        assert merge.reason == ("zero-padding" if bias else None)
        assert left(folding.model, "Conv") == (2 if bias else 1)


def test_constants_that_nothing_absorbs_go_into_the_sum() -> None:
    """``g * pool(x) + conv(x)``: the pool is read as a kernel, so it takes the constants too."""
    net = Net(10)
    x = stem(net)
    pool = net.node("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    scaled = net.node("Mul", [pool, net.weight(4, 1, 1)])
    folding = merged(net, net.node("Add", [scaled, net.conv(x, 4, 4, 3, pads=[1] * 4)]))
    assert [node.op_type for node in folding.model.graph.node] == ["Relu", "Conv"]
    (decision,) = folding.plan
    assert (decision.kind, decision.action, decision.direction) == ("affine", "fold", "sideways")


def test_a_product_before_the_branches_keeps_its_bias() -> None:
    """The bias that a MatMul takes is an Add of its own: what reads the product reads the sum."""
    net = Net(11)
    x = net.node("Transpose", [stem(net)], perm=[0, 2, 3, 1])
    product = net.bn(net.node("Transpose", [net.node("MatMul", [x, net.weight(4, 4)])], perm=[0, 3, 1, 2]), 4)
    a, b = net.conv(product, 4, 4, 3, pads=[1] * 4), net.conv(product, 4, 4, 1)
    folding = merged(net, net.node("Add", [a, b]))
    assert [decision.action for decision in folding.plan] == ["fold"]
    assert left(folding.model, "Conv") == 1


def test_a_body_merges_its_own() -> None:
    net, inner = Net(12), Net(13)
    x = stem(net)
    inner.made = 100
    total = inner.node("Add", [inner.conv(x, 4, 4, 3, pads=[1] * 4), inner.conv(x, 4, 4, 1)])
    other = helper.make_node("Identity", [x], ["other"])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (total, "other")]
    bodies = [
        helper.make_graph(inner.nodes, "then", [], ends[:1], inner.initializers),
        helper.make_graph([other], "else", [], ends[1:]),
    ]
    asked = net.node("Greater", [net.node("ReduceMean", [x], keepdims=0), net.constant(np.float32(0.3))])
    folding = merged(net, net.node("If", [asked], then_branch=bodies[0], else_branch=bodies[1]))
    assert [merge.action for merge in folding.plan.merges] == ["merge"]
    assert left(folding.model, "Conv") == 1


def test_keep_leaves_a_branch_apart() -> None:
    net = Net(2)
    folding = merged(net, repvgg(net), keep=["conv5"])
    assert {merge.reason for merge in folding.plan.merges} == {"kept-by-request"}
    assert left(folding.model, "Conv") == 2
    with pytest.raises(bnfold.UnknownNameError):
        fold_onnx(net.model(net.nodes[-1].output[0]), keep=["conv5"])


def test_keep_leaves_an_affine_that_a_merge_would_take() -> None:
    for name in ((), ("mul6",)):
        net = Net(14)
        x = stem(net)
        scaled = net.node("Mul", [net.conv(x, 4, 4, 3, pads=[1] * 4), net.weight(4, 1, 1)])
        folding = merged(net, net.node("Add", [scaled, net.conv(x, 4, 4, 1)]), keep=name)
        assert left(folding.model, "Mul") == len(name)
        assert left(folding.model, "Conv") == 1 + len(name)


def test_new_nodes_have_names_of_their_own() -> None:
    """ONNX Runtime refuses a model with two nodes of one name; ``check`` runs it."""
    net = Net(15)
    x = stem(net)
    total = net.node("Sigmoid", [x])
    for source in (x, net.node("Tanh", [x]), net.node("Sin", [x])):
        for size in (3, 1):
            total = net.node("Add", [total, net.conv(source, 4, 4, size, pads=[size // 2] * 4)])
    assert left(merged(net, total).model, "Conv") == 3

    net = Net(16)  # a convolution whose shape is asked for stays for that
    x = stem(net)
    conv = net.conv(x, 4, 4, 3, pads=[1] * 4)
    other = net.node("Reshape", [net.node("Sigmoid", [x]), net.node("Shape", [conv])])
    total = net.node("Add", [net.node("Mul", [conv, net.constant(np.float32(3))]), net.conv(x, 4, 4, 1)])
    names = [node.name for node in merged(net, net.node("Add", [total, other])).model.graph.node]
    assert {"conv4", "conv4_unmerged"} <= set(names)


def test_a_merge_that_overflows_is_left_out() -> None:
    net = Net(3, dtype=np.float16)
    x = net.input(["n", 4, 8, 8])
    terms = []
    for size in (3, 1):
        weight = net.numbers(4, 4, size, size)
        weight[0, 0, size // 2, size // 2] = 4e4
        terms.append(net.node("Conv", [x, net.constant(weight)], pads=[size // 2] * 4))
    folding = fold_onnx(net.model(net.node("Add", terms)), merge=True)
    assert [(merge.action, merge.reason) for merge in folding.plan.merges] == [("refuse", "weight-not-finite")]
    assert left(folding.model, "Conv") == 2


def test_without_merge_nothing_merges() -> None:
    net = Net(2)
    folding = check(net.model(repvgg(net)), IMAGE)
    assert folding.plan.merges == ()
    assert left(folding.model, "Conv") == 2


def test_two_sideways_folds_through_one_sum() -> None:
    """The second affine is a term of a sum that the first has left: what stands for that sum loses it."""
    for order in (1, -1):
        net = Net(1)
        x = stem(net)
        both = net.node("Add", [net.bn(x, 4), net.bn(x, 4)])
        total = net.node("Add", [both, net.conv(x, 4, 4, 3, pads=[1] * 4)][::order])
        folding = check(net.model(net.node("Relu", [total])), IMAGE, LARGER)
        assert [node.op_type for node in folding.model.graph.node] == ["Relu", "Conv", "Relu"]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", range(12))
def test_random_branches_keep_their_function(seed: int) -> None:
    torch.set_num_threads(1)
    net, x = random_branches(seed)
    model = onnx_of(net, x)
    with torch.no_grad():
        expected = [net(x).numpy()]
    folding = fold_onnx(model, merge=True)
    onnx.checker.check_model(folding.model, full_check=True)
    for each in (model, folding.model, folding.in_float64()[1]):
        assert peak_error(answers(each, [x.numpy()]), expected) <= ALGEBRA
    larger = drawn([(3, 3, *[size + 3 for size in x.shape[2:]])])
    try:
        expected = answers(model, larger)
    except TypeError:  # branches whose sizes agree at some inputs only
        return
    assert peak_error(answers(folding.model, larger), expected) <= ALGEBRA


PLAIN = [0, 1, 4, 5, 7, 8, 27, 33, 46, 53]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", PLAIN)
def test_both_roads_decide_the_same(seed: int) -> None:
    """The same network as a torch module and as an ONNX graph: one planner, and the same facts."""
    torch.set_num_threads(1)
    net, x = random_branches(seed)
    for layer in net.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            layer.padding_mode = "zeros"  # ONNX pads otherwise in a node of its own
    of_torch = bnfold.plan(net, x, merge=True, affines=True, check=False)
    of_onnx = fold_onnx(onnx_of(net, x), merge=True).plan
    told = [
        sorted((d.batchnorm if d.kind == "batchnorm" else d.site, d.kind, d.action, d.direction, d.into) for d in plan)
        for plan in (of_torch, of_onnx)
    ]
    assert told[0] == told[1]
    merges = [
        sorted((m.into, sorted(m.merged), m.action, m.kind, str(m.reason), m.identity) for m in plan.merges)
        for plan in (of_torch, of_onnx)
    ]
    assert merges[0] == merges[1]
    assert merges[0]


def test_the_command_line_merges_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(2)
    onnx.save(net.model(repvgg(net)), tmp_path / "net.onnx")
    report = tmp_path / "report.json"
    assert main(["fold", str(tmp_path / "net.onnx"), "--merge", "--report", str(report), *SMALL]) == 0
    assert left(onnx.load(tmp_path / "net.folded.onnx"), "Conv") == 1
    (merge,) = json.loads(report.read_text())["merges"]
    assert merge["detail"] == "conv5 merged into conv3."
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "net.onnx"), "--merge"]) == 0
    assert "conv5" in capsys.readouterr().out
