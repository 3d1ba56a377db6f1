"""Simulate ``bnfold batch`` on a cluster: thousands of models, hundreds of nodes, with the policy's own code.

    python benchmarks/bench_batch_policy.py                     # 10,000 models on 100 nodes of 1 to 8 cores
    python benchmarks/bench_batch_policy.py --models 1000 --nodes 10

Times, sizes and memory are those measured on the zoo (``results/zoo*.jsonl``), drawn at random. The order in which
models are handed on, their estimates, limits and second attempts are those of ``bnfold/batch/policy.py``; the cluster
does as Ray does: a task goes to a node with a core and the memory free, and pays for the start of its process. What the
driver itself does for so many models is not simulated but done, and timed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bnfold.batch.cluster import _AHEAD  # noqa: E402
from bnfold.batch.manifest import read_manifest  # noqa: E402
from bnfold.batch.overview import write_overview  # noqa: E402
from bnfold.batch.policy import VALUES, Need, Queue, limit_for  # noqa: E402
from bnfold.batch.records import Records  # noqa: E402
from bnfold.cli.room import GIB, Work  # noqa: E402

START_SECONDS = 5.0
"""Of a task: Ray's worker, the watcher, and the import of torch, as they took with nothing else running."""


@dataclass(frozen=True)
class Model:
    """A model as the zoo recorded it: bytes of its file, seconds of wall time with others beside, most memory."""

    size: int
    seconds: float
    peak: int


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to: seconds from start to end, core-seconds of work, second attempts, most memory."""

    makespan: float
    work: float
    again: int
    fullest: float


def measured() -> list[Model]:
    """Return the models of the zoo with what was measured of them."""
    models: dict[str, Model] = {}
    for name in ("zoo.jsonl", "zoo_clients.jsonl"):
        for line in (ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["outcome"] == "equivalent" and row.get("peak_bytes"):
                model = Model(4 * row["parameters"], row["seconds"]["total"], row["peak_bytes"])
                models[f"{row['library']}/{row['model']}"] = model
    return list(models.values())


def simulate(models: Sequence[Model], nodes: int, cores: int, memory: int, *, known: bool) -> Outcome:
    """Run the models on nodes of that many cores and bytes each.

    Args:
        models: what to run.
        nodes: how many.
        cores: of each node.
        memory: bytes of each node.
        known: whether records of an earlier run say what each model held; else its file's size alone is known.

    Returns:
        The outcome. Memory is the largest share of a node's that its models really held at a time.
    """
    free = [[cores, memory] for _ in range(nodes)]
    held = [0] * nodes
    needs = []
    for model in models:
        expected = model.peak * 11 // 10 if known else VALUES + Work(int(model.size)).bytes_needed
        expected = min(expected, memory)
        needs.append(Need((model, limit_for(expected, memory, None)), expected))
    queue = Queue(needs, memory=nodes * memory, slots=_AHEAD * nodes * cores)
    handed: list[Need[tuple[Model, int]]] = []  # to Ray, where they wait for a node
    ends: list[tuple[float, int, int, Need[tuple[Model, int]]]] = []
    later: list[Need[tuple[Model, int]]] = []
    now = work = fullest = 0.0
    again = count = 0

    def place(need: Need[tuple[Model, int]], among: Sequence[int]) -> bool:
        nonlocal work, fullest, count
        fits = [node for node in among if free[node][0] and free[node][1] >= need.memory]
        if not fits:
            return False
        node = max(fits, key=lambda index: free[index][0])  # as Ray spreads tasks
        free[node][0] -= 1
        free[node][1] -= need.memory
        model, limit = need.what
        held[node] += min(model.peak, limit)
        fullest = max(fullest, held[node] / memory)
        seconds = START_SECONDS + model.seconds
        work += seconds
        count += 1
        heapq.heappush(ends, (now + seconds, count, node, need))
        return True

    node = -1
    while len(queue) or handed or ends or later:
        if not len(queue) and later:
            queue.add(later)
            later = []
        if node >= 0:  # there alone something has become free
            handed = [need for need in handed if not (free[node][0] and place(need, [node]))]
        while (need := queue.next()) is not None:
            if not place(need, range(nodes)):
                handed.append(need)
        now, _, node, need = heapq.heappop(ends)
        free[node][0] += 1
        free[node][1] += need.memory
        model, limit = need.what
        held[node] -= min(model.peak, limit)
        queue.ended(need)
        if model.peak > limit and limit < memory:
            again += 1
            later.append(Need((model, memory), memory))
    return Outcome(now, work, again, fullest)


def driver(count: int) -> dict[str, float]:
    """Do what the driver does for so many models, without the models; return seconds, and the page's bytes."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ({"name": f"model-{number}", "source": f"model-{number}.pt"} for number in range(count))
        (folder / "models.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        start = time.perf_counter()
        jobs = read_manifest(folder / "models.jsonl", folder / "out")
        seconds["reading the manifest"] = time.perf_counter() - start
        start = time.perf_counter()
        with Records(folder / "out") as records:
            for job in jobs:
                records.append(
                    {
                        "name": job.name,
                        "source": job.source,
                        "outcome": "equivalent",
                        "summary": {"fold": 50, "affine": 3, "keep": 0},
                        "seconds": 10.0,
                        "peak_bytes": GIB,
                        "error": None,
                        "outputs": [{"path": "model.folded.onnx", "sha256": "0" * 64, "size": 10**8}] * 2,
                        "folder": f"models/{job.name}",
                    }
                )
            seconds["writing the records"] = time.perf_counter() - start
            start = time.perf_counter()
            write_overview(folder / "out", list(records.done.values()))
            seconds["writing the page"] = time.perf_counter() - start
        seconds["bytes of the page"] = float((folder / "out" / "index.html").stat().st_size)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--gib", type=float, default=24.0, help="memory of a node")
    options = parser.parse_args()
    every = measured()
    models = random.Random(0).choices(every, k=options.models)
    total, longest = sum(model.seconds for model in models), max(model.seconds for model in models)
    print(
        f"{options.models} models drawn from {len(every)} measured: {total / 3600:.1f} h, the longest {longest:.0f} s"
    )
    print(f"on {options.nodes} nodes of {options.gib:g} GiB\n")
    print("| known | cores a node | hours | at best | utilisation | second attempts | most memory really held |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for known, cores in ((known, cores) for known in (False, True) for cores in (1, 2, 4, 8)):
        done = simulate(models, options.nodes, cores, int(options.gib * GIB), known=known)
        best = done.work / options.nodes / cores
        print(
            f"| {'an earlier run' if known else 'sizes'} | {cores} | {done.makespan / 3600:.2f} "
            f"| {max(best, longest + START_SECONDS) / 3600:.2f} "
            f"| {best / done.makespan:.1%} | {done.again} | {done.fullest:.0%} of a node |"
        )
    print(f"\nThe driver itself, for {options.models} models:\n")
    for name, value in driver(options.models).items():
        print(f"- {name}: {value / 1e6:.1f} MB" if "bytes" in name else f"- {name}: {value:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
