"""Bodies of Loop and Scan: folded inside; what comes from around, and what is carried on, is what it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.onnx_graph import inference
from bnfold.onnx_graph.api import OnnxFolding, fold_onnx
from tests.onnx_graph.random_graphs import random_graph
from tests.onnx_graph.support import ALGEBRA, Net, answers, drawn, left, peak_error, session_answers

IMAGE = ((2, 4, 6, 5),)
SAME = {"pads": [1] * 4}


def info(name: str, shape: Sequence[Any] | None = None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


class Body(Net):
    """The body of a loop; its names begin with those of nothing else.

    Args:
        inputs: what it carries on, or is given piece by piece: names, each with the shape that it declares.
    """

    def __init__(self, seed: int, letter: str = "b", **inputs: Sequence[Any] | None) -> None:
        super().__init__(seed)
        self.letter = letter
        self.given = [info(name, shape) for name, shape in inputs.items()]

    def name(self, stem: str) -> str:
        return f"{self.letter}_{super().name(stem)}"

    def loop(self, net: Net, trips: int, values: Sequence[str], ends: Sequence[str]) -> list[str]:
        """A Loop of so many trips; first of its results are the carried values, then what it collects."""
        letter = self.letter
        nodes = [helper.make_node("Identity", [f"{letter}_go"], [f"{letter}_on"]), *self.nodes]
        first = [info(f"{letter}_i", [], TensorProto.INT64), info(f"{letter}_go", [], TensorProto.BOOL)]
        outputs = [info(f"{letter}_on", [], TensorProto.BOOL), *map(info, ends)]
        body = helper.make_graph(nodes, "body", [*first, *self.given], outputs, self.initializers)
        given = [net.constant(np.int64(trips)), net.constant(np.array(True)), *values]
        made = net.node("Loop", given, outputs=len(ends), body=body)
        return [made] if len(ends) == 1 else list(made)

    def scan(self, net: Net, values: Sequence[str], ends: Sequence[str], pieces: int, **attributes: Any) -> list[str]:
        """A Scan over the last of some values, so many of them."""
        body = helper.make_graph(self.nodes, "body", self.given, [*map(info, ends)], self.initializers)
        made = net.node("Scan", values, outputs=len(ends), body=body, num_scan_inputs=pieces, **attributes)
        return [made] if len(ends) == 1 else list(made)


def check(model: onnx.ModelProto, *shapes: Any, algebra: bool = True, **options: Any) -> OnnxFolding:
    """Fold, and compare: in float64, and under ONNX Runtime.

    The reference implementation has no loop of no trips, and no Scan along other axes: without ``algebra`` the fold is
    compared with the original under ONNX Runtime alone.
    """
    folding = fold_onnx(model, **options)
    onnx.checker.check_model(folding.model)
    original, exact = folding.in_float64()
    for each in shapes:
        inputs = drawn(each)
        typed = [value.astype(np.float32) for value in inputs]
        expected = answers(original, inputs) if algebra else session_answers(model, typed, optimised=False)
        if algebra:
            assert peak_error(answers(exact, inputs), expected) <= ALGEBRA
        for optimised in (False, True):
            assert peak_error(session_answers(folding.model, typed, optimised=optimised), expected) <= 1e-4
    return folding


def actions(folding: Any) -> list[tuple[str, str | None]]:
    return [(decision.action, decision.direction) for decision in folding.plan]


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_a_loop_folds_what_it_carries_on_and_what_it_collects(trips: int) -> None:
    net, body = Net(1), Body(2, v=["n", 4, "h", "w"])
    x = net.input(["n", 4, "h", "w"])
    y = body.bn(body.conv("v", 4, 4, **SAME), 4)
    carried = body.node("Tanh", [y])
    made = body.loop(net, trips, [x], [carried, y])
    folding = check(net.model(*made), IMAGE, ((1, 4, 7, 7),), algebra=trips > 0)
    assert actions(folding) == [("fold", "backward")]
    assert left(folding.model) == 0


def test_what_a_body_returns_twice_keeps_both_places() -> None:
    net, body = Net(3), Body(4, v=["n", 4, "h", "w"])
    convolved = body.conv("v", 4, 4, **SAME)
    y = body.bn(convolved, 4)
    made = body.loop(net, 2, [net.input(["n", 4, "h", "w"])], [y, y])
    assert actions(check(net.model(*made), IMAGE)) == [("fold", "backward")]
    net, body = Net(3), Body(4, v=["n", 4, "h", "w"])
    convolved = body.conv("v", 4, 4, **SAME)
    made = body.loop(net, 2, [net.input(["n", 4, "h", "w"])], [body.bn(convolved, 4), convolved])
    assert actions(check(net.model(*made), IMAGE)) == [("affine", None)]  # what it collects is not normalised


def test_a_batchnorm_of_what_is_carried_goes_into_the_layer_after_it() -> None:
    net, body = Net(5), Body(6, v=["n", 4, "h", "w"])
    y = body.conv(body.bn("v", 4), 4, 4, 1)
    made = body.loop(net, 3, [net.input(["n", 4, "h", "w"])], [body.node("Tanh", [y])])
    assert actions(check(net.model(*made), IMAGE)) == [("fold", "forward")]


def test_weights_from_around_are_copied_into_the_body_that_folds() -> None:
    net, body = Net(7), Body(8, v=["n", 4, "h", "w"])
    x, shared = net.input(["n", 4, "h", "w"]), net.weight(4, 4, 1, 1, scale=0.4)
    outside = net.node("Conv", [x, shared])
    y = body.bn(body.node("Conv", ["v", shared]), 4)
    made = body.loop(net, 2, [x], [y])
    folding = check(net.model(outside, *made), IMAGE)
    assert actions(folding) == [("fold", "backward")]
    assert shared in [tensor.name for tensor in folding.model.graph.initializer]


@pytest.mark.parametrize("reads", ["the convolution", "the BatchNorm"])
def test_what_a_body_captures_is_what_it_was(reads: str) -> None:
    net, body = Net(9), Body(10, v=["n", 4, "h", "w"])
    x = net.input(["n", 4, "h", "w"])
    convolved = net.conv(x, 4, 4, 1)
    normal = net.bn(convolved, 4)
    y = body.node("Add", ["v", convolved if reads == "the convolution" else normal])
    made = body.loop(net, 2, [x], [body.bn(body.conv(y, 4, 4, 1), 4), body.bn("v", 4), body.bn(x, 4)])
    folding = check(net.model(net.node("Relu", [normal]), *made), IMAGE)
    expected = ("affine", None) if reads == "the convolution" else ("fold", "backward")
    assert actions(folding)[:2] == [expected, ("fold", "backward")]
    assert "the body's input `v`" in folding.plan[2].detail
    assert "it reads the captured value `x`" in folding.plan[3].detail


def test_an_affine_does_not_leave_a_body_or_enter_one() -> None:
    """A shift of what goes around would be added in each trip, and the first value has none."""
    net, body = Net(11), Body(12, v=["n", 4, "h", "w"])
    x = net.bn(net.input(["n", 4, "h", "w"]), 4)
    y = body.bn(body.node("Sigmoid", [body.conv("v", 4, 4, 1)]), 4)
    made = body.loop(net, 2, [x], [y])
    end = net.bn(net.node("Sigmoid", [net.conv(made[0], 4, 4, 1)]), 4)
    folding = check(net.model(end), IMAGE)
    assert actions(folding) == [("affine", None)] * 3
    assert "it reads the model's input `x`" in folding.plan[0].detail


def lying(channels: int) -> onnx.ModelProto:
    """A body that declares 6 channels, and multiplies them by 6 numbers; one channel is stretched to 6."""
    net, body = Net(13), Body(14, v=["n", 6, "h", "w"])
    y = body.conv(body.node("Mul", ["v", body.weight(6, 1, 1)]), 6, 6, 1)
    end = y if channels == 6 else body.node("ReduceMean", [y], axes=[1])
    return net.model(*body.loop(net, 2, [net.input(["n", channels, "h", "w"])], [end]))


def test_what_a_body_declares_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert actions(check(lying(6), ((2, 6, 5, 5),))) == [("fold", "forward")]
    one = ((2, 1, 5, 5),)
    assert actions(check(lying(1), one)) == []
    monkeypatch.setattr(inference, "infer", lambda proto: onnx.shape_inference.infer_shapes(proto, data_prop=True))
    believed = fold_onnx(lying(1))
    assert actions(believed) == [("fold", "forward")]
    with pytest.raises(Exception, match="Conv"):
        session_answers(believed.model, [drawn(one)[0].astype(np.float32)], optimised=False)


def test_a_value_that_grows_in_each_trip_has_no_channels_that_are_known() -> None:
    net, body = Net(15), Body(16, v=["n", 4, "h", "w"], w=["n", 4, "h", "w"])
    x = net.input(["n", 4, "h", "w"])
    grown = body.node("Concat", ["v", "w"], axis=1)
    scaled = body.node("Mul", ["w", body.weight(4, 1, 1)])
    made = body.loop(net, 2, [x, x], [grown, body.conv(scaled, 4, 4, 1)])
    folding = check(net.model(*made), IMAGE)
    assert actions(folding) == [("fold", "forward")]  # w stays as large as it is
    net, body = Net(15), Body(16, v=["n", 1, "h", "w"])
    stretched = body.node("Mul", ["v", body.weight(4, 1, 1)])  # from the second trip on, as many as there are
    made = body.loop(net, 2, [net.input(["n", 1, "h", "w"])], [body.conv(stretched, 4, 4, 1)])
    assert actions(check(net.model(*made), ((2, 1, 5, 5),))) == []


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_folds_in_each_piece(axis: int) -> None:
    net, body = Net(17), Body(18, state=["n", 4, "h", "w"], piece=["n", 4, "h", "w"])
    x = net.input(["n", 4, "h", "w"])
    place = net.constant(np.array([axis]))
    pieces = [net.node("Unsqueeze", [value, place]) for value in (x, net.node("Relu", [x]))]
    sequence = net.node("Concat", pieces, axis=axis)
    y = body.bn(body.conv("piece", 4, 4, **SAME), 4)
    z = body.node("Mul", [body.node("Add", ["state", y]), body.weight(4, 1, 1)])
    made = body.scan(net, [x, sequence], [body.conv(z, 4, 4, 1), y], 1, scan_input_axes=[axis])
    folding = check(net.model(*made), IMAGE, algebra=axis == 0)
    assert actions(folding) == [("fold", "backward"), ("fold", "forward")]


def test_loops_inside_of_loops() -> None:
    net, outer, inner = Net(19), Body(20, "o", v=["n", 4, "h", "w"]), Body(21, "i", u=["n", 4, "h", "w"])
    x = net.input(["n", 4, "h", "w"])
    captured = net.bn(net.conv(x, 4, 4, 1), 4)
    deep = inner.bn(inner.conv(inner.node("Add", ["u", captured]), 4, 4, 1), 4)
    (made,) = inner.loop(outer, 2, ["v"], [inner.node("Tanh", [deep])])
    end = outer.bn(outer.conv(made, 4, 4, 1), 4)
    (looped,) = outer.loop(net, 2, [x], [outer.node("Tanh", [end])])
    folding = check(net.model(looped), IMAGE)
    assert actions(folding) == [("fold", "backward")] * 3
    assert left(folding.model) == 0


def test_branches_inside_of_a_loop_merge() -> None:
    net, body = Net(22), Body(23, v=["n", 4, "h", "w"])
    total = body.node("Add", [body.conv("v", 4, 4, **SAME), body.conv("v", 4, 4, 1)])
    made = body.loop(net, 2, [net.input(["n", 4, "h", "w"])], [body.node("Tanh", [body.node("Add", [total, "v"])])])
    folding = check(net.model(*made), IMAGE, merge=True)
    assert [(merge.action, merge.identity) for merge in folding.plan.merges] == [("merge", True)]
    assert left(folding.model, "Conv") == 1


def as_body(model: onnx.ModelProto, shape: Sequence[int], kind: str) -> onnx.ModelProto:
    """A model whose only node runs another one on each of three pieces, or three times on what it captures."""
    graph = model.graph
    x = graph.input[0].name
    net = Net(0, model.opset_import[0].version)
    net.made = 10_000  # no name of the body's
    if kind == "Scan":
        body = helper.make_graph(
            graph.node, "body", [info(x, shape)], [*map(_untyped, graph.output)], graph.initializer
        )
        ends = net.node("Scan", [net.input([3, *shape])], outputs=len(graph.output), body=body, num_scan_inputs=1)
    else:
        nodes = [helper.make_node("Identity", ["go"], ["on"]), *graph.node]
        given = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)]
        outputs = [info("on", [], TensorProto.BOOL), *map(_untyped, graph.output)]
        body = helper.make_graph(nodes, "body", given, outputs, graph.initializer)
        held = [net.constant(np.int64(3)), net.constant(np.array(True))]
        net.input(list(shape), x)
        ends = net.node("Loop", held, outputs=len(graph.output), body=body)
    return net.model(*([ends] if isinstance(ends, str) else ends))


def _untyped(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return info(value.name)


@pytest.mark.parametrize("kind", ["Scan", "Loop"])
@pytest.mark.parametrize("seed", range(5000, 5006))
def test_random_graphs_inside_of_loops(kind: str, seed: int) -> None:
    model, shapes = random_graph(seed)
    if model.opset_import[0].version < 11:
        model.opset_import[0].version = 11
    (shape,) = shapes[0]
    whole = as_body(model, shape, kind)
    folding = fold_onnx(whole)
    onnx.checker.check_model(folding.model)
    original, exact = folding.in_float64()
    inputs = drawn([(3, *shape) if kind == "Scan" else shape])
    assert peak_error(answers(exact, inputs), answers(original, inputs)) <= ALGEBRA
    assert left(folding.model) == 0
