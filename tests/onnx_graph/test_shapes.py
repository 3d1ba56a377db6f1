"""Shapes: what is said of a value is what it has when the model runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bnfold.onnx_graph.inference import OPEN, inferred
from bnfold.verify.onnx_double import evaluator, in_double
from tests.onnx_graph.random_graphs import random_graph
from tests.onnx_graph.support import Net, check, drawn

BATCHES = (2, 3)  # of the two inputs for which shapes are told


def as_exported_by_torch(*, asked: str = "constant") -> onnx.ModelProto:
    """A normalisation between two reshapes, as in LeViT: sizes are products of a batch that is squeezed out of a shape.

    Args:
        asked: "constant" for sizes that are constants; "input" for an initializer that is an input, too.
    """
    net = Net(3, 18)
    x = net.input(["batch", 6, 5, 5])
    conv = net.conv(x, 6, 8, 1)
    batch = net.node("Squeeze", [net.node("Shape", [x], start=0, end=1)])
    one = net.constant(np.array([-1]))

    def sized(factor: int, *others: int) -> str:
        product = net.node("Mul", [batch, net.constant(np.array(factor))])
        rest = net.constant(np.array(others), "rest")
        if asked == "input":
            net.inputs.append(helper.make_tensor_value_info(rest, TensorProto.INT64, [len(others)]))
        return str(net.node("Concat", [net.node("Reshape", [product, one]), rest], axis=0))

    rows = net.node("Reshape", [net.node("Transpose", [conv], perm=[0, 2, 3, 1]), sized(25, 8)])
    images = net.node("Reshape", [net.bn(rows, 8), sized(1, 5, 5, 8)])
    strided = net.conv(net.node("Transpose", [images], perm=[0, 3, 1, 2]), 8, 4, 3, strides=[2, 2])
    axes = net.node("Reshape", [net.constant(np.array([[2, 3]])), one])  # which ONNX's inference does not follow
    mean = net.node("ReduceMean", [strided, axes], keepdims=0)
    return net.model(net.bn(net.node("Gemm", [mean, net.weight(4, 3)]), 3))


def test_sizes_that_are_computed_are_followed() -> None:
    folding = check(as_exported_by_torch(), [(2, 6, 5, 5)], [(3, 6, 5, 5)])
    assert [decision.action for decision in folding.plan] == ["fold", "fold"]
    assert [d.into for d in folding.plan] == [("conv3",), ("gemm33",)]


def test_sizes_that_whoever_runs_the_model_may_override_are_not() -> None:
    folding = check(as_exported_by_torch(asked="input"), [(2, 6, 5, 5)], runtime=False)
    assert folding.plan[0].action == "affine"
    assert folding.plan[0].reason == "shapes-unknown"
    frozen = check(as_exported_by_torch(asked="input"), [(2, 6, 5, 5)], runtime=False, freeze_inputs=True)
    assert frozen.plan[0].action == "fold"


@pytest.mark.parametrize("seed", [None, *range(0, 40, 5)])
def test_shapes_are_those_of_a_run(seed: int | None) -> None:
    model = as_exported_by_torch() if seed is None else random_graph(seed)[0]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if not all(shape[1:]):
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = shape[2] = 8
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = shape[3] = 9
    told = inferred(ir.from_proto(model))
    names = [name for node in model.graph.node for name in node.output if name]
    every = onnx.ModelProto()
    every.CopyFrom(model)
    del every.graph.output[:]
    every.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for batch, seen in zip(BATCHES, told.tried, strict=True):
        (x,) = drawn([(batch, *shape[1:])])
        ran = dict(zip(names, evaluator(ir.to_proto(in_double(ir.from_proto(every)))).run(None, {"x": x}), strict=True))
        found = {str(value.name): size for value, size in seen.items() if value.name in ran}
        assert found == {name: ran[name].shape for name in found}
        assert found.keys() == ran.keys(), "a shape is missing"
        for value, sizes in told.symbolic.items():
            if value.name not in ran:
                continue
            assert len(sizes) == ran[value.name].ndim
            for size, is_size in zip(sizes, ran[value.name].shape, strict=True):
                assert not isinstance(size, int) or size == is_size
                assert size != f"{OPEN}0_0" or is_size == batch
