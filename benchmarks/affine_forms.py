"""What an explicit affine costs, by form: the measurement behind :mod:`bnfold.fold.explicit`.

    python -m benchmarks.affine_forms [--rounds 300]

Interleaved runs, one thread, medians in milliseconds, as Markdown. Under ONNX Runtime the affine stands where it stands
in a DenseNet: after a concatenation, before a relu and a 1x1 convolution. In torch it stands alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (96, (56, 56)),
    (288, (28, 28)),
    (544, (14, 14)),
    (30, (56, 56)),
    (64, (1024,)),
    (32, (16, 28, 28)),
)
Run = Callable[[], object]


def onnx_session(form: str, channels: int, space: tuple[int, ...]) -> onnxruntime.InferenceSession:
    """Return a session for cat -> affine in one form -> relu -> 1x1 convolution, at full optimisation."""
    random, ones = np.random.default_rng(0), (1,) * len(space)
    scale, shift = (random.normal(size=channels).astype("float32") for _ in range(2))
    weight = random.normal(size=(64, channels, *ones)).astype("float32")
    tensors: dict[str, np.ndarray[Any, Any]] = {"weight": weight}
    nodes = [helper.make_node("Concat", ["left", "right"], ["x"], axis=1)]
    if form == "BatchNormalization":
        zeros, units = np.zeros(channels, "float32"), np.ones(channels, "float32")
        tensors |= {"scale": scale, "shift": shift, "mean": zeros, "var": units}
        nodes.append(helper.make_node(form, ["x", "scale", "shift", "mean", "var"], ["y"], epsilon=0.0))
    elif form == "Mul+Add":
        tensors |= {"scale": scale.reshape(-1, *ones), "shift": shift.reshape(-1, *ones)}
        nodes.append(helper.make_node("Mul", ["x", "scale"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["scaled", "shift"], ["y"]))
    else:
        tensors |= {"scale": scale.reshape(-1, 1, *ones), "shift": shift}
        nodes.append(helper.make_node("Conv", ["x", "scale", "shift"], ["y"], group=channels, kernel_shape=ones))
    nodes.append(helper.make_node("Relu", ["y"], ["z"]))
    nodes.append(helper.make_node("Conv", ["z", "weight"], ["out"], kernel_shape=ones))
    half = channels // 2
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size, *space])
        for name, size in (("left", half), ("right", channels - half))
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "block", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def onnx_runs(channels: int, space: tuple[int, ...]) -> dict[str, Run]:
    """Return one run for each form under ONNX Runtime."""
    half, random = channels // 2, np.random.default_rng(1)
    feed = {
        "left": random.normal(size=(1, half, *space)).astype("float32"),
        "right": random.normal(size=(1, channels - half, *space)).astype("float32"),
    }

    def run(form: str) -> Run:
        session = onnx_session(form, channels, space)
        return lambda: session.run(None, feed)

    return {form: run(form) for form in ("BatchNormalization", "Mul+Add", "depthwise Conv")}


def torch_runs(channels: int, space: tuple[int, ...]) -> dict[str, Run]:
    """Return one run for each form in torch eager, contiguous."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, *space, generator=generator)
    scale, shift = torch.randn(2, channels, generator=generator)
    zero, one = torch.zeros(channels), torch.ones(channels)
    ones = (1,) * len(space)
    wide_scale, wide_shift = scale.reshape(-1, *ones), shift.reshape(-1, *ones)
    depthwise = getattr(torch, f"conv{len(space)}d")
    kernel = scale.reshape(-1, 1, *ones)
    return {
        "BatchNormalization": lambda: torch.batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0, False),
        "Mul+Add": lambda: x * wide_scale + wide_shift,
        "depthwise Conv": lambda: depthwise(x, kernel, shift, groups=channels),
        "addcmul": lambda: torch.addcmul(wide_shift, x, wide_scale),
    }


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the median time of each run in milliseconds, the runs taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 5):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for title, make in (("ONNX Runtime, in a block", onnx_runs), ("torch eager, alone", torch_runs)):
        print(f"\n{title} (ms)\n")
        for index, (channels, space) in enumerate(SHAPES):
            with torch.no_grad():
                found = medians(make(channels, space), rounds)
            if not index:
                print("| C, space | " + " | ".join(found) + " |\n| --- |" + " --- |" * len(found))
            best = min(found.values())
            cells = [f"**{value:.3f}**" if value == best else f"{value:.3f}" for value in found.values()]
            print(f"| {channels}, {'x'.join(map(str, space))} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
