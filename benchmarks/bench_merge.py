"""Merged branches against timm's own ``reparameterize_model``, which is written for each model: counts, error, latency.

    python benchmarks/bench_merge.py                       # all twelve: about ten minutes on an idle machine
    python benchmarks/bench_merge.py mobileone_s0 --seconds 20
    python benchmarks/bench_merge.py --counts              # no latency

Models stand in training form, with random weights and calibrated statistics (``zoo_build.py``). Training form, timm's
and bnfold's run in turn, each round in a new order, one thread, batch 1, timed by the CPU time of the process, so that
other work on the machine disturbs little. A ratio is the median over all rounds, with its 95 % confidence interval.

Needs timm and torchvision; ``shim.py`` says how.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that this runs as a file and as a module
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks import shim  # noqa: E402
from benchmarks.zoo_build import build, fresh_inputs  # noqa: E402
from benchmarks.zoo_list import read_list  # noqa: E402
from benchmarks.zoo_measure import call, distance, in_double  # noqa: E402

__all__ = ["main"]

MODELS = (
    "repvgg_a0",
    "repvgg_b0",
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "mobileone_s3",
    "mobileone_s4",
    "repvit_m0_9",
    "fastvit_t8",
    "repghostnet_050",
    "lcnetv2_small",
    "ghostnetv3_050",
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TARGETS = ("eager", "onnxruntime")
TRIALS = 3  # each contestant is set up so many times: where its memory lies can cost some per cent
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Ratio:
    """How many times as long another takes: the median over all rounds, and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table; return 1 where a model misses a count or the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--seconds", type=float, default=9.0, help="of CPU time for each model and target; default: 9")
    parser.add_argument("--counts", action="store_true", help="measure no latency")
    parser.add_argument("--size", type=int, default=224, help="of the images; default: 224")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    heads = ["model", "convolutions: training, timm, bnfold", "MACs: training, bnfold", "error in float64"]
    if not options.counts:
        heads += [f"{target}: {what}" for target in TARGETS for what in ("training / bnfold", "bnfold / timm")]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads), flush=True)
    missed = 0
    for name in options.models:
        cells, good = _row(name, options)
        missed += not good
        print("| " + " | ".join([name, *cells]) + " |", flush=True)
    return 1 if missed else 0


def _row(name: str, options: argparse.Namespace) -> tuple[list[str], bool]:
    from bnfold.fold.api import fold

    (entry,) = [entry for entry in read_list() if entry.model == name and entry.library == "timm"]
    subject = build(entry, at_least=options.size)
    example = fresh_inputs(entry, subject.shape, batch=2, seed=1)
    folding = fold(subject.model, example, merge=True)
    theirs = _reparameterized(subject.model)
    inputs = in_double(fresh_inputs(entry, subject.shape, batch=2, seed=2))
    oracle = call(copy.deepcopy(subject.model).double(), inputs)
    error = distance(oracle, call(folding.in_float64()[1], inputs))
    layers = [convolutions(module) for module in (subject.model, theirs, folding.module)]
    before, after = (count.macs or 0 for count in folding.counts())
    cells = [
        ", ".join(map(str, layers)),
        f"{before / 1e6:.0f} M, {after / 1e6:.0f} M",
        f"{error:.1e}",
    ]
    if not options.counts:
        contestants = {"training": subject.model, "timm": theirs, "bnfold": folding.module}
        for target in TARGETS:
            times = _times(target, contestants, example, options.seconds)
            cells.append(str(_ratio(times["training"], times["bnfold"])))
            cells.append(str(_ratio(times["bnfold"], times["timm"])))
    return cells, layers[2] <= layers[1] and error <= TOLERANCE


def _reparameterized(model: nn.Module) -> nn.Module:
    shim.load("timm")
    from timm.utils.model import reparameterize_model

    theirs: nn.Module = reparameterize_model(model)
    return theirs.eval()


def convolutions(module: nn.Module) -> int:
    """Count the convolutions that a module calls: those of its graph, if it has one."""
    if not isinstance(module, torch.fx.GraphModule):
        return sum(isinstance(layer, CONVOLUTIONS) for layer in module.modules())
    layers = [module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"]
    functions = [node for node in module.graph.nodes if "conv" in getattr(node.target, "__name__", "")]
    return sum(isinstance(part, CONVOLUTIONS) for layer in layers for part in layer.modules()) + len(functions)


def _times(
    target: str, contestants: Mapping[str, nn.Module], example: tuple[Any, ...], seconds: float
) -> dict[str, list[float]]:
    from bnfold.bench.targets import make_target
    from bnfold.bench.turns import CLOCKS, measure

    ready = {name: make_target(target, module, example, 1) for name, module in contestants.items()}
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for trial in range(TRIALS):
        runs = {name: made.run(1) for name, made in ready.items()}
        for name, times in measure(runs, seconds=seconds / TRIALS, clock=CLOCKS["cpu"], seed=trial).items():
            found[name] += times
    return found


def _ratio(longer: Sequence[float], shorter: Sequence[float]) -> Ratio:
    from bnfold.bench.result import timing_of

    timing = timing_of("", 1, longer, shorter)
    return Ratio(timing.speedup, timing.low, timing.high)


if __name__ == "__main__":
    sys.exit(main())
