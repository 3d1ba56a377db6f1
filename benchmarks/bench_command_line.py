"""How long the command line takes, by stage, as a Markdown table: the seed network and a ResNet-50.

    python benchmarks/bench_command_line.py [RUNS]

Medians of RUNS runs (3 unless told) in processes of their own. ``process`` is the whole, from start to exit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("import", "load", "inputs", "fold", "export", "verify", "write")
MODELS = {"seed network": "seed_network.py:Net", "ResNet-50": "resnet.py:resnet50"}


def seconds_of(*command: str, cwd: Path = ROOT) -> tuple[float, str]:
    """Run a command; return how long it took and what it wrote to stdout."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return time.perf_counter() - begin, done.stdout


def fold(spec: str) -> dict[str, float]:
    """Return the seconds of each stage of one fold, and of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, str(ROOT / "cli.py"), "fold", spec, "--report", "-")
        whole, output = seconds_of(*command, cwd=Path(folder))
    stages: dict[str, float] = json.loads(output)["seconds"]
    return stages | {"process": whole}


def main() -> None:
    """Print both tables."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"| command | seconds, median of {runs} |\n| --- | --- |")
    plain = {
        "`python -c pass`": ("-c", "pass"),
        "`bnfold --help`": (str(ROOT / "cli.py"), "--help"),
        "`python -c 'import torch'`": ("-c", "import torch"),
        "`bnfold explain` on the seed network": (str(ROOT / "cli.py"), "explain", _spec("seed network"), "-q"),
    }
    for name, arguments in plain.items():
        times = [seconds_of(sys.executable, *arguments)[0] for _ in range(runs)]
        print(f"| {name} | {statistics.median(times):.2f} |", flush=True)
    columns = (*STAGES, "process")
    print("\n| `bnfold fold` | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for name in MODELS:
        found = [fold(_spec(name)) for _ in range(runs)]
        cells = [f"{statistics.median(run.get(column, 0.0) for run in found):.2f}" for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _spec(name: str) -> str:
    return f"{ROOT / 'examples' / MODELS[name]}"


if __name__ == "__main__":
    main()
