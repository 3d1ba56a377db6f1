"""What ONNX Runtime makes of negative and zero scales behind a DequantizeLinear.

    python benchmarks/bench_dequantised.py

A fold multiplies the scales of a convolution's weights by those of a BatchNorm, which have either sign. Two tables: a
convolution of dequantised weights, its error against float64 with ONNX Runtime's optimisations off and on; and one
whose input and output are quantised, too, where the optimiser computes it in whole numbers: the largest difference
between off and on, in steps of the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)
POSITIVE = np.abs(RANDOM.standard_normal(6)) * 0.02 + 0.005
SCALES = {
    "positive": POSITIVE,
    "of both signs": POSITIVE * np.array([1, -1] * 3),
    "some zero": POSITIVE * np.array([1, -1, 0, 1, -1, 0]),
}
X = RANDOM.standard_normal((2, 4, 8, 8)).astype(np.float32)


def model(scales: Any, opset: int, weights: Any, values: Any = None, bias: bool = True) -> tuple[onnx.ModelProto, Any]:
    """Return a convolution of dequantised weights, and these in float64; between quantised values if a type is told."""
    whole = RANDOM.integers(0 if weights == np.uint8 else -100, 100, (6, 4, 3, 3)).astype(weights)
    scales = np.asarray(scales, np.float32)
    held = {"q": whole, "s": scales, "b": RANDOM.standard_normal(6).astype(np.float32)}
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0)]
    x, y = "x", "y"
    if values is not None:
        held |= {"xs": np.float32(0.02), "ys": np.float32(0.2), "z": values(128 if values == np.uint8 else 0)}
        nodes.append(helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "xs", "z"], ["xd"]))
        x, y = "xd", "c"
    nodes.append(helper.make_node("Conv", [x, "w", *(["b"] if bias else [])], [y]))
    if values is not None:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "ys", "z"], ["cq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "ys", "z"], ["y"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", X.shape), ("y", None))
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made, (whole * scales.astype(np.float64).reshape(-1, 1, 1, 1), held["b"] if bias else None)


def answer(made: onnx.ModelProto, *, optimised: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def exact(weight: Any, bias: Any) -> Any:
    import torch

    x, kernel = (torch.from_numpy(np.asarray(part, np.float64)) for part in (X, weight))
    return torch.conv2d(x, kernel, None if bias is None else torch.from_numpy(bias.astype(np.float64))).numpy()


def main() -> None:
    """Print both tables."""
    print(f"ONNX Runtime {ort.__version__}\n\nweights alone: error over the largest value\n")
    print("| opset | scales | off | on |\n| --- | --- | --- | --- |")
    for opset in (13, 19, 21):
        for name, scales in SCALES.items():
            made, parts = model(scales, opset, np.int8)
            right = exact(*parts)
            errors = [np.abs(answer(made, optimised=on) - right).max() / np.abs(right).max() for on in (False, True)]
            print(f"| {opset} | {name} | {errors[0]:.1e} | {errors[1]:.1e} |")
    print("\nvalues too: off and on differ by so many steps of 256\n")
    print("| values | weights | bias | positive | of both signs | some zero |\n| --- | --- | --- | --- | --- | --- |")
    for values, weights in ((np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)):
        for bias in (False, True):
            row = []
            for scales in SCALES.values():
                made, _ = model(scales, 21, weights, values, bias)
                steps = np.abs(answer(made, optimised=True) - answer(made, optimised=False)).max() / 0.2
                row.append(f"{steps:.0f}")
            print(f"| {values.__name__} | {weights.__name__} | {'float' if bias else 'none'} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
