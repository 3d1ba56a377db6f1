"""How much memory it takes to fold an ONNX file of 3 GB, whose weights lie in a file beside it.

    python benchmarks/bench_onnx_memory.py [--layers N] [--channels C]

Eleven 1x1 convolutions with weights of 268 MB each: after some a BatchNormalization, before some, after one a pool and
one behind it. The file is written to a temporary folder, folded and saved in a process of its own, and the peak of
that process is read (Linux counts in it what is mapped of files, too).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

FOLD = """
import resource, sys
from pathlib import Path
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import onnx, torch
import bnfold
bnfold.fold_onnx
from bnfold.files.onnx_file import write_onnx
from bnfold.onnx_graph.api import fold_onnx
before = peak()
folding = fold_onnx(Path(sys.argv[1]))
planned = peak()
folding.save(sys.argv[2])
import json
print(json.dumps({"interpreter": before, "folded": planned, "saved": peak(),
                  "actions": [d.action + " " + str(d.direction) for d in folding.plan]}))
"""


def made(path: Path, layers: int, channels: int) -> None:
    """Write the file."""
    random = np.random.default_rng(0)
    nodes: list[Any] = []
    small: list[Any] = []
    large: list[Any] = []
    value, offset = "x", 0
    with (path.parent / "weights.data").open("wb") as file:
        for layer in range(layers):
            if layer % 4 == 1:  # pulled into the layer after it: its producer is a pool of what others read
                value = _normalised(nodes, small, random, channels, nodes[-1].output[0], f"before{layer}")
            name = f"w{layer}"
            row = (random.standard_normal((64, channels)) / np.sqrt(channels)).astype(np.float32)
            for start in range(0, channels, 64):
                file.write((row * np.float32(1 + start / channels)).tobytes())
            large.append(_apart(name, (channels, channels, 1, 1), offset))
            offset += 4 * channels * channels
            nodes.append(helper.make_node("Conv", [value, name], [f"c{layer}"], name=f"conv{layer}"))
            value = f"c{layer}"
            if layer % 4 != 0:
                value = _normalised(nodes, small, random, channels, value, f"after{layer}")
            nodes.append(helper.make_node("Relu", [value], [f"r{layer}"], name=f"relu{layer}"))
            value = f"r{layer}"
    shape: list[int | str | None] = ["batch", channels, 2, 2]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        [*small, *large],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def _normalised(nodes: list[Any], small: list[Any], random: Any, channels: int, value: str, name: str) -> str:
    numbers = [random.standard_normal(channels), random.standard_normal(channels), random.standard_normal(channels)]
    given = []
    for what, array in zip("sbmv", [*numbers, np.abs(random.standard_normal(channels)) + 0.3], strict=True):
        small.append(numpy_helper.from_array(array.astype(np.float32), f"{name}.{what}"))
        given.append(f"{name}.{what}")
    nodes.append(helper.make_node("BatchNormalization", [value, *given], [f"{name}.out"], name=name))
    return f"{name}.out"


def _apart(name: str, shape: tuple[int, ...], offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    length = 4 * int(np.prod(shape))
    for key, entry in (("location", "weights.data"), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=entry)
    return tensor


def main() -> None:
    """Make it, fold it, say how much memory that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--channels", type=int, default=8192)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true", help="into results/onnx.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "large.onnx"
        made(path, options.layers, options.channels)
        run = subprocess.run(
            [sys.executable, "-c", FOLD, str(path), str(path.with_name("folded.onnx"))],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            sys.exit(run.stderr)
        found = json.loads(run.stdout.splitlines()[-1])
        onnx.checker.check_model(str(path.with_name("folded.onnx")))
    largest = 4 * options.channels**2
    whole = options.layers * largest
    forward, folded = (sum(what in action for action in found["actions"]) for what in ("forward", "fold"))
    text = (
        f"`python benchmarks/bench_onnx_memory.py`: {whole / 1e9:.2f} GB with external data, {options.layers} layers "
        f"of {largest / 1e6:.0f} MB each; {len(found['actions'])} BatchNormalizations, {folded} folded "
        f"({forward} forward). Peak of the process, without a proof: {found['saved'] / 1e9:.2f} GB, "
        f"{found['interpreter'] / 1e9:.2f} GB of it the interpreter with torch and onnx; "
        f"{(found['saved'] - largest) / 1e9:.2f} GB above the largest tensor."
    )
    print(text)
    print(found)
    if options.write:
        from benchmarks.onnx_results import write_section

        write_section("Memory", text)


if __name__ == "__main__":
    main()
