"""What a verification costs, in plain passes of the same inputs: ResNet-50 at 224x224, one thread, CPU seconds.

    python benchmarks/bench_verify.py [ROUNDS]      (3 unless told)

Each round runs in turn: one float32 and one float64 pass of the original over all inputs that the verification uses,
the verification of the folded model without its plan, with it, and with it and its ONNX export (made beforehand). A
ratio is that of two times of the same round; the table has the median, the least and the largest. Allowed, without
ONNX, are six float32 passes and three float64 ones.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import bnfold
from bnfold.export import onnx_of
from bnfold.files.code import resolve_spec
from bnfold.verify import verify
from bnfold.verify.evaluate import cases_of
from bnfold.verify.reference import exact_arithmetic

ROOT = Path(__file__).resolve().parent.parent
FLOAT32, FLOAT64 = 6, 3


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one call: other work on the machine does not count."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resolve_spec(f"{ROOT / 'examples' / 'resnet.py'}:resnet50").eval()
    settle(model)
    x = torch.randn(2, 3, 224, 224)
    folding = bnfold.fold(model, x)
    inputs = [case.inputs for case in cases_of((x,), (), seed=0, thorough=False)]
    double = copy.deepcopy(model).double()
    wide = [tuple(value.double() for value in values) for values in inputs]
    export = onnx_of(folding.module, (x,)).model

    def passed(**options: object) -> None:
        report = verify(model, folding.module, x, **options)  # type: ignore[arg-type]
        assert report.passed, str(report)

    work: dict[str, Callable[[], object]] = {
        "float32": lambda: [model(*values) for values in inputs],
        "float64": lambda: [double(*values) for values in wide],
        "without the plan": lambda: passed(onnx=False),
        "with the plan": lambda: passed(onnx=False, folding=folding),
        "with the plan and ONNX Runtime": lambda: passed(onnx=export, folding=folding),
    }
    with exact_arithmetic():
        for name in ("float32", "float64"):  # the first passes choose their kernels
            work[name]()
        found = [{name: cpu_seconds(run) for name, run in work.items()} for _ in range(rounds)]
    for name in ("float32", "float64"):
        print(f"one {name} pass of {sum(len(v[0]) for v in inputs)} images: {told([r[name] for r in found])} s")
    print(f"\n| verification | s | in float32 passes | of {FLOAT32} float32 + {FLOAT64} float64 passes |")
    print("| --- | --- | --- | --- |")
    for name in list(work)[2:]:
        seconds = [r[name] for r in found]
        plain = [r[name] / r["float32"] for r in found]
        share = [r[name] / (FLOAT32 * r["float32"] + FLOAT64 * r["float64"]) for r in found]
        print(f"| {name} | {told(seconds)} | {told(plain)} | {told(share)} |")


def settle(model: nn.Module) -> None:
    """Give the BatchNorms statistics and weights that no fold can ignore."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2)
        elif name.endswith("running_mean") or (tensor.ndim == 1 and tensor.is_floating_point()):
            tensor.data.add_(torch.randn(tensor.shape), alpha=0.1)


def told(values: list[float]) -> str:
    """Return the median, and the least and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
