"""Time ``bnfold batch`` over models of the zoo, beside the same folds one after another.

    python benchmarks/bench_batch.py                                      # 12 small models: minutes
    python benchmarks/bench_batch.py --models 200 --max-params 1e9        # a quiet machine, an hour and more
    python benchmarks/bench_batch.py --models 200 --max-params 1e9 --singles 40   # 40 of them alone, the others scaled

Each model is a SPEC of ``zoo_models.py`` at the size that the zoo found for it, folded, exported to .onnx and .pt2, and
proved. *Alone* is ``bnfold fold`` in a process of its own, nothing beside it, on one thread. ``--output`` must be an
empty folder, or the wall time is that of a part. Where timm and torchvision are not installed this says so and does
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import shim  # noqa: E402
from benchmarks.zoo_list import Entry, read_list  # noqa: E402
from benchmarks.zoo_models import spec  # noqa: E402
from benchmarks.zoo_summary import read_checks  # noqa: E402

LIBRARIES = ("timm", "torchvision")


def chosen(count: int, largest: float) -> list[tuple[Entry, str]]:
    """Draw models, each with the shape of a batch of two."""
    checks = read_checks(ROOT / "benchmarks" / "results" / "zoo.jsonl")
    found = []
    for entry in read_list():
        check = checks.get(entry.key, {})
        if entry.library in LIBRARIES and entry.parameters <= largest and check.get("outcome") == "equivalent":
            found.append((entry, ",".join(map(str, (2, *check["shape"])))))
    return random.Random(0).sample(found, min(count, len(found)))


def write_manifest(path: Path, models: list[tuple[Entry, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"name": entry.key, "model": spec(entry), "input_shape": shape} for entry, shape in models]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def single(entry: Entry, shape: str) -> float:
    """Fold a model with nothing beside it; return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bnfold", "fold", spec(entry), "--input-shape", shape, "-q"]
        for name in ("a.onnx", "a.pt2"):
            command += ["-o", f"{folder}/{name}"]
        for name in ("a.json", "a.html"):
            command += ["--report", f"{folder}/{name}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        subprocess.run(command, env=environment, capture_output=True, check=False)
        return time.perf_counter() - start


class Memory(threading.Thread):
    """Looks once a second at what this process and all under it hold together; shared pages count once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(1.0):
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            self.peak = max(self.peak, sum(map(held_by, family)))


def held_by(process: psutil.Process) -> int:
    """Return a process's share of the memory, in bytes; nothing where it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--max-params", type=float, default=5e6)
    parser.add_argument("--singles", type=int, help="how many to fold alone too; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--memory", default="8GiB", help="limit of one model")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-batch")
    options = parser.parse_args()
    if not all(shim.available(library) for library in LIBRARIES):
        print("timm and torchvision are not installed, so this was left out; benchmarks/zoo.py says how to get them")
        return 0
    import bnfold.batch
    from bnfold.batch.progress import OnStderr
    from bnfold.cli.terminal import Terminal

    models = chosen(options.models, options.max_params)
    manifest = options.output / "manifest.jsonl"
    write_manifest(manifest, models)
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    with OnStderr(Terminal()) as progress:
        records = bnfold.batch.run(
            manifest, options.output, jobs=options.jobs, memory=options.memory, progress=progress
        )
    wall = time.perf_counter() - start
    memory.over.set()
    by_name = {record["name"]: record for record in records}
    inside = sum(record["seconds"] for record in records)
    alone = models[: options.singles]
    print(f"folding {len(alone)} models alone", file=sys.stderr)
    pairs = [(single(*model), by_name[model[0].key]["seconds"]) for model in alone]
    ours, theirs = sum(each for each, _ in pairs), sum(each for _, each in pairs)
    scaled = ours * (inside / theirs) if theirs else 0.0
    good = sum(record["outcome"] == "equivalent" for record in records)
    print(f"- {len(records)} models, {good} equivalent, {options.jobs} at a time")
    print(f"- wall time {wall:.0f} s; in the models' processes {inside:.0f} s")
    print(f"- alone one after another {scaled:.0f} s ({len(pairs)} of them measured)")
    print(f"- wall time over (alone / {options.jobs}): {wall * options.jobs / scaled:.2f}")
    most = max(record["peak_bytes"] for record in records)
    print(
        f"- most memory: one model {most / 2**30:.2f} GiB of {options.memory}, together {memory.peak / 2**30:.2f} GiB"
    )
    for record in records:
        if record["outcome"] != "equivalent":
            print(f"- {record['name']}: {record['outcome']}: {record['error']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
