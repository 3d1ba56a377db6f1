"""What a page, and ``explain NAME``, show about an ONNX model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.cli import main
from bnfold.onnx_graph.api import OnnxFolding
from bnfold.report.gather_onnx import chain_of_onnx, details_of_onnx, layer_of_onnx
from tests.onnx_graph.graphs import GRAPHS
from tests.onnx_graph.support import Net
from tests.onnx_graph.test_as_they_come import branching


def model() -> onnx.ModelProto:
    """Two BatchNormalizations, of which one stays as an explicit affine, and an affine by constants."""
    net = Net(5)
    x = net.conv(net.input(["batch", 3, 8, 8]), 3, 4)
    pooled = net.node("AveragePool", [net.bn(x, 4)], kernel_shape=[2, 2])
    scaled = net.node("Mul", [pooled, net.weight(4, 1, 1)])
    return net.model(net.bn(net.node("Tanh", [scaled]), 4))


@pytest.fixture
def folding() -> OnnxFolding:
    return bnfold.fold_onnx(model())


def test_pictures_before_and_after_and_the_ways(folding: OnnxFolding) -> None:
    (picture,) = details_of_onnx(folding, seed=3).pictures
    before, after = ({vertex.name: vertex for vertex in side} for side in (picture.before, picture.after))
    roles = [vertex.role for vertex in picture.before]
    assert roles == ["end", "weights", "batchnorm", "other", "batchnorm", "other", "batchnorm", "end"]
    assert [vertex.role for vertex in picture.after] == ["end", "weights", "other", "other", "affine", "end"]
    assert before["conv3_out"].kind == "Conv 3→4, 3×3"
    site = folding.plan[2].site
    assert (before[site].role, after[site].role) == ("batchnorm", "affine")
    ways = {way.decision: way for way in picture.ways}
    assert [picture.before[into].name for into in ways[1].into] == ["conv3_out"]
    edges = [(picture.before[a].name, picture.before[b].name) for a, b in ways[1].edges]
    assert edges == [
        (folding.plan[1].site, "averagepool9_out"),
        ("averagepool9_out", folding.plan[0].site),
        (folding.plan[0].site, "conv3_out"),
    ]


def test_affines_are_those_of_the_statistics(folding: OnnxFolding) -> None:
    details = details_of_onnx(folding, seed=3)
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(float) for t in model().graph.initializer}
    nodes = {node.name: node for node in model().graph.node}
    assert [affine.decision for affine in details.affines] == [0, 1, 2]
    for affine in (details.affines[0], details.affines[2]):
        node = nodes[folding.plan[affine.decision].batchnorm]
        scale, bias, mean, variance = (weights[name] for name in node.input[1:])
        expected = scale / np.sqrt(variance + np.float32(1e-3))
        assert np.allclose(affine.scale, expected, rtol=1e-12)
        assert np.allclose(affine.shift, bias - mean * expected, rtol=1e-12)


def test_the_chain_names_the_rule_of_each_node(folding: OnnxFolding) -> None:
    links = {link.label: link for link in chain_of_onnx(folding, 1)}
    assert links["conv3"].part == "takes"
    assert links["averagepool9"].part == "passes"
    assert links["averagepool9"].words
    assert links[folding.plan[1].batchnorm].words == "is gone"


def test_the_layer_has_the_numbers_of_the_file(folding: OnnxFolding) -> None:
    layer = layer_of_onnx(folding, 0)
    assert layer is not None
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model().graph.initializer}
    node = next(node for node in model().graph.node if node.name == folding.plan[0].batchnorm)
    assert np.array_equal(layer.running_var.numpy(), weights[node.input[4]])
    assert layer.momentum == pytest.approx(0.1)


def test_bodies_of_nodes_are_drawn_too() -> None:
    net = Net(2)
    captured = net.bn(net.conv(net.input(["n", 4, 8, 8]), 4, 4, 1), 4)
    folding = bnfold.fold_onnx(net.model(branching(net, net.node("Relu", [captured]), captured)))
    details = details_of_onnx(folding, seed=0)
    assert [picture.title for picture in details.pictures] == ["", "body", "body"]
    assert [len(picture.ways) for picture in details.pictures] == [1, 1, 1]
    assert [affine.decision for affine in details.affines] == [0, 1, 2]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, page = tmp_path / "net.onnx", tmp_path / "page.html"
    onnx.save(model(), source)
    name = bnfold.fold_onnx(model()).plan[0].batchnorm
    assert main(["explain", str(source), name]) == 0
    told = capsys.readouterr().out
    assert "BatchNormalization, 4 channels, eps 0.001" in told
    assert "y = (x - running_mean[c]) / sqrt(running_var[c] + eps)" in told
    assert main(["explain", str(source), "mul11"]) == 0
    assert "takes mul11 into its weights" in capsys.readouterr().out
    assert main(["fold", str(source), "-q", "--no-verify", "--report", str(page)]) == 0
    html = page.read_text()
    assert "Conv 3→4, 3×3" in html
    assert "not measured in ONNX models" in html


@pytest.mark.parametrize("small", [g for n, g in enumerate(GRAPHS) if n % 6 == 0], ids=lambda small: small.name)
def test_every_kind_of_graph_can_be_drawn(small) -> None:
    folding = bnfold.fold_onnx(small.model())
    details = details_of_onnx(folding, seed=0)
    assert len(details.affines) >= len([d for d in folding.plan if d.action != "keep"])
    for number in range(len(folding.plan)):
        assert chain_of_onnx(folding, number)
