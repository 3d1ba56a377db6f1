"""Graphs as they come: old and new opsets, inputs with defaults, subgraphs, functions, shared and quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from benchmarks.bench_onnx_random import examine
from bnfold.onnx_graph.api import fold_onnx
from tests.onnx_graph.random_graphs import random_graph
from tests.onnx_graph.support import ALGEBRA, Net, answers, check, drawn, left, peak_error, session_answers

IMAGE = ((2, 4, 8, 8),)


def plain(opset: int = 17, **how: Any) -> Net:
    net = Net(3, opset, **how)
    x = net.conv(net.input(["batch", 4, "height", "width"]), 4, 6)
    net.end = net.bn(net.node("AveragePool", [x], kernel_shape=[2, 2]), 6)  # type: ignore[attr-defined]
    return net


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 18, 21])
def test_every_opset_from_7_on(opset: int) -> None:
    net = plain(opset)
    folding = check(net.model(net.end), IMAGE)
    assert left(folding.model) == 0
    assert [decision.action for decision in folding.plan] == ["fold"]


def test_an_opset_before_7_is_refused() -> None:
    net = plain()
    model = net.model(net.end)
    model.opset_import[0].version = 6
    with pytest.raises(bnfold.RefusedFileError, match="of opset 6"):
        fold_onnx(model)


def test_initializers_that_are_inputs_may_be_overridden() -> None:
    net = plain(8)
    model = net.model(net.end, ir_version=3)
    model.ir_version = 8  # from 4 on ONNX Runtime lets them be overridden
    folding = fold_onnx(model)
    assert left(folding.model) == 1
    assert any("6 initializers are inputs too" in note for note in folding.plan.notes)
    x = drawn(IMAGE)[0].astype(np.float32)
    other = {value.name: np.ones([d.dim_value for d in value.type.tensor_type.shape.dim], np.float32) * 0.5 for value in
             model.graph.input if value.name != "x"}  # fmt: skip
    import onnxruntime as ort

    overridden = [
        ort.InferenceSession(each.SerializeToString()).run(None, {"x": x, **other})[0]
        for each in (model, folding.model)
    ]
    assert np.array_equal(*overridden)


def test_initializers_that_are_inputs_fold_when_they_are_frozen() -> None:
    net = plain(8)
    folding = check(net.model(net.end, ir_version=3), IMAGE, freeze_inputs=True)
    assert left(folding.model) == 0
    assert [value.name for value in folding.model.graph.input] == ["x"]
    assert folding.model.ir_version == 4


def test_a_shared_weight_is_cloned_only_where_a_fold_needs_it() -> None:
    net = Net(1)
    x, shared, own = net.input(["n", 4, 8, 8]), net.weight(4, 4, 1, 1), net.weight(4, 4, 1, 1)
    first = net.bn(net.node("Conv", [x, shared]), 4)
    second = net.bn(net.node("Conv", [x, own]), 4)
    third = net.node("Conv", [x, shared])
    folding = check(net.model(first, second, third), IMAGE)
    names = [tensor.name for tensor in folding.model.graph.initializer]
    assert shared in names
    assert f"{shared}_folded" in names
    assert own in names
    assert f"{own}_folded" not in names


def branching(net: Net, x: str, y: str) -> str:
    """``If`` the sum of x is positive then bn(conv(x)) + y else bn(y), with x and y captured."""
    then, other = Net(5), Net(6)
    then.made = other.made = 100  # their names are not those of the graph around them
    inside = then.bn(then.conv(x, 4, 4, 1), 4)
    total = then.node("Add", [inside, y])
    others = other.bn(other.node("Identity", [y]), 4)
    for part, end, letter in ((then, total, "t"), (other, others, "e")):
        names = {output: f"{letter}_{output}" for node in part.nodes for output in node.output}
        names |= {tensor.name: f"{letter}_{tensor.name}" for tensor in part.initializers}
        for node in part.nodes:
            node.name = f"{letter}_{node.name}"
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for tensor in part.initializers:
            tensor.name = names[tensor.name]
        part.end = names[end]  # type: ignore[attr-defined]
    graphs = []
    for part in (then, other):
        end = helper.make_tensor_value_info(part.end, TensorProto.FLOAT, None)  # type: ignore[attr-defined]
        graphs.append(helper.make_graph(part.nodes, "body", [], [end], part.initializers))
    mean = net.node("ReduceMean", [x], keepdims=0)
    asked = net.node("Greater", [mean, net.constant(np.float32(0.0))])
    return str(net.node("If", [asked], then_branch=graphs[0], else_branch=graphs[1]))


@pytest.mark.parametrize("seed", [1, 4, 7])
def test_bodies_are_folded_inside_and_what_they_capture_stays(seed: int) -> None:
    net = Net(2)
    x = net.input(["n", 4, 8, 8])
    captured = net.bn(net.conv(x, 4, 4, 1), 4)  # its value is read in both bodies: it folds, and its value stays
    scaled = net.node("Relu", [captured])
    end = branching(net, scaled, captured)
    model = net.model(end)
    folding = fold_onnx(model)
    onnx.checker.check_model(folding.model)
    assert {d.batchnorm[0]: d.action for d in folding.plan} == {"b": "fold", "t": "fold", "e": "affine"}
    assert left(folding.model) == 0
    for inputs in (drawn(IMAGE, seed), [-np.abs(drawn(IMAGE, seed)[0])]):
        x32 = [value.astype(np.float32) for value in inputs]
        expected = session_answers(model, x32, optimised=False)
        for optimised in (False, True):
            assert peak_error(session_answers(folding.model, x32, optimised=optimised), expected) < 1e-4


def test_a_value_that_a_body_captures_stays_as_it_is() -> None:
    net = Net(2)
    x = net.input(["n", 4, 8, 8])
    convolved = net.conv(x, 4, 4, 1)
    end = branching(net, convolved, convolved)
    folding = fold_onnx(net.model(net.bn(convolved, 4), end))
    first = next(decision for decision in folding.plan if decision.batchnorm.startswith("batch"))
    assert (first.action, first.reason) == ("affine", "several-readers")


def test_a_body_that_returns_a_value_from_around_it_is_refused() -> None:
    """No runtime takes it: an Identity must stand between."""
    net = Net(6)
    x = net.conv(net.input(["n", 4, 8, 8]), 4, 4)
    out = helper.make_tensor_value_info
    bodies = [
        helper.make_graph([], "direct", [], [out(x, TensorProto.FLOAT, None)]),
        helper.make_graph([helper.make_node("Identity", [x], ["copy"])], "copied", [], [out("copy", 1, None)]),
    ]
    condition = net.constant(np.array(True))
    net.nodes.append(helper.make_node("If", [condition], ["end"], then_branch=bodies[0], else_branch=bodies[1]))
    with pytest.raises(bnfold.errors.RefusedFileError, match=f"`direct` returns `{x}`"):
        fold_onnx(net.model("end"))


def test_local_functions_are_inlined() -> None:
    held = Net(4)
    x = held.input(["n", 4, 8, 8])
    end = held.bn(held.conv(x, 4, 6), 6)
    weights = [tensor.name for tensor in held.initializers]
    names = [x, *weights]
    function = helper.make_function("mine", "Block", names, [end], held.nodes, [helper.make_opsetid("", 17)])
    called = helper.make_node("Block", names, ["y"], domain="mine", name="block")
    graph = helper.make_graph(
        [called],
        "g",
        held.inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        held.initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    folding = fold_onnx(model)
    assert left(folding.model) == 0
    x32 = [value.astype(np.float32) for value in drawn(IMAGE)]
    expected = session_answers(model, x32, optimised=False)
    assert peak_error(session_answers(folding.model, x32, optimised=True), expected) < 1e-4


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_keep_theirs(dtype: Any) -> None:
    net = plain(dtype=dtype)
    x = net.bn(net.end, 6)  # type: ignore[attr-defined]
    model = net.model(net.bn(net.node("Sigmoid", [x]), 6))
    folding = fold_onnx(model)
    onnx.checker.check_model(folding.model)
    assert left(folding.model) == 0
    assert {tensor.data_type for tensor in folding.model.graph.initializer} == {net.type}
    original, exact = folding.in_float64()
    inputs = drawn(IMAGE)
    assert peak_error(answers(exact, inputs), answers(original, inputs)) <= ALGEBRA


def test_a_weight_of_a_constant_node_keeps_its_type() -> None:
    net = Net(3, dtype=np.float16)
    value = numpy_helper.from_array(net.numbers(6, 4, 1, 1))
    x = net.node("Conv", [net.input(["n", 4, 8, 8]), net.node("Constant", [], value=value)])
    model = net.model(net.node("Relu", [net.bn(x, 6)]))
    del model.graph.value_info[:]
    folding = fold_onnx(model)
    assert left(folding.model) == 0
    assert {tensor.data_type for tensor in folding.model.graph.initializer} == {TensorProto.FLOAT16}


def test_bfloat16_keeps_its_type() -> None:
    net = plain(opset=22)
    model = net.model(net.end)  # type: ignore[attr-defined]
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, values.shape, values.flatten().tolist()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    folding = fold_onnx(model)
    assert left(folding.model) == 0
    assert {tensor.data_type for tensor in folding.model.graph.initializer} == {TensorProto.BFLOAT16}


def test_an_overflow_in_half_precision_refuses_the_fold() -> None:
    net = Net(3, dtype=np.float16)
    x = net.conv(net.input(["n", 4, 8, 8]), 4, 6)
    held = [
        net.constant(np.full(6, value, np.float16), "held") for value in (300.0, 0.0, 0.0, 0.0)
    ]  # a variance of 0: the scale is 300 / sqrt(eps)
    model = net.model(net.node("BatchNormalization", [x, *held], epsilon=1e-7))
    (decision,) = fold_onnx(model).plan
    assert (decision.action, decision.reason) == ("affine", "weight-not-finite")


def test_new_nodes_get_names_that_no_node_has() -> None:
    net = Net(3)
    end = net.node("Sigmoid", [net.bn(net.input(["n", 4]), 4)])
    model = net.model(end)
    model.graph.node[1].name = "batchnormalization5.product"
    folding = check(model, ((2, 4),))  # which ONNX Runtime refuses if two have one name
    assert [node.op_type for node in folding.model.graph.node] == ["Mul", "Add", "Sigmoid"]


def test_a_custom_domain_passes_untouched_and_nothing_moves_through_it() -> None:
    net = Net(3)
    x = net.conv(net.input(["n", 4, 8, 8]), 4, 6)
    net.nodes.append(helper.make_node("Relu", [x], ["own"], name="own", domain="someone"))
    end = net.bn("own", 6)
    net.initializers, kept = net.initializers, net.initializers
    graph = helper.make_graph(
        net.nodes, "g", net.inputs, [helper.make_tensor_value_info(end, TensorProto.FLOAT, [None] * 4)], kept
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("someone", 1)]
    folding = fold_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    (decision,) = folding.plan
    assert decision.action == "affine"
    assert "someone.Relu `own`" in decision.detail
    assert [node.domain for node in folding.model.graph.node if node.name == "own"] == ["someone"]


def test_names_metadata_and_free_dimensions_are_kept() -> None:
    net = plain()
    model = net.model(net.end)  # type: ignore[attr-defined]
    helper.set_model_props(model, {"who": "someone", "what": "a net"})
    model.doc_string, model.graph.doc_string = "of a model", "of a graph"
    model.model_version, model.producer_version, model.domain = 7, "1.2", "a.domain"
    dims = model.graph.output[0].type.tensor_type.shape.dim
    dims[0].dim_param = "batch"
    folded = fold_onnx(model).model
    assert {entry.key: entry.value for entry in folded.metadata_props} == {"who": "someone", "what": "a net"}
    for name in ("doc_string", "model_version", "producer_name", "producer_version", "domain", "ir_version"):
        assert getattr(folded, name) == getattr(model, name), name
    assert folded.graph.doc_string == "of a graph"
    assert folded.graph.name == model.graph.name
    assert list(folded.graph.input) == list(model.graph.input)
    assert list(folded.graph.output) == list(model.graph.output)
    before = {node.name for node in model.graph.node}
    assert {node.name for node in folded.graph.node} < before


def test_keep_leaves_a_node() -> None:
    net = plain()
    model = net.model(net.end)  # type: ignore[attr-defined]
    name = model.graph.node[-1].name
    folding = check(model, IMAGE, keep=[name])
    assert [(d.action, d.reason) for d in folding.plan] == [("keep", "kept-by-request")]
    assert left(folding.model) == 1
    with pytest.raises(bnfold.UnknownNameError, match=f"Did you mean {name}"):
        fold_onnx(model, keep=[f"{name}x"])


def test_the_model_is_of_the_kind_that_was_given(tmp_path: Path) -> None:
    net = plain()
    proto = net.model(net.end)  # type: ignore[attr-defined]
    onnx.save(proto, tmp_path / "net.onnx")
    graph = ir.from_proto(proto)
    assert isinstance(bnfold.fold_onnx(proto).model, onnx.ModelProto)
    of_graph = bnfold.fold_onnx(graph)
    assert isinstance(of_graph.model, ir.Model)
    assert ir.to_proto(graph).SerializeToString() == ir.to_proto(ir.from_proto(proto)).SerializeToString()
    for path in (tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        folding = bnfold.fold_onnx(path)
        assert isinstance(folding.model, ir.Model)
    of_graph.save(tmp_path / "folded.onnx")
    assert left(onnx.load(tmp_path / "folded.onnx")) == 0
    with pytest.raises(bnfold.FileAccessError, match="exists"):
        of_graph.save(tmp_path / "folded.onnx")


def test_a_batchnorm_that_two_outputs_return() -> None:
    net = Net(1)
    x = net.conv(net.input(["n", 4, 8, 8]), 4, 6)
    y = net.bn(x, 6)
    folding = check(net.model(y, net.node("Relu", [y])), IMAGE)
    assert [decision.action for decision in folding.plan] == ["fold"]


def test_a_batchnorm_at_input_and_output_becomes_something_with_its_name() -> None:
    net = Net(1)
    x = net.input(["n", 4, 8, 8])
    folding = check(net.model(net.bn(x, 4)), IMAGE)
    assert [decision.action for decision in folding.plan] == ["affine"]


def test_an_input_of_no_known_shape() -> None:
    net = Net(3)
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    x = net.bn(net.node("MaxPool", [net.conv("x", 4, 6)], kernel_shape=[2, 2]), 6, positive=True)
    x = net.node("Relu", [net.bn(net.node("Relu", [x]), 6)])
    ends = [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)]
    graph = helper.make_graph(net.nodes, "g", net.inputs, ends, net.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folding = fold_onnx(model)
    assert [decision.action for decision in folding.plan] == ["fold", "affine"]
    assert left(folding.model) == 0
    original, exact = folding.in_float64()
    inputs = drawn(IMAGE)
    assert peak_error(answers(exact, inputs), answers(original, inputs)) <= ALGEBRA


@pytest.mark.parametrize("seed", range(3000, 3012))
def test_random_graphs(seed: int) -> None:
    model, shapes = random_graph(seed)
    folding = fold_onnx(model)
    onnx.checker.check_model(folding.model)
    original, exact = folding.in_float64()
    for each in shapes:
        inputs = drawn(each)
        try:
            expected = answers(original, inputs)
        except Exception:  # the original does not take this size
            continue
        assert peak_error(answers(exact, inputs), expected) <= ALGEBRA


def test_a_constant_that_takes_the_type_of_a_value_does_not_read_it() -> None:
    """As torch's exporter writes the zeros of a convolution without a bias: of the type of what it convolves."""
    net = Net()
    normalised = net.bn(net.input(["batch", 4, "height", "width"]), 4)
    zero = net.constant(np.array(0.0, np.float64))
    zeros = net.node("Expand", [net.node("CastLike", [zero, normalised]), net.constant(np.array([5]))])
    model = net.model(net.node("Conv", [normalised, net.weight(5, 4, 3, 3), zeros]))
    typed = onnx.shape_inference.infer_shapes(model)
    folding = check(typed, [(2, 4, 8, 8)])
    assert [(decision.action, decision.direction) for decision in folding.plan] == [("fold", "forward")]


def test_a_normalisation_without_weights_as_torch_exports_it() -> None:
    """Its scale is a one of the type of its input, stretched to as many as that has channels; those are always four."""
    net = Net()
    x = net.conv(net.input(["batch", 3, "height", "width"]), 3, 4)
    many = net.node("Shape", [x], start=1, end=2)
    ones, zeros = (
        net.node("Expand", [net.node("CastLike", [net.constant(np.array([number])), x]), many]) for number in (1.0, 0.0)
    )
    statistics = [net.constant(net.numbers(4)), net.constant(net.numbers(4, positive=True))]
    model = net.model(net.node("BatchNormalization", [x, ones, zeros, *statistics], epsilon=1e-3))
    folding = check(onnx.shape_inference.infer_shapes(model), [(2, 3, 8, 8)], [(1, 3, 6, 9)])
    assert [decision.action for decision in folding.plan] == ["fold"]
    assert [node.op_type for node in folding.model.graph.node] == ["Conv"]


def test_a_scale_for_each_batch_is_no_constant() -> None:
    """The counter-example: as many ones as the batch, which may be that of the channels by chance."""
    net = Net()
    x = net.conv(net.input(["batch", 3, 8, 8]), 3, 4)
    many = net.node("Shape", [x], start=0, end=1)
    ones = net.node("Expand", [net.constant(np.array([1.0], np.float32)), many])
    given = [net.weight(4), net.constant(net.numbers(4)), net.constant(net.numbers(4, positive=True))]
    model = net.model(net.node("BatchNormalization", [x, ones, *given], epsilon=1e-3))
    folding = check(onnx.shape_inference.infer_shapes(model), [(4, 3, 8, 8)])
    assert [(decision.action, decision.reason) for decision in folding.plan] == [("keep", "computed-statistics")]


@pytest.mark.parametrize("seed", [5, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))])
def test_a_random_torch_graph_exported_as_it_is(seed: int) -> None:
    """Many more of them, and of those that are built directly, are run by ``benchmarks/bench_onnx_random.py``."""
    record = examine("exported", seed)
    assert "not_made" in record or record["error"] <= ALGEBRA, record
