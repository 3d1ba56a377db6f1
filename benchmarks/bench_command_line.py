"""How long the command line takes, by stage, as Markdown tables: the seed network and a ResNet-50.

    python benchmarks/bench_command_line.py [RUNS] [--no-fold]

Medians of RUNS runs (3 unless told), each in a process of its own, one thread, all commands in turn; least and largest
beside them. Times are CPU times of the processes, so that other work on the machine counts less. For the last table the
verifier's forward passes are counted inside one run: all outermost calls of a model, and of an ONNX session.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("import", "load", "inputs", "fold", "export", "verify", "write")
MODELS = {"seed network": "seed_network.py:Net", "ResNet-50": "resnet.py:resnet50"}
SHAPES = {"seed network": "1, 28, 28", "ResNet-50": "3, 224, 224"}
COMMANDS: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    ("seed network", (), (0,)),
    ("seed network", ("-o", "model.folded.onnx"), (0,)),
    ("ResNet-50", (), (0, 2, 3)),  # an input shape that was found leaves the size free
    ("ResNet-50", ("-o", "model.folded.onnx", "--dynamic", "batch"), (0,)),
)
"""A model, options of the fold, and which dimensions are free in it, and so in the export beside it."""

# Run the command with a stop watch around the forward passes that a verification makes.
_COUNTED = """
import sys, time
sys.path.insert(0, {root!r})
import torch
from torch import nn
import bnfold.cli
from importlib import import_module
verify = import_module("bnfold.verify")
from bnfold.verify.runtime import OrtModel
spent, depth, on = [0.0], [0], [False]
def timed(call):
    def run(*args, **kwargs):
        if not on[0] or depth[0]:
            return call(*args, **kwargs)
        depth[0] += 1
        start = time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            depth[0] -= 1
            spent[0] += time.process_time() - start
    return run
nn.Module.__call__ = timed(nn.Module.__call__)
OrtModel.__call__ = timed(OrtModel.__call__)
real = verify.verify
def watched(*args, **kwargs):
    on[0] = True
    try:
        return real(*args, **kwargs)
    finally:
        on[0] = False
verify.verify = watched
code = bnfold.cli.main(["fold", {spec!r}, "-q", *{options!r}])
print(spent[0])
sys.exit(code)
"""
_EXPORT = """
import runpy, torch
model = runpy.run_path({file!r})[{factory!r}]().eval()
torch.onnx.export(model, (torch.randn(2, {shape}),), "model.onnx", dynamo=True, verbose=False,
                  dynamic_shapes=({{place: torch.export.Dim.DYNAMIC for place in {free}}},))
"""


def seconds_of(*arguments: str, cwd: Path = ROOT) -> tuple[float, str]:
    """Run Python; return the CPU seconds that it took and what it wrote to stdout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: without bytecode each run compiles torch anew
    done = subprocess.run(
        (sys.executable, *arguments),
        cwd=cwd,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def in_a_folder(*arguments: str) -> tuple[float, str]:
    """Do the same in an empty folder, which goes away."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds_of(*arguments, cwd=Path(folder))


def told(times: list[float]) -> str:
    """Return the median, with the least and the largest."""
    return f"{statistics.median(times):.2f} ({min(times):.2f} … {max(times):.2f})"


def main() -> None:
    """Print the tables."""
    runs = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 3
    cli = str(ROOT / "cli.py")
    plain = {
        "`python -c pass`": ("-c", "pass"),
        "`bnfold --help`": (cli, "--help"),
        "`python -c 'import torch'`": ("-c", "import torch"),
        "`bnfold explain` on the seed network": (cli, "explain", _spec("seed network"), "-q"),
    }
    times: dict[str, list[float]] = {name: [] for name in plain}
    for _ in range(runs):
        for name, arguments in plain.items():
            times[name].append(seconds_of(*arguments)[0])
    print(f"| command | CPU seconds, median of {runs} |\n| --- | --- |")
    for name, found in times.items():
        print(f"| {name} | {told(found)} |")
    bare, explain = (times[name] for name in list(plain)[2:])
    ratios = [ours / theirs for ours, theirs in zip(explain, bare, strict=True)]
    print(f"| explain / import torch | {told(ratios)} |", flush=True)
    if "--no-fold" not in sys.argv:
        _fold(runs)


def _fold(runs: int) -> None:
    cli, columns = str(ROOT / "cli.py"), (*STAGES, "fold.capture", "fold.plan", "fold.rewrite")
    print("\n| `bnfold fold`, wall seconds | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for name in MODELS:
        stages = [json.loads(in_a_folder(cli, "fold", _spec(name), "--report", "-")[1])["seconds"] for _ in range(runs)]
        cells = [f"{statistics.median(run.get(column, 0.0) for run in stages):.2f}" for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| CPU seconds | free | `bnfold fold` | `torch.onnx.export` | forward passes of the verifier | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, options, free in COMMANDS:
        file, factory = _spec(name).rsplit(":", 1)
        asked = _EXPORT.format(file=file, factory=factory, shape=SHAPES[name], free=free)
        whole, export, passes = [], [], []
        for _ in range(runs):
            whole.append(in_a_folder(cli, "fold", _spec(name), "-q", *options)[0])
            export.append(in_a_folder("-c", asked)[0])
            counted = in_a_folder("-c", _COUNTED.format(root=str(ROOT), spec=_spec(name), options=list(options)))[1]
            passes.append(float(counted.split()[-1]))
        ratios = [a / (b + c) for a, b, c in zip(whole, export, passes, strict=True)]
        what = f"{name} {' '.join(options)}".strip()
        dims = "batch, size" if len(free) > 1 else "batch"
        print(f"| {what} | {dims} | {told(whole)} | {told(export)} | {told(passes)} | {told(ratios)} |", flush=True)


def _spec(name: str) -> str:
    return f"{ROOT / 'examples' / MODELS[name]}"


if __name__ == "__main__":
    main()
