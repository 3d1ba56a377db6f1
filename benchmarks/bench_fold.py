"""How long a fold takes, beside ``torch.fx``'s own fuser and beside a floor, as a Markdown table.

    python benchmarks/bench_fold.py [--rounds 9] [--threads 1 2] [--only resnet50]

The *floor* is what no folder can do without: one bare ``torch.fx.symbolic_trace``, and one float32 pass over the
weights of the convolutions. *fold* is given inputs and checks nothing; *search* is given none, and finds them; *check*
is given inputs and compares what it captured with the model, in one run of each.

All contestants run in one process, on the same model in memory, in a new order each round; times are CPU times of the
process (of all its threads), so that other work on the machine counts less, and each ratio is the median of the ratios
within the rounds. With more threads than idle cores, those that wait are counted too: then believe the rows of one
thread. Needs torchvision (see ``benchmarks/shim.py``).
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from benchmarks import shim
from benchmarks.networks import with_statistics
from bnfold.fold.api import fold, plan

MODELS = ("resnet50", "resnet152", "densenet121", "mobilenet_v2", "googlenet")
_NO_EXTRAS = {"googlenet": {"aux_logits": False, "init_weights": False, "transform_input": False}}


def model(name: str) -> nn.Module:
    """Return a torchvision model in eval mode whose BatchNorms have statistics of their own."""
    made: nn.Module = getattr(shim.load("torchvision").models, name)(weights=None, **_NO_EXTRAS.get(name, {})).eval()
    return with_statistics(made)


def contestants(network: nn.Module) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    x = torch.randn(2, 3, 224, 224)
    weights = [part.weight.detach() for part in network.modules() if isinstance(part, nn.Conv2d)]
    return {
        "trace": lambda: torch.fx.symbolic_trace(network),
        "pass": lambda: [weight * 1.5 for weight in weights],
        "fuse": lambda: fuse(network),
        "plan": lambda: plan(network, x, check=False),
        "fold": lambda: fold(network, x, check=False),
        "search": lambda: fold(network, check=False),
        "check": lambda: fold(network, x),
    }


def measured(network: nn.Module, rounds: int) -> dict[str, list[float]]:
    """Return the CPU times of each contestant in milliseconds, one for each round."""
    runs = contestants(network)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        order = list(runs)
        random.shuffle(order)
        for name in order:
            gc.collect()
            start = time.process_time()
            kept = runs[name]()
            times[name].append(1e3 * (time.process_time() - start))
            del kept
    return times


def ratio(times: dict[str, list[float]], above: str, *below: str) -> str:
    """Return the median of the ratios within the rounds, with the least and the largest."""
    sums = [sum(parts) for parts in zip(*(times[name] for name in below), strict=True)]
    ratios = [value / total for value, total in zip(times[above], sums, strict=True)]
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} … {max(ratios):.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    given = parser.parse_args()
    torch.manual_seed(0)
    columns = ("trace", "pass", "fuse", "plan", "fold", "search", "check")
    compared = ("fold / fuse", "search / fuse", "fold / floor", "plan / trace")
    heading = ["model", "threads", *(f"{name}, ms" for name in columns), *compared]
    print("| " + " | ".join(heading) + " |\n|" + " --- |" * len(heading))
    for name in given.only:
        network = model(name)
        for threads in given.threads:
            torch.set_num_threads(threads)
            times = measured(network, given.rounds)
            cells = [f"{statistics.median(times[column]):.0f}" for column in columns]
            ratios = [
                ratio(times, "fold", "fuse"),
                ratio(times, "search", "fuse"),
                ratio(times, "fold", "trace", "pass"),
                ratio(times, "plan", "trace"),
            ]
            print(f"| {name} | {threads} | " + " | ".join([*cells, *ratios]) + " |", flush=True)


if __name__ == "__main__":
    main()
