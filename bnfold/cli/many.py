"""``bnfold batch MANIFEST -o DIR``: many models, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from bnfold.batch.overview import as_json, by_outcome, overview, render_overview
from bnfold.batch.progress import OnStderr
from bnfold.batch.running import run as run_all
from bnfold.cli.terminal import Terminal
from bnfold.files.destinations import check_folders
from bnfold.files.save import Output, check_targets, write_outputs
from bnfold.printable import shown_path
from bnfold.report.files import check_report_path
from bnfold.report.words import counted

__all__ = ["BatchRequest", "run"]


@dataclass(frozen=True)
class BatchRequest:
    """The options of ``bnfold batch``; see its ``--help``. ``options`` are those of the fold, as columns."""

    manifest: Path
    output: Path
    jobs: int | None = None
    ray: str | None = None
    ship: bool = False
    timeout: float | None = None
    memory: int | None = None
    again: str | None = None
    reports: tuple[str, ...] = ()
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)


def run(request: BatchRequest, terminal: Terminal) -> int:
    """Do it, and return the exit code: 0 where every model is equivalent, else 1."""
    paths = [Path(report) for report in request.reports if report != "-"]
    for path in paths:
        check_report_path(path)
    force = bool(request.options.get("force"))
    check_targets(paths, inputs=[request.manifest], force=force)
    check_folders(paths)
    with OnStderr(terminal) as progress:
        records = run_all(
            request.manifest,
            request.output,
            jobs=request.jobs,
            ray=request.ray,
            ship=request.ship,
            timeout=request.timeout,
            memory=request.memory,
            again=request.again,
            options=request.options,
            progress=progress,
        )
    written = [Output(path, overview(path.absolute(), records, request.output)) for path in paths]
    write_outputs(written, inputs=[request.manifest], force=force)
    if "-" in request.reports:
        terminal.write_raw(as_json(records))
    good = by_outcome(records).get("equivalent", 0)
    where = shown_path(request.output / "index.html")
    terminal.result(render_overview(records), Text())
    terminal.result(Text(f"{good} of {counted(len(records), 'model')} equivalent; see {where}"))
    return 0 if good == len(records) else 1
