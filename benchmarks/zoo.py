"""Fold the models of timm, torchvision and libraries that are no less used, prove each in float64, and sum up.

    python benchmarks/zoo.py --library 'ti*' --sample          # one small model of every kind of timm: minutes
    python benchmarks/zoo.py 'resnet*' --library timm          # by name
    python benchmarks/zoo.py --family efficientnet --max-params 10e6
    python benchmarks/zoo.py --library clients --jobs 2        # all of libraries but timm and torchvision: 130
    python benchmarks/zoo.py --shard 1/4 --jobs 4              # the first quarter of all 950
    python benchmarks/zoo.py --summary zoo/results.jsonl       # the tables, as Markdown

Every model gets random weights, BatchNorms with scales of both signs and calibrated statistics, and the smallest input
that it takes. It is a manifest and a call of ``bnfold.batch``, with the check of ``zoo_check.py`` in the place of a
plain fold: a process for each, a line of ``results.jsonl`` in the folder ``--output`` when it ends, and a run that was
stopped goes on where it stood.

Needs timm and torchvision, which bnfold does not: ``pip install --no-deps timm torchvision==0.28.0``, then
``pip install huggingface_hub pyyaml safetensors``. ``shim.py`` says why. For the others, the *clients*, an environment
of their own is best: after what ``constraints.txt`` names, ``pip install --no-deps -r benchmarks/zoo_clients.txt``.
Where a library of a selection is missing, nothing runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that this runs as a file and as a module
    sys.path.insert(0, str(ROOT))

from benchmarks import shim  # noqa: E402
from benchmarks.zoo_list import Entry, read_list, sample, select, shard  # noqa: E402
from benchmarks.zoo_models import spec  # noqa: E402
from benchmarks.zoo_summary import read_checks, summary  # noqa: E402

__all__ = ["main", "write_manifest"]

BYTES_PER_PARAMETER = 40  # float32 and float64, original and folded, and a copy for fx.fuse
GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where every model that ran is equivalent, else 1."""
    options = _parser().parse_args(arguments)
    if options.summary is not None:
        print(summary(read_checks(options.summary)))
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
    add("--output", type=Path, default=Path("zoo"), metavar="DIR", help="folder of the results; default: zoo")
    add("--again", choices=["FAILED", "ALL"], help="run models again: those that are not equivalent, or all")
    add("--jobs", type=int, help="how many models at a time; default: one a core")
    add("--timeout", type=float, default=900, metavar="SECONDS", help="for one model; default: 900")
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


def write_manifest(path: Path, chosen: Sequence[Entry]) -> None:
    """Write the manifest of a selection: each model by its SPEC, with the memory that its check will about need."""
    rows = [
        {"name": entry.key, "model": spec(entry), "memory": GIB + entry.parameters * BYTES_PER_PARAMETER}
        for entry in chosen
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _run(chosen: Sequence[Entry], options: argparse.Namespace) -> int:
    import bnfold.batch
    from bnfold.batch.progress import OnStderr
    from bnfold.cli.terminal import Terminal

    manifest = options.output / "manifest.jsonl"
    write_manifest(manifest, chosen)
    given = {"seed": [str(options.seed)], "merge": ["--merge"] if options.merge else []}
    with OnStderr(Terminal()) as progress:
        records = bnfold.batch.run(
            manifest,
            options.output,
            jobs=options.jobs,
            timeout=options.timeout,
            again=options.again,
            options=given,
            work=f"benchmarks.zoo_work:check_{'and_export' if options.export else 'only'}",
            progress=progress,
        )
    bad = sum(record["outcome"] != "equivalent" for record in records)
    print(f"{len(records) - bad} equivalent, {bad} not; {options.output}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
