"""Whether folded models are ever slower, as a Markdown table: original time / folded time, above 1 is faster.

    python benchmarks/bench_latency.py [--seconds 5] [--batches 1 8] [--size 224] [--only densenet121 ...]

Each network in torch eager (NCHW and channels_last) and under ONNX Runtime at full optimisation. Both models take turns
in random order, in CPU time of the process, one thread; what is shown is the median of the ratios within the rounds,
with its 95 % confidence interval. ``hand-built`` compares the folded seed network with one that was written without a
BatchNorm in the first place: there 1.00 is what is wanted. Needs torchvision and timm (see ``benchmarks/shim.py``).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from benchmarks import shim
from benchmarks.networks import with_statistics
from bnfold.bench.api import bench
from bnfold.bench.result import Timing
from bnfold.fold.api import fold

_COPIES = 12
TARGETS = ("eager", "channels-last", "onnxruntime")


class Seed(nn.Module):
    """``fc1(relu(bn1(pool(conv1(x)))))``; without the BatchNorm on demand."""

    def __init__(self, *, batchnorm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.bn1 = nn.BatchNorm2d(32) if batchnorm else None
        self.fc1 = nn.Linear(32 * 14 * 14, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.pool(self.conv1(x))
        if self.bn1 is not None:
            x = self.bn1(x)
        return self.fc1(torch.relu(x).flatten(1))  # type: ignore[no-any-return]


def pooled_vgg() -> nn.Module:
    """Return a VGG of blocks conv -> pool -> BatchNorm -> relu."""
    layers: list[nn.Module] = []
    widths = (3, 32, 64, 128, 256)
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 100))


def of_torchvision(name: str) -> nn.Module:
    """Return a model of torchvision with random weights."""
    made: nn.Module = getattr(shim.load("torchvision").models, name)(weights=None)
    return made


def of_timm(name: str) -> nn.Module:
    """Return a model of timm with random weights."""
    made: nn.Module = shim.load("timm").create_model(name, pretrained=False)
    return made


Make = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[Make, tuple[int, ...] | None]] = {
    "seed network": (Seed, (1, 28, 28)),
    "pooled VGG": (pooled_vgg, None),
    "densenet121": (lambda: of_torchvision("densenet121"), None),
    "resnetv2_50 (pre-activation)": (lambda: of_timm("resnetv2_50"), None),
    "repvgg_a0": (lambda: of_timm("repvgg_a0"), None),
    "mobileone_s0": (lambda: of_timm("mobileone_s0"), None),
    "levit_128s": (lambda: of_timm("levit_128s"), (3, 224, 224)),
    "efficientnet_b0": (lambda: of_timm("efficientnet_b0"), None),
    "mobilenet_v2": (lambda: of_torchvision("mobilenet_v2"), None),
    "resnet18": (lambda: of_torchvision("resnet18"), None),
    "shufflenet_v2_x1_0": (lambda: of_torchvision("shufflenet_v2_x1_0"), None),
    "regnety_002": (lambda: of_timm("regnety_002"), None),
    "ghostnet_100": (lambda: of_timm("ghostnet_100"), None),
    "resnet50": (lambda: of_torchvision("resnet50"), None),
}


def cell(timing: Timing | None) -> str:
    """Return the speed-up and its interval."""
    if timing is None:
        return "-"
    mark = "**" if timing.speedup < 0.98 else ""
    return f"{mark}{timing.speedup:.3f}{mark} ({timing.low:.3f} … {timing.high:.3f})"


def row(name: str, original: nn.Module, folded: nn.Module, x: Tensor, given: Any) -> str:
    """Measure a pair on every target at every batch size, and return a row of the table."""
    found = bench(
        original,
        folded,
        x,
        targets=TARGETS,
        batches=given.batches,
        threads=1,
        seconds=given.seconds,
        clock="wall" if given.wall else "cpu",
    )
    known = {(timing.target, timing.batch): timing for timing in found.timings}
    cells = [cell(known.get((target, size))) for target in TARGETS for size in given.batches]
    return f"| {name} | " + " | ".join(cells) + f" | {0.0 if found.difference is None else found.difference:.0e} |"


def hand_built(folded: nn.Module, x: Tensor, given: Any) -> str:
    """Measure the folded seed network beside one without a BatchNorm, each copied anew many times.

    Two copies of one network can differ by several per cent, by where their weights happen to lie in memory: so the
    figure is the median over many copies, with the least and the largest.
    """
    bare = Seed(batchnorm=False).eval()
    bare.load_state_dict(folded.state_dict())
    found: dict[tuple[str, int | None], list[float]] = {}
    for _ in range(_COPIES):
        pair = [copy.deepcopy(module) for module in (bare, folded)]
        random.shuffle(order := [0, 1])  # who is copied first lies first
        pair = [copy.deepcopy(pair[place]) for place in order]
        original, candidate = (pair[order.index(place)] for place in (0, 1))
        part = bench(original, candidate, x, targets=TARGETS, batches=given.batches, threads=1,
                     seconds=given.seconds / 4, clock="wall" if given.wall else "cpu")  # fmt: skip
        for timing in part.timings:
            found.setdefault((timing.target, timing.batch), []).append(timing.speedup)
    cells = []
    for target in TARGETS:
        for size in given.batches:
            values = found[target, size]
            cells.append(f"{statistics.median(values):.3f} ({min(values):.3f} … {max(values):.3f})")
    return "| hand-built | 0, 0 | " + " | ".join(cells) + " | 0 |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each cell")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--wall", action="store_true", help="wall time, on an idle machine")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    columns = [f"{target}, batch {size}" for target in TARGETS for size in given.batches]
    print("| network | BatchNorms: folded, explicit | " + " | ".join(columns) + " | outputs differ |")
    print("|" + " --- |" * (len(columns) + 3), flush=True)
    for name in given.only:
        make, shape = NETWORKS[name]
        original = with_statistics(make()).eval()
        x = torch.randn(2, *(shape or (3, given.size, given.size)))
        folding = fold(original, x)
        summary = folding.plan.summary
        title = f"{name} | {summary['fold']}, {summary['affine']}"
        print(row(title, original, folding.module, x, given), flush=True)
        if name == "seed network":
            print(hand_built(folding.module, x, given), flush=True)


if __name__ == "__main__":
    main()
