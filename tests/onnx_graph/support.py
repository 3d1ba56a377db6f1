"""ONNX models built node by node, and what is asked of their folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from bnfold.onnx_graph.api import OnnxFolding, fold_onnx
from bnfold.verify.onnx_double import DoubleModel, evaluator

ALGEBRA = 1e-9


class Net:
    """A model that grows: each method adds a node and returns the name of its result.

    Args:
        seed: of the weights.
        opset: of the operators.
        dtype: of the weights and inputs.
    """

    def __init__(self, seed: int = 0, opset: int = 17, dtype: Any = np.float32) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.made = 0

    def name(self, stem: str) -> str:
        self.made += 1
        return f"{stem.lower()}{self.made}"

    def input(self, shape: Sequence[int | str | None], name: str = "x") -> str:
        self.inputs.append(helper.make_tensor_value_info(name, self.type, shape))
        return name

    def constant(self, values: Any, stem: str = "constant") -> str:
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def numbers(self, *shape: int, positive: bool = False, scale: float = 1.0) -> np.ndarray:
        drawn = self.random.standard_normal(shape) * scale
        return (np.abs(drawn) + 0.2 if positive else drawn).astype(self.dtype)

    def weight(self, *shape: int, positive: bool = False, scale: float = 1.0) -> str:
        return self.constant(self.numbers(*shape, positive=positive, scale=scale), "w")

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        name = self.name(op)
        results = [f"{name}_{index}" if outputs > 1 else f"{name}_out" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name=name, **attributes))
        return results[0] if outputs == 1 else results

    def conv(self, x: str, i: int, o: int, k: int = 3, dims: int = 2, bias: bool = True, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        given = [x, self.weight(o, i // group, *[k] * dims, scale=0.4), *([self.weight(o)] if bias else [])]
        return str(self.node("Conv", given, **attributes))

    def bn(self, x: str, channels: int, positive: bool = False, shift: bool = True, **attributes: Any) -> str:
        """Random statistics; scales of both signs unless ``positive``; without a shift where it is unwanted."""
        scale, mean, variance = (
            self.weight(channels, positive=positive),
            self.numbers(channels),
            self.numbers(channels, positive=True),
        )
        bias = self.numbers(channels) if shift else np.zeros(channels, self.dtype)
        mean = mean if shift else np.zeros(channels, self.dtype)
        held = [scale, self.constant(bias, "b"), self.constant(mean, "m"), self.constant(variance, "v")]
        return str(self.node("BatchNormalization", [x, *held], epsilon=1e-3, **attributes))

    def model(self, *outputs: str, ir_version: int = 8, **more: Any) -> onnx.ModelProto:
        inputs = list(self.inputs)
        if ir_version < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers]
        ends = [onnx.ValueInfoProto(name=name) for name in outputs]
        for end in ends:
            end.type.tensor_type.elem_type = self.type
        graph = helper.make_graph(self.nodes, "net", inputs, ends, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), *more.get("opsets", ())]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="a test")
        told = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
        for end in graph.output:
            shape = told[end.name].type.tensor_type.shape.dim
            end.type.tensor_type.shape.SetInParent()
            end.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
        model.graph.CopyFrom(graph)
        return model


def left(model: onnx.ModelProto, op: str = "BatchNormalization") -> int:
    """Return how many nodes of an operator a model has, those in its subgraphs included."""
    found = 0
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        for node in graph.node:
            found += node.op_type == op
            stack += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def drawn(shapes: Sequence[Sequence[int]], seed: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for shape in shapes]


def answers(model: onnx.ModelProto | ir.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what the reference implementation answers, for a model in float64."""
    if isinstance(model, ir.Model):
        return [output.numpy() for _, output in DoubleModel(model)([torch.from_numpy(each) for each in inputs])]
    names = [value.name for value in model.graph.input if value.name not in {t.name for t in model.graph.initializer}]
    return [np.asarray(v) for v in evaluator(model).run(None, dict(zip(names, inputs, strict=True)))]


def session_answers(model: onnx.ModelProto, inputs: Sequence[np.ndarray], *, optimised: bool) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [np.asarray(value) for value in session.run(None, dict(zip(names, inputs, strict=True)))]


def peak_error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest error over the largest value; infinite where shapes or NaNs differ."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return float("inf")
        if one.size:
            peak = float(np.max(np.abs(other), initial=0.0)) or 1.0
            worst = max(worst, float(np.max(np.abs(one.astype(float) - other.astype(float)))) / peak)
    return worst


def check(
    model: onnx.ModelProto, *shapes: Sequence[Sequence[int]], runtime: bool = True, **options: Any
) -> OnnxFolding:
    """Fold, and hold the fold to what it must be at each of several sets of input shapes.

    The algebra is exact to 1e-9 of the peak in float64; the folded file answers under ONNX Runtime, off and on, as far
    as float32 goes; names, types and metadata are the model's.
    """
    before = model.SerializeToString()
    folding = fold_onnx(model, **options)
    assert model.SerializeToString() == before, "the model that was given has changed"
    folded = folding.model
    onnx.checker.check_model(folded)
    assert [value.name for value in folded.graph.output] == [value.name for value in model.graph.output]
    assert folded.producer_name == model.producer_name
    assert list(folded.opset_import) == list(model.opset_import)
    original, exact = folding.in_float64()
    for each in shapes:
        inputs = drawn(each)
        expected = answers(original, inputs)
        error = peak_error(answers(exact, inputs), expected)
        assert error <= ALGEBRA, f"off by {error} of the peak in float64"
        if runtime:
            typed = [value.astype(np.float32) for value in inputs]
            for optimised in (False, True):
                error = peak_error(session_answers(folded, typed, optimised=optimised), expected)
                assert error <= 1e-4, f"off by {error} of the peak under ONNX Runtime"
    return folding
