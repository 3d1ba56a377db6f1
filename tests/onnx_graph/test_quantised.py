"""Weights behind a DequantizeLinear: an affine goes into their scale, and the whole numbers stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.onnx_graph.api import OnnxFolding, fold_onnx
from tests.onnx_graph.support import Net, check, drawn, left, peak_error, session_answers

IMAGE, LARGER = ((2, 4, 8, 8),), ((3, 4, 9, 7),)


class Quantised(Net):
    """A net with layers of quantised weights."""

    def whole(self, shape: Sequence[int], dtype: Any = np.int8) -> str:
        low = 0 if dtype == np.uint8 else -100
        return self.constant(self.random.integers(low, 100, shape).astype(dtype), "q")

    def dequantised(
        self, shape: Sequence[int], axis: int | None = 0, zero: bool = True, dtype: Any = np.int8, **attributes: Any
    ) -> str:
        """Weights with one scale for each entry of ``axis``, some of them negative, or one for all."""
        count = () if axis is None else (shape[axis],)
        given = [self.whole(shape, dtype), self.weight(*count, positive=axis is None, scale=0.02)]
        if zero:
            given.append(self.constant(self.random.integers(0, 5, count).astype(dtype), "z"))
        attributes |= {} if axis is None else {"axis": axis}
        return str(self.node("DequantizeLinear", given, **attributes))

    def image(self) -> str:
        return self.input(["n", 4, "h", "w"])


def numbers(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("opset", "dtype", "bias"), [(13, np.int8, True), (19, np.uint8, False), (21, np.int8, False)])
def test_a_batchnorm_goes_into_the_scale_of_each_channel(
    axis: int | None, zero: bool, opset: int, dtype: Any, bias: bool
) -> None:
    net = Quantised(3, opset)
    x = net.image()
    weight = net.dequantised((6, 4, 3, 3), axis, zero, dtype)
    y = net.node("Conv", [x, weight, *([net.weight(6)] if bias else [])], pads=[1] * 4)
    model = net.model(net.node("Relu", [net.bn(net.node("AveragePool", [y], kernel_shape=[2, 2]), 6)]))
    folding = check(model, IMAGE, LARGER)
    assert [node.op_type for node in folding.model.graph.node] == ["DequantizeLinear", "Conv", "AveragePool", "Relu"]
    assert np.array_equal(numbers(folding.model, "q1"), numbers(model, "q1"))
    assert folding.plan[0].added_bytes == 0
    gain, mean, var = (numbers(model, model.graph.node[-2].input[place]).astype(np.float64) for place in (1, 3, 4))
    assert mean.shape == (6,)
    exact = gain / np.sqrt(var + np.float32(1e-3)) * numbers(model, "w2").astype(np.float64)
    assert np.array_equal(numbers(folding.model, "w2"), exact.astype(np.float32))  # rounded once
    assert (exact < 0).any()
    if zero:
        points = numbers(folding.model, folding.model.graph.node[0].input[2])
        assert points.dtype == dtype
        assert np.array_equal(points, np.broadcast_to(numbers(model, "z3"), 6))


def test_a_scale_of_zero_leaves_the_shift() -> None:
    net = Quantised(4, 21)
    y = net.node("Conv", [net.image(), net.dequantised((6, 4, 3, 3))])
    model = net.model(net.bn(y, 6))
    gain = model.graph.node[-1].input[1]
    for tensor in model.graph.initializer:
        if tensor.name == gain:
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, -1, 2, 0, 3, -0.5], np.float32), gain))
    folding = check(model, IMAGE)
    assert left(folding.model) == 0
    assert list(numbers(folding.model, "w2")[[0, 3]]) == [0, 0]


def test_a_transposed_convolution_has_its_scales_along_dimension_1() -> None:
    for groups, expected in ((1, "fold"), (2, "affine")):
        net = Quantised(5, 21)
        y = net.node("ConvTranspose", [net.image(), net.dequantised((4, 3, 3, 3), 1)], group=groups, strides=[2, 2])
        folding = check(net.model(net.bn(y, 3 * groups)), IMAGE)
        assert [decision.action for decision in folding.plan] == [expected]
        assert left(folding.model, "DequantizeLinear") == 1


def test_weights_and_scales_that_others_use_are_copied_for_the_one_that_folds() -> None:
    net = Quantised(6, 21)
    x, shared = net.image(), net.dequantised((6, 4, 3, 3), None)
    scale = net.nodes[0].input[1]
    other = net.node("DequantizeLinear", [net.whole((6, 4, 1, 1)), scale])
    folds, stays, last = (net.node("Conv", [x, weight]) for weight in (shared, shared, other))
    model = net.model(net.bn(folds, 6), stays, last)
    folding = check(model, IMAGE)
    assert left(folding.model) == 0
    assert left(folding.model, "DequantizeLinear") == 3
    assert folding.plan[0].added_bytes > 0
    assert numbers(folding.model, scale).shape == ()
    assert len(folding.model.graph.initializer) == 7 - 2 + 2  # two of the whole numbers; no copy of these


def test_each_of_three_that_share_their_weights_has_scales_in_a_node_of_another_name() -> None:
    net = Quantised(6, 21)
    x, shared = net.image(), net.dequantised((6, 4, 3, 3))
    folding = check(net.model(*[net.bn(net.node("Conv", [x, shared]), 6) for _ in range(3)]), IMAGE)
    assert left(folding.model) == 0
    assert len({node.name for node in folding.model.graph.node}) == 6


def test_affines_before_the_weights_and_sums_with_them_are_left_alone() -> None:
    """A shift of the input reaches the weights of all taps, and those are whole numbers."""
    net = Quantised(7, 21)
    x = net.bn(net.node("Sigmoid", [net.image()]), 4)
    y = net.node("Conv", [x, net.dequantised((4, 4, 1, 1))])
    folding = check(net.model(net.node("Add", [y, x])), IMAGE, merge=True)
    (decision,) = folding.plan
    assert (decision.action, decision.direction) == ("affine", None)


# --- what stays ------------------------------------------------------------------------------------------------------


def along_the_inputs(net: Quantised) -> str:
    return str(net.node("Conv", [net.image(), net.dequantised((6, 4, 3, 3), 1)]))


def before_opset_13(net: Quantised) -> str:
    return str(net.node("Conv", [net.image(), net.dequantised((6, 4, 3, 3), None)]))


def of_blocks(net: Quantised) -> str:
    scale, shape = net.weight(6, 2, 3, 3, scale=0.02), (6, 4, 3, 3)
    weight = net.node("DequantizeLinear", [net.whole(shape), scale], axis=1, block_size=2)
    return str(net.node("Conv", [net.image(), weight]))


def a_bias_of_whole_numbers(net: Quantised) -> str:
    x, weight = net.image(), net.dequantised((6, 4, 3, 3))
    bias = net.node("DequantizeLinear", [net.whole((6,), np.int32), net.weight(6)], axis=0)
    return str(net.node("Conv", [x, weight, bias]))


def a_scale_that_is_computed(net: Quantised) -> str:
    x = net.image()
    scale = net.node("ReduceMax", [x], keepdims=0)
    return str(net.node("Conv", [x, net.node("DequantizeLinear", [net.whole((6, 4, 3, 3)), scale])]))


def values_that_are_quantised(net: Quantised) -> str:
    scale, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(128))
    x = net.node("QuantizeLinear", [net.image(), scale, zero])
    x = net.node("DequantizeLinear", [x, scale, zero])
    return str(net.node("Conv", [x, net.dequantised((6, 4, 3, 3))]))


def a_matrix(net: Quantised) -> str:
    x = net.node("Transpose", [net.image()], perm=[0, 2, 3, 1])
    product = net.node("MatMul", [x, net.dequantised((4, 6), 1)])
    return str(net.node("Transpose", [product], perm=[0, 3, 1, 2]))


STAYS = {
    along_the_inputs: "along another dimension",
    before_opset_13: "before opset 13",
    of_blocks: "those of blocks",
    a_bias_of_whole_numbers: "its bias is quantised",
    a_scale_that_is_computed: "its weights are computed, or may be overridden",
    values_that_are_quantised: "the model quantises values, too",
    a_matrix: "only a convolution takes an affine into the scale of its weights",
}


def folded(make: Any) -> OnnxFolding:
    net = Quantised(8, 11 if make is before_opset_13 else 21)
    model = net.model(net.bn(make(net), 6))
    folding = fold_onnx(model)
    onnx.checker.check_model(folding.model)
    x = [value.astype(np.float32) for value in drawn(IMAGE)]
    expected = session_answers(model, x, optimised=False)
    assert peak_error(session_answers(folding.model, x, optimised=False), expected) < 1e-5
    return folding


@pytest.mark.parametrize("make", STAYS, ids=lambda make: make.__name__)
def test_what_stays_says_why(make: Any) -> None:
    folding = folded(make)
    (decision,) = folding.plan
    assert (decision.action, decision.reason) == ("affine", "quantised-weights")
    assert STAYS[make] in decision.detail
    assert left(folding.model) == 0


def test_scales_along_the_inputs_cannot_take_it() -> None:
    """Four scales, six channels: there is no scale for each channel to take; and as many as channels are others."""
    net = Quantised(9, 21)
    y = net.node("Conv", [net.image(), net.dequantised((4, 4, 3, 3), 1, zero=False)])
    model = net.model(net.bn(y, 4, shift=False))
    assert [decision.action for decision in fold_onnx(model).plan] == ["affine"]
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    bn = wrong.graph.node.pop()
    gain, _, _, var = (numbers(model, name) for name in bn.input[1:])
    scale = next(tensor for tensor in wrong.graph.initializer if tensor.name == "w2")
    moved = numpy_helper.to_array(scale) * gain / np.sqrt(var + np.float32(1e-3))
    scale.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "w2"))
    wrong.graph.output[0].name = bn.input[0]
    x = [value.astype(np.float32) for value in drawn(IMAGE)]
    right = session_answers(model, x, optimised=False)
    assert peak_error(session_answers(wrong, x, optimised=False), right) > 1e-2


def test_whole_numbers_that_may_be_overridden_stay(tmp_path: Any) -> None:
    net = Quantised(10, 21)
    model = net.model(net.bn(net.node("Conv", [net.image(), net.dequantised((6, 4, 3, 3))]), 6))
    model.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [6]))
    (decision,) = fold_onnx(model).plan
    assert "may be overridden" in decision.detail
    (frozen,) = fold_onnx(model, freeze_inputs=True).plan
    assert frozen.action == "fold"
