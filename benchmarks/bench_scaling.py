"""How the time of a plan and of a fold grows with the number of BatchNorms, as a Markdown table.

    python benchmarks/bench_scaling.py [--sizes 1000 2000 4000] [--rounds 3]

Networks of the shapes that could be quadratic, in CPU time of the process, the sizes in random order; the figure is the
ratio of the least time at each size to that at half of it. Twice the BatchNorms in twice the time is 2.0.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.networks import with_statistics
from bnfold.fold.api import fold, plan


def pair(channels: int = 2, into: int = 2) -> list[nn.Module]:
    """Return a convolution and a BatchNorm with statistics of its own."""
    layer = with_statistics(nn.BatchNorm2d(into))
    return [nn.Conv2d(channels, into, 1), layer]


def chain(count: int) -> nn.Module:
    """Return ``count`` pairs in a row."""
    return nn.Sequential(*(part for _ in range(count) for part in pair())).eval()


class Branches(nn.Module):
    """``count`` pairs that read one value, into one concatenation; with a BatchNorm and a convolution after it."""

    def __init__(self, count: int, *, after: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*pair()) for _ in range(count))
        self.bare = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(count if after else 0))
        self.last = pair(2, 2 * count)[1] if after else nn.Identity()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches."""
        parts = self.bare if len(self.bare) else self.branches
        return self.last(torch.cat([branch(x) for branch in parts], dim=1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A row of residual blocks: each BatchNorm's producer is a sum that all later ones read."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(nn.Sequential(*pair()) for _ in range(count))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Add each pair's output to its input."""
        for block in self.pairs:
            x = torch.relu(x + block(x))
        return x


class PreActivation(nn.Module):
    """A row of BatchNorm -> relu -> convolution, added to the input: nothing before the BatchNorms takes them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(pair()[0] for _ in range(count))
        self.norms = nn.ModuleList(pair()[1] for _ in range(count))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Add each block's output to its input."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + convolution(torch.relu(norm(x)))
        return x


def alone(count: int) -> nn.Module:
    """Return a row of convolutions with one BatchNorm at the end, and one before a chain of relus."""
    layers = [nn.Conv2d(2, 2, 1) for _ in range(count)]
    return nn.Sequential(*layers, *pair()[1:], *(nn.MaxPool2d(1) for _ in range(count)), *pair()[1:]).eval()


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "conv-BN pairs in a row": chain,
    "branches into one cat": lambda count: Branches(count, after=False),
    "convolutions into one cat, then one BN": lambda count: Branches(count, after=True),
    "residual blocks": Residual,
    "pre-activation blocks": PreActivation,
    "convolutions, BN, pools, BN": alone,
}


def seconds(step: Callable[[nn.Module], object], network: nn.Module) -> float:
    """Return the CPU time of one step."""
    gc.collect()
    start = time.process_time()
    step(network)
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(NETWORKS), nargs="+", default=list(NETWORKS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps: dict[str, Callable[[nn.Module], object]] = {"plan": plan, "fold": fold}
    sizes = given.sizes
    ratios = [f"{large}/{small}" for small, large in itertools.pairwise(sizes)]
    heading = ["network", "step", *(f"{size}, s" for size in sizes), *ratios]
    print("| " + " | ".join(heading) + " |\n|" + " --- |" * len(heading))
    for name in given.only:
        networks = {size: NETWORKS[name](size) for size in sizes}
        times: dict[tuple[str, int], list[float]] = {(step, size): [] for step in steps for size in sizes}
        for _ in range(given.rounds):
            order = list(times)
            random.shuffle(order)
            for step, size in order:
                times[step, size].append(seconds(steps[step], networks[size]))
        for step in steps:
            least = [min(times[step, size]) for size in sizes]
            grown = [f"{large / small:.2f}x" for small, large in itertools.pairwise(least)]
            cells = [
                name,
                step,
                *(f"{min(t):.2f} … {max(t):.2f}" for t in (times[step, size] for size in sizes)),
                *grown,
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
