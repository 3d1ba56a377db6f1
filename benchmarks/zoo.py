"""Fold the models of timm, torchvision and libraries that are no less used, prove each in float64, and sum up.

    python benchmarks/zoo.py --library 'ti*' --sample          # one small model of every kind of timm: minutes
    python benchmarks/zoo.py 'resnet*' --library timm          # by name
    python benchmarks/zoo.py --family efficientnet --max-params 10e6
    python benchmarks/zoo.py --library clients --processes 2   # all of libraries but timm and torchvision: 130
    python benchmarks/zoo.py --shard 1/4 --processes 4         # the first quarter of all 950
    python benchmarks/zoo.py --summary zoo.jsonl               # the tables, as Markdown

Every model gets random weights, BatchNorms with scales of both signs and calibrated statistics, the smallest input that
it takes, and a process of its own. One JSON line per model is appended to ``--output``; models that have one are
skipped, so that a run that was stopped goes on where it stood. See ``zoo_check.py`` for the outcomes.

Needs timm and torchvision, which bnfold does not: ``pip install --no-deps timm torchvision==0.28.0``, then
``pip install huggingface_hub pyyaml safetensors``. ``shim.py`` says why. For the others, the *clients*, an environment
of their own is best: after what ``constraints.txt`` names, ``pip install --no-deps -r benchmarks/zoo_clients.txt``.
Where a library of a selection is missing, nothing runs.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that this runs as a file and as a module
    sys.path.insert(0, str(ROOT))

from benchmarks import shim  # noqa: E402
from benchmarks.zoo_list import Entry, read_list, sample, select, shard  # noqa: E402
from benchmarks.zoo_pool import Finished, run_all  # noqa: E402
from benchmarks.zoo_records import append, latest, read_records  # noqa: E402
from benchmarks.zoo_summary import summary  # noqa: E402

__all__ = ["main"]

BYTES_PER_PARAMETER = 40  # float32 and float64, original and folded, and a copy for fx.fuse
GIB = 2**30
PRELOAD = ("torch", "bnfold.fold.api", "benchmarks.zoo_check", "benchmarks.zoo_preload")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where every model that ran is equivalent, else 1."""
    options = _parser().parse_args(arguments)
    if options.summary is not None:
        print(summary(latest(read_records(options.summary))))
        return 0
    try:
        chosen = _chosen(options)
    except ValueError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return 2
    if options.list:
        for entry in chosen:
            print(f"{entry.key:60} {entry.family:24} {entry.parameters / 1e6:9.2f} M  {entry.batchnorms:5} BatchNorms")
        return 0
    missing = sorted({entry.library for entry in chosen if not shim.available(entry.library)})
    if missing:
        print(f"zoo: {' and '.join(missing)} cannot be imported; see {__file__} for what to install", file=sys.stderr)
        return 2
    return _run(chosen, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="shell patterns for the model's name, or library/name")
    add("--family", action="append", default=[], help="shell pattern for the family; repeatable")
    add("--library", action="append", default=[], help="shell pattern, or clients: all but the first two; repeatable")
    add("--max-params", type=float, metavar="N", help="leave out larger models; 30e6 is thirty million")
    add("--sample", action="store_true", help="of what is selected, the smallest model of each kind")
    add("--shard", metavar="I/N", help="part I of N of what is selected")
    add("--output", type=Path, default=Path("zoo.jsonl"), help="default: zoo.jsonl")
    add("--again", nargs="?", const="all", metavar="OUTCOME", help="run models again: all, bad, or with that outcome")
    add("--processes", type=int, default=1, help="how many models at a time, one thread each; default: 1")
    add("--timeout", type=float, default=900, metavar="SECONDS", help="for one model; default: 900")
    add("--memory", type=float, default=12, metavar="GIB", help="for one process; default: 12")
    add("--seed", type=int, default=0)
    add("--export", action="store_true", help="export to ONNX too, and count its BatchNormalization nodes")
    add("--merge", action="store_true", help="merge branches too")
    add("--list", action="store_true", help="print what is selected, and run nothing")
    add("--summary", type=Path, metavar="FILE", help="print the tables for a file of records, and run nothing")
    return parser


def _chosen(options: argparse.Namespace) -> list[Entry]:
    chosen = select(
        read_list(),
        patterns=options.names,
        families=options.family,
        libraries=options.library,
        max_parameters=options.max_params,
    )
    if options.sample:
        chosen = sample(chosen)
    if options.shard is not None:
        chosen = shard(chosen, options.shard)
    if not chosen:
        raise ValueError("no model of the zoo is like that; --list shows a selection")
    return chosen


def _run(chosen: Sequence[Entry], options: argparse.Namespace) -> int:
    done = latest(read_records(options.output)) if options.output.exists() else {}
    todo = [entry for entry in chosen if _wanted(done.get(entry.key), options.again)]
    _say(f"{len(chosen)} models, {len(chosen) - len(todo)} of them done, {len(todo)} to run")
    from benchmarks.zoo_check import check

    os.environ |= {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "HF_HUB_OFFLINE": "1"}  # before the server starts
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process at work is ended too
    commit, start, bad = _commit(), time.perf_counter(), 0
    for number, finished in enumerate(
        run_all(
            functools.partial(check, seed=options.seed, export=options.export, merge=options.merge),
            todo,
            processes=options.processes,
            timeout=options.timeout,
            memory=options.memory * GIB,
            preload=PRELOAD,
            needs=lambda entry: entry.parameters * BYTES_PER_PARAMETER + GIB,
        ),
        start=1,
    ):
        record = _record_of(finished, options) | {"commit": commit, "peak_bytes": finished.peak_bytes}
        append(options.output, record)
        bad += record["outcome"] != "equivalent"
        _say(f"[{number}/{len(todo)} {time.perf_counter() - start:6.0f} s] {_line(record)}")
    _say(f"{len(todo) - bad} equivalent, {bad} not; {options.output}")
    return 1 if bad else 0


def _wanted(record: dict[str, Any] | None, again: str | None) -> bool:
    """Whether to run a model that has that record, or none; ``again`` is all, bad, or outcomes with commas between."""
    if record is None or again == "all":
        return True
    if again == "bad":
        return bool(record["outcome"] != "equivalent")
    return again is not None and record["outcome"] in again.split(",")


def _record_of(finished: Finished[Entry], options: argparse.Namespace) -> dict[str, Any]:
    if finished.failure is None:
        return dict(finished.result)
    entry = finished.job
    texts = {
        "timeout": f"it took longer than {options.timeout:g} s",
        "memory": f"it took more than {options.memory:g} GiB",
        "died": "its process died",
    }
    return {
        "model": entry.model,
        "library": entry.library,
        "family": entry.family,
        "parameters": entry.parameters,
        "outcome": finished.failure,
        "message": texts[finished.failure],
        "seconds": {"total": finished.seconds},
    }


def _line(record: dict[str, Any]) -> str:
    actions = record.get("actions")
    counts = f"{actions['fold']} fold, {actions['affine']} affine, {actions['keep']} keep" if actions else ""
    text = record.get("message", "") if record["outcome"] != "equivalent" else ""
    name = f"{record['library']}/{record['model']}"
    return f"{record['outcome']:14} {name:44} {record['seconds']['total']:6.1f} s  {counts} {text}".rstrip()


def _commit() -> str:
    """The commit of the checkout, with a plus where files of bnfold differ from it; empty outside one."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*command, "status", "--porcelain", "bnfold"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
