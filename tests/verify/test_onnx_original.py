"""An original that is ONNX: right and wrong candidates, words where there is no comparing, and its float64 form."""

from __future__ import annotations

import copy
import functools
import math
import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import bnfold
from bnfold.errors import RefusedFileError, UsageError
from bnfold.export import to_onnx
from bnfold.verify import verify
from bnfold.verify.onnx_double import DoubleModel, evaluator, in_double
from bnfold.verify.onnx_kernels import KERNELS, NARROW, RUNTIME, WHOLE
from bnfold.verify.onnx_original import OnnxOriginal
from tests.networks import NETWORKS, built, normal
from tests.verify.mutants import MUTANTS, apply, sites_of

SOME = ("lenet", "two-inputs", "several-outputs")


@functools.cache
def exported(name: str, *, folded: bool = False) -> onnx.ModelProto:
    model, inputs = NETWORKS[name]()
    return to_onnx(bnfold.fold(model, inputs).module if folded else model, inputs, optimize=folded)


def model_of(nodes, inputs, outputs, weights=(), *, opset: int = 20, others=()) -> onnx.ModelProto:
    """A model by hand; inputs and outputs are (name, type, shape)."""
    values = [[helper.make_tensor_value_info(*value) for value in part] for part in (inputs, outputs)]
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(list(nodes), "g", *values, tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in others)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


# --- right and wrong candidates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_a_right_candidate_passes_as_torch_and_as_onnx(name, tmp_path):
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    path = tmp_path / "original.onnx"
    path.write_bytes(exported(name).SerializeToString())
    for report in (
        verify(path, folding.module, inputs, onnx=False),
        verify(str(path), exported(name, folded=True), inputs),
    ):
        assert report.passed, str(report)
        assert [note.split(" was computed")[0] for note in report.notes] == ["In float64 the original"]


@pytest.mark.parametrize("mutant", list(MUTANTS)[::4])
def test_a_wrong_torch_candidate_fails(mutant):
    model, inputs = NETWORKS["lenet"]()
    folding = bnfold.fold(model, inputs)
    if apply(MUTANTS[mutant], sites_of(model, folding)[1]):
        assert verify(exported("lenet"), folding.module, inputs, onnx=False).verdict == "failed"


def test_a_wrong_onnx_candidate_fails():
    _, inputs = NETWORKS["lenet"]()
    for position in range(len(exported("lenet", folded=True).graph.initializer)):
        wrong = copy.deepcopy(exported("lenet", folded=True))
        tensor = wrong.graph.initializer[position]
        values = numpy_helper.to_array(tensor).copy()
        if values.dtype == np.float32 and values.ndim > 1:
            values.flat[np.abs(values).argmax()] *= 1.001
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            assert verify(exported("lenet"), wrong, inputs).verdict == "failed", tensor.name


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("form", ["float64", "its own precision"])
@pytest.mark.parametrize("network", ["lenet", "resnet18", "inverted-residual", "conv1d", "two-inputs"])
def test_every_mutant_is_caught_and_no_right_fold_is_alarming(network, form, monkeypatch):
    if form != "float64":
        monkeypatch.setattr("bnfold.verify.onnx_original.in_double", None)
    model, inputs = NETWORKS[network]()
    original = exported(network)
    for seed in range(3):
        assert verify(original, bnfold.fold(model, inputs).module, inputs, onnx=False, seed=seed).passed
    for mutant in MUTANTS:
        folding = bnfold.fold(model, inputs)
        sites = sites_of(model, folding)
        if apply(MUTANTS[mutant], sites[len(sites) // 2]):
            assert verify(original, folding.module, inputs, onnx=False).verdict == "failed", mutant


def own_operator(factor: float = 1.0) -> onnx.ModelProto:
    """A model with an operator of ONNX Runtime's own, which has no float64 form."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(16, 16)).astype(np.float32) for name in ("a", "b")}
    weights["b"] = (weights["b"] * factor).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"], domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "b"], ["y"]),
    ]
    floats = ("batch", 16)
    return model_of(
        nodes, [("x", TensorProto.FLOAT, floats)], [("y", TensorProto.FLOAT, floats)], weights, others=["com.microsoft"]
    )


class SameInTorch(nn.Module):
    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        weights = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
        }
        self.a, self.b = nn.Parameter(weights["a"]), nn.Parameter(weights["b"])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x @ self.a) @ self.b


def test_without_a_float64_form_the_floor_is_what_the_last_place_of_the_weights_moves():
    x = normal(2, 16)
    original, same = own_operator(), SameInTorch(own_operator()).eval()
    report = verify(original, same, x, onnx=False)
    assert report.passed, str(report)
    assert any("has no float64 form" in note and "noise floor" in note for note in report.notes)
    assert verify(original, own_operator(), x).passed
    assert verify(original, own_operator(1 + 3e-6), x).verdict == "failed"
    assert verify(original, SameInTorch(own_operator(1 + 3e-6)).eval(), x, onnx=False).verdict == "failed"
    wrong = copy.deepcopy(same)
    with torch.no_grad():
        wrong.a[3, 5] *= 1.001
    assert verify(original, wrong, x, onnx=False).verdict == "failed"


def test_an_export_of_the_candidate_is_compared_too():
    model, inputs = NETWORKS["lenet"]()
    report = verify(exported("lenet"), bnfold.fold(model, inputs).module, inputs, onnx=exported("lenet", folded=True))
    assert report.passed, str(report)
    assert [c.name for c in report.comparisons][2:] == [
        "ONNX Runtime, optimisations off",
        "ONNX Runtime, optimisations on",
    ]


# --- what cannot be compared ------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """``forward(left, right)``: the two are not to be exchanged."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left * 2 - right, right * 3


def weighted(inputs=("left", "right"), outputs=("output_0", "output_1"), dtype=TensorProto.FLOAT, shape=("batch", 3)):
    kind = np.float32 if dtype == TensorProto.FLOAT else np.float64
    nodes = [
        helper.make_node("Mul", ["left", "two"], ["twice"]),
        helper.make_node("Sub", ["twice", "right"], ["output_0"]),
        helper.make_node("Mul", ["right", "three"], ["output_1"]),
    ]
    weights = {"two": np.array(2, kind), "three": np.array(3, kind)}
    return model_of(nodes, [(n, dtype, shape) for n in inputs], [(n, dtype, shape) for n in outputs], weights)


def renamed(model: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    for node in model.graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    return model


PAIR = (normal(2, 3), normal(2, 3, seed=8))


def test_inputs_and_outputs_of_the_same_names_are_matched_in_any_order():
    assert verify(Weighted().eval(), weighted(), PAIR).passed
    assert verify(Weighted().eval(), weighted(inputs=("right", "left")), PAIR).passed
    assert verify(Weighted().eval(), weighted(outputs=("output_1", "output_0")), PAIR).passed
    assert verify(weighted(), weighted(inputs=("right", "left"), outputs=("output_1", "output_0")), PAIR).passed


def test_others_are_matched_by_position():
    assert verify(Weighted().eval(), renamed(weighted(), left="a", right="b", output_0="y", output_1="z"), PAIR).passed
    swapped = renamed(weighted(inputs=("right", "left")), left="a", right="b")
    assert verify(Weighted().eval(), swapped, PAIR).verdict == "failed"


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (own_operator, r"takes 1 input \(x\), and 2 are given"),
        (lambda: weighted(dtype=TensorProto.DOUBLE), "its input `left` is float64, and float32 is given"),
        (lambda: weighted(shape=("batch", 4)), "its input `left` is declared as batchx4, and 2x3 is given"),
        (lambda: weighted(shape=(5, 3)), "its input `left` is declared as 5x3, and 2x3 is given"),
        (lambda: weighted(outputs=("output_0",)), "it has 1 output, and the original 2 tensors"),
    ],
)
def test_what_cannot_be_compared_is_said_in_words(candidate, words):
    for original in (Weighted().eval(), weighted()):
        report = verify(original, candidate(), PAIR)
        assert report.verdict == "failed"
        assert re.search(words, report.reason), report.reason


def test_a_candidate_of_one_batch_size_is_compared_at_that_size():
    fixed = weighted(shape=(2, 3))
    report = verify(Weighted().eval(), fixed, PAIR)
    assert report.passed, str(report)
    assert "The batch is fixed at 2: the candidate is an export that declares it." in report.notes
    assert [case for case in report.cases if "batch 2" in case] == list(report.cases[1:])


def test_an_original_that_does_not_take_the_example_is_a_mistake_of_the_user_s():
    with pytest.raises(UsageError, match=r"original does not take the example inputs: its input `left` is float32"):
        verify(weighted(), Weighted().eval(), tuple(x.double() for x in PAIR))


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not onnx")
    with pytest.raises(RefusedFileError):
        OnnxOriginal(path, PAIR)


# --- the float64 form -------------------------------------------------------------------------------------------------


def widened(model):
    return ir.to_proto(in_double(ir.from_proto(model)))


@pytest.mark.parametrize("name", [*SOME, *(pytest.param(n, marks=pytest.mark.long) for n in NETWORKS if n not in SOME)])
def test_the_float64_form_is_the_torch_model_in_float64(name):
    model, inputs = NETWORKS[name]()
    exact = evaluator(widened(exported(name)))
    got = exact.run(None, dict(zip(exact.input_names, (x.double().numpy() for x in inputs), strict=True)))
    with torch.no_grad():
        want = copy.deepcopy(model).double()(*(x.double() for x in inputs))
    wanted = list(want.values()) if isinstance(want, dict) else [want]
    for left, right in zip(wanted, got, strict=True):
        assert right.dtype == np.float64
        assert float((left - torch.from_numpy(right)).abs().max() / left.abs().max()) < 1e-9


def test_casts_constants_and_declared_types_are_widened():
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Constant", [], ["third"], value_float=1 / 3),
        helper.make_node("Constant", [], ["list"], value_floats=[0.1, 0.2, 0.3]),
        helper.make_node("CastLike", ["third", "half"], ["like"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Mul", ["half", "like"], ["product"]),
        helper.make_node("Cast", ["product"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["back", "list"], ["sum"]),
        helper.make_node("Add", ["sum", "zeros"], ["y"]),
    ]
    shape = {"shape": np.array([3], np.int64)}
    model = model_of(nodes, [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, ["n", 3])], shape)
    onnx.checker.check_model(widened(model))
    x = normal(2, 3).double().numpy()
    (y,) = evaluator(widened(model)).run(None, {"x": x})
    wanted = x * np.float64(np.float32(1 / 3)) + np.array([0.1, 0.2, 0.3], np.float32).astype(np.float64)
    assert y.dtype == np.float64
    assert np.abs(y - wanted).max() < 1e-15


def op(name: str, arrays: dict[str, np.ndarray], outputs: int = 1, *, opset: int = 20, **attributes) -> onnx.ModelProto:
    node = helper.make_node(name, list(arrays), [f"y{i}" for i in range(outputs)], **attributes)
    kinds = {np.dtype(np.float64): TensorProto.DOUBLE, np.dtype(np.int64): TensorProto.INT64}
    kinds |= {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8}
    inputs = [(key, kinds[value.dtype], value.shape) for key, value in arrays.items() if key]
    made = [(f"y{i}", TensorProto.DOUBLE, None) for i in range(outputs)]
    return model_of([node], inputs, made, opset=opset)


def doubles(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def operator_cases():
    x, w = doubles(2, 4, 9, 8), doubles(6, 2, 3, 3)
    conv = {"x": x, "w": w, "b": doubles(6)}
    for attributes in ({}, {"strides": [2, 1]}, {"pads": [1, 2, 1, 2]}, {"dilations": [2, 2]}, {"pads": [0, 1, 1, 2]}):
        yield "Conv", conv, {"group": 2, **attributes}
    yield "Conv", {"x": x, "w": doubles(5, 4, 3, 3)}, {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3]}
    yield "Conv", {"x": doubles(2, 3, 9), "w": doubles(4, 3, 2)}, {}
    transposed = {"x": doubles(1, 4, 5, 5), "w": doubles(4, 3, 3, 3)}
    for attributes in ({}, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, {"dilations": [2, 1]}):
        yield "ConvTranspose", transposed, attributes
    for name in ("MaxPool", "AveragePool"):
        for attributes in ({}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"ceil_mode": 1, "strides": [2, 2]}):
            yield name, {"x": x}, {"kernel_shape": [3, 3], **attributes}
    yield "AveragePool", {"x": x}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    yield "MaxPool", {"x": x}, {"kernel_shape": [2, 2], "dilations": [2, 2]}
    statistics = {"s": doubles(4), "b": doubles(4, seed=2), "m": doubles(4, seed=3), "v": np.abs(doubles(4, seed=4))}
    yield "BatchNormalization", {"x": x, **statistics}, {"epsilon": 1e-3}
    sizes = {"x": doubles(1, 2, 4, 5), "": x, " ": x, "sizes": np.array([1, 2, 8, 10])}
    for mode, coordinates in (("linear", "half_pixel"), ("linear", "align_corners"), ("nearest", "asymmetric")):
        yield "Resize", sizes, {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": "floor"}
        scales = {"x": doubles(1, 2, 4, 5), "": x, "scales": np.array([1, 1, 2, 3], np.float32)}
        yield "Resize", scales, {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": "floor"}
    yield "Resize", sizes, {"mode": "cubic"}
    whole = np.random.default_rng(5).integers(-100, 100, (4, 3, 2)).astype(np.int8)
    yield "DequantizeLinear", {"q": whole, "s": np.array(0.5), "z": np.array(3, np.int8)}, {}
    for axis in (0, 2, -2):
        size = whole.shape[axis]
        given = {"q": whole, "s": doubles(size), "z": np.arange(size).astype(np.int8)}
        yield "DequantizeLinear", given if axis else {key: given[key] for key in "qs"}, {"axis": axis}
    yield "Relu", {"x": x}, {}


OPERATORS = list(operator_cases())


@pytest.mark.parametrize("case", range(len(OPERATORS)), ids=lambda n: f"{OPERATORS[n][0]}-{n}")
def test_a_quick_operator_computes_what_the_reference_does(case):
    name, arrays, attributes = OPERATORS[case]
    if name == "Resize" and "sizes" in arrays:
        arrays = {"x": arrays["x"], "roi": doubles(0), "none": np.zeros(0, np.float32), "sizes": arrays["sizes"]}
    elif name == "Resize":
        arrays = {"x": arrays["x"], "roi": doubles(0), "scales": arrays["scales"]}
    model = op(name, arrays, **attributes)
    (want,) = ReferenceEvaluator(model).run(None, arrays)
    (got,) = evaluator(model).run(None, arrays)
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-12 * np.abs(want).max()


def test_every_quick_operator_is_compared_with_the_reference():
    """But for those that it gets wrong, which are compared with ONNX Runtime."""
    assert {name for name, _, _ in OPERATORS} == KERNELS.keys() - WHOLE - {"LRN", "Upsample"}


@pytest.mark.parametrize(
    ("name", "attributes", "function"),
    [
        ("Erf", {}, math.erf),
        ("Gelu", {}, lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        (
            "Gelu",
            {"approximate": "tanh"},
            lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_the_error_function_is_not_rounded_to_float32_as_in_the_reference(name, attributes, function):
    x = doubles(50) * 3
    (got,) = evaluator(op(name, {"x": x}, **attributes)).run(None, {"x": x})
    assert np.abs(got - np.array([function(value) for value in x])).max() < 1e-14


def under_runtime(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The answer of ONNX Runtime in the types that the model declares."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, arrays)[0]


def window_cases():
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield {"auto_pad": auto, "strides": [2, 1]}
    for pads in ([0, 0, 1, 1], [2, 1, 0, 1], [0, 0, 2, 0]):
        yield {"pads": pads, "strides": [2, 3]}
        yield {"pads": pads, "strides": [3, 2], "ceil_mode": 1}
    yield {"ceil_mode": 1, "strides": [4, 4]}
    yield {"pads": [1, 1, 1, 1], "dilations": [2, 1]}


@pytest.mark.parametrize("attributes", list(window_cases()), ids=str)
@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "AveragePool counting", "Conv", "ConvTranspose"])
def test_windows_lie_where_those_of_onnx_runtime_do(name, attributes):
    """Not those of the reference, which for pools with uneven padding lie elsewhere."""
    x, w = doubles(2, 4, 9, 8).astype(np.float32), doubles(4, 4, 3, 3).astype(np.float32)
    if "Conv" in name and "ceil_mode" in attributes:
        attributes = {key: value for key, value in attributes.items() if key != "ceil_mode"}
    given = {"x": x, "w": w} if "Conv" in name else {"x": x}
    more = {} if "Conv" in name else {"kernel_shape": [3, 3]}
    if name.endswith("counting"):
        more["count_include_pad"] = 1
    model = op(name.split()[0], given, **more, **attributes)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    want = under_runtime(model, given)
    double = DoubleModel(in_double(ir.from_proto(model)))
    got = double([torch.from_numpy(value) for value in given.values()])[0][1].numpy()
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert double.engines.keys() == {"torch"}


def test_a_sampled_grid_is_in_float64():
    grid = np.random.default_rng(2).uniform(-1.2, 1.2, (2, 5, 6, 2))
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            arrays = {"x": doubles(2, 3, 8, 7), "grid": grid}
            model = op("GridSample", arrays, mode=mode, padding_mode=padding, align_corners=1)
            (got,) = evaluator(model).run(None, arrays)
            assert np.abs(got - under_runtime(model, arrays)).max() < 1e-12


def scattered(x: np.ndarray, at: np.ndarray, by: np.ndarray) -> np.ndarray:
    values = x.copy()
    np.put_along_axis(values, at, by, 0)
    return values


X, AT, BY = doubles(5, 4), np.array([[0, 4, 1, 1]]), doubles(1, 4, seed=9)
PLANE = doubles(1, 2, 6, 6)
RUN = {
    "CumSum": ({"x": X, "axis": np.array(1)}, {}, np.cumsum(X, 1)),
    "GatherElements": ({"x": X, "at": AT}, {"axis": 0}, np.take_along_axis(X, AT, 0)),
    "GatherND": ({"x": X, "at": AT.T}, {}, X[AT[0]]),
    "MaxPool": (
        {"x": PLANE},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        PLANE.reshape(1, 2, 3, 2, 3, 2).max((3, 5)),
    ),
    "ScatterElements": ({"x": X, "at": AT, "by": BY}, {"axis": 0}, scattered(X, AT, BY)),
    "ScatterND": ({"x": X, "at": np.array([[3]]), "by": BY}, {}, np.concatenate([X[:3], BY, X[4:]])),
    "TopK": ({"x": X, "k": np.array([3])}, {}, -np.sort(-X, 1)[:, :3]),
}


@pytest.mark.parametrize("name", sorted(RUNTIME))
def test_what_onnx_runtime_computes_is_in_float64_and_told(name):
    arrays, attributes, want = RUN[name]
    model = op(name, arrays, 2 if name in ("MaxPool", "TopK") else 1, **attributes)
    if len(model.graph.output) > 1:
        model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    double = DoubleModel(ir.from_proto(model))
    got = double([torch.from_numpy(value) for value in arrays.values()])[0][1].numpy()
    assert double.engines == {"ONNX Runtime": {name}}
    assert np.abs(got - want).max() < 1e-14


def test_a_proof_says_who_computed_it():
    model, inputs = NETWORKS[SOME[0]]()
    report = verify(exported(SOME[0]), model, inputs, onnx=False)
    said = [note for note in report.notes if note.startswith("In float64 the original was computed")]
    assert len(said) == 1
    assert "Conv" in said[0].split(" by torch")[0]
    assert "by the reference implementation of ONNX" in said[0]


def test_a_grouped_transposed_convolution_is_torch_s():
    layer = built(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, padding=1)).double()
    x = doubles(2, 4, 5, 5)
    arrays = {"x": x, "w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    space = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    (got,) = evaluator(op("ConvTranspose", arrays, group=2, **space)).run(None, arrays)
    assert np.abs(got - layer(torch.from_numpy(x)).detach().numpy()).max() < 1e-12


@pytest.mark.parametrize("name", sorted(NARROW))
def test_an_operator_that_the_reference_rounds_has_no_float64_form(name):
    with pytest.raises(ValueError, match=f"{name} in float32"):
        evaluator(op(name, {"x": doubles(3)}))


def test_an_old_batch_normalization_is_in_eval_mode():
    """The reference takes one of opset 9 to be in training mode, whatever its outputs."""
    network = built(lambda: nn.Sequential(nn.BatchNorm2d(4)))
    x = doubles(2, 4, 5, 5)
    bn = network[0]
    arrays = {"s": bn.weight, "b": bn.bias, "m": bn.running_mean, "v": bn.running_var}
    given = {"x": x, **{key: value.detach().double().numpy() for key, value in arrays.items()}}
    (got,) = evaluator(op("BatchNormalization", given, opset=9, epsilon=bn.eps)).run(None, given)
    with torch.no_grad():
        want = network.double()(torch.from_numpy(x)).numpy()
    assert np.abs(got - want).max() < 1e-12


OLD: list[tuple[str, int, dict[str, np.ndarray], dict]] = [
    *(("Upsample", 7, {}, {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]}) for mode in ("nearest", "linear")),
    *(
        (name, opset, {"scales": np.array([1, 1, 2, 3], np.float32)}, {"mode": mode})
        for name, opset in (("Upsample", 9), ("Resize", 10))
        for mode in ("nearest", "linear")
    ),
    *((name, 11, {}, attributes) for name in ("Softmax", "LogSoftmax", "Hardmax") for attributes in ({}, {"axis": -2})),
    ("Softmax", 13, {}, {"axis": 1}),
    *(("LRN", 13, {}, {"size": size, "alpha": 0.5, "bias": 2.0}) for size in (3, 5)),
]


@pytest.mark.parametrize("case", OLD, ids=lambda case: f"{case[0]}-{case[1]}-{case[3]}")
def test_what_the_reference_has_no_form_of_computes_what_the_runtime_does(case):
    name, opset, more, attributes = case
    x = doubles(2, 3, 4, 5)
    (got,) = evaluator(op(name, {"x": x, **more}, opset=opset, **attributes)).run(None, {"x": x, **more})
    narrow = op(name, {"x": x.astype(np.float32), **more}, opset=opset, **attributes)
    narrow.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    narrow.ir_version = 8
    session = ort.InferenceSession(narrow.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x.astype(np.float32), **more})
    assert got.dtype == np.float64
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-5
