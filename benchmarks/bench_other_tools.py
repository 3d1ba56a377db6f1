"""How many BatchNorms other tools leave, and how often they change the function: the table in the README.

    python benchmarks/bench_other_tools.py          # on the random graphs, only what works on a torch.fx graph
    python benchmarks/bench_other_tools.py --all    # all tools on all graphs: half an hour

The networks are those of the tests, with random weights and statistics of both signs: small ones of usual kinds
(ResNet, VGG, DenseNet, RepVGG and others), and random graphs of convolutions, pools, sums, concatenations, views and
shared layers. What bnfold made an explicit affine counts as left. A function is changed where an output in float64
(for ONNX Runtime, in float32) is further from the original's than rounding explains. ONNX Runtime and TorchScript are
given the original, not what bnfold made.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import bnfold  # noqa: E402
from bnfold.capture.nests import flatten  # noqa: E402

NETWORKS: dict[str, Any] = import_module("tests.networks").NETWORKS
random_net: Any = import_module("tests.fold.random_graphs").random_net

FLOAT64, FLOAT32 = 1e-9, 1e-3  # of the largest output: far above rounding, far below the mistakes seen

Outcome = tuple[int, float]
"""BatchNorms left, error relative to the largest output."""

RANDOM = 100


@dataclass
class Row:
    """Sums over the networks; one that stopped with an error has all its BatchNorms left."""

    left: int = 0
    changed: int = 0
    failed: int = 0


def by_bnfold(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outcome:
    folding = bnfold.fold(model, inputs)
    return folding.plan.summary["affine"] + folding.plan.summary["keep"], _error(model, folding.module, inputs)


def by_fuse(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outcome:
    from torch.fx.experimental.optimization import fuse

    fused: Any = fuse(copy.deepcopy(model))
    return _batchnorm_calls(fused), _error(model, fused, inputs)


def by_torchscript(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outcome:
    script: Any = torch.jit
    frozen = script.optimize_for_inference(script.freeze(script.trace(model, inputs)))
    left = sum(node.kind() == "aten::batch_norm" for node in frozen.inlined_graph.nodes())
    return left, _error(model, frozen, inputs)


def by_onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outcome:
    """Export as users do, and let ONNX Runtime do all that it does to the graph before it picks kernels."""
    import onnx
    import onnxruntime

    from bnfold.export import to_onnx

    single, small = copy.deepcopy(model).float(), tuple(value.float() for value in inputs)
    exported = to_onnx(single, small)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        session = onnxruntime.InferenceSession(
            exported.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    fed = {each.name: value.numpy() for each, value in zip(session.get_inputs(), small, strict=True)}
    found = [torch.from_numpy(value).double() for value in session.run(None, fed)]
    return kinds.count("BatchNormalization"), _distance(_outputs(model, inputs), found)


QUICK = ("bnfold", "torch.fx.experimental.optimization.fuse")
TOOLS: dict[str, tuple[Callable[..., Outcome], float]] = {
    "bnfold": (by_bnfold, FLOAT64),
    "torch.fx.experimental.optimization.fuse": (by_fuse, FLOAT64),
    "torch.jit.freeze + optimize_for_inference": (by_torchscript, FLOAT64),
    "torch.onnx.export, then ONNX Runtime's optimiser": (by_onnxruntime, FLOAT32),
}


def _batchnorm_calls(graph: torch.fx.GraphModule) -> int:
    """Count the calls that an output depends on, since a layer may be called several times, or in vain."""
    graph.graph.eliminate_dead_code()
    layers = dict(graph.named_modules())
    return sum(
        node.target is nn.functional.batch_norm
        or (node.op == "call_module" and isinstance(layers[str(node.target)], nn.modules.batchnorm._BatchNorm))
        for node in graph.graph.nodes
    )


def _outputs(module: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf.value for leaf in flatten(module(*(value.clone() for value in inputs))) if leaf.is_tensor]


def _error(model: nn.Module, candidate: Any, inputs: tuple[Tensor, ...]) -> float:
    return _distance(_outputs(model, inputs), _outputs(candidate, inputs))


def _distance(expected: list[Tensor], found: list[Tensor]) -> float:
    pairs = zip(expected, found, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs if a.numel())


def corpora() -> dict[str, list[Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]]]:
    """Return what the tools are tried on."""

    def at_random(seed: int) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
        def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
            net, x = random_net(seed)
            return net, (x,)

        return make

    return {
        f"{len(NETWORKS)} networks of usual kinds": list(NETWORKS.values()),
        f"{RANDOM} random graphs": [at_random(seed) for seed in range(RANDOM)],
    }


def main() -> int:
    """Print the tables."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}")
    for title, networks in corpora().items():
        every = "random" not in title or "--all" in sys.argv
        tools = {name: tool for name, tool in TOOLS.items() if every or name in QUICK}
        total, rows = 0, {name: Row() for name in tools}
        for make in networks:
            model, inputs = make()
            model, inputs = model.double(), tuple(value.double() for value in inputs)
            calls = len(bnfold.plan(model, inputs))
            total += calls
            for name, (tool, limit) in tools.items():
                try:
                    left, error = tool(model, inputs)
                except Exception:
                    rows[name].failed += 1
                    rows[name].left += calls
                    continue
                rows[name].left += left
                rows[name].changed += not error <= limit
        print(f"\n{title}, {total} BatchNorm calls\n")
        print("| | BatchNorms left | function changed | stopped with an error |")
        print("| --- | --- | --- | --- |")
        for name, row in rows.items():
            print(f"| {name} | {row.left} of {total} | {row.changed} of {len(networks)} | {row.failed} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
