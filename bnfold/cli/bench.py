"""``bnfold bench MODEL``: how fast is it before and after folding?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rich.text import Text

from bnfold.cli.onnx_models import bench_onnx, is_onnx
from bnfold.cli.request import ModelRequest
from bnfold.cli.run import Run, blaming_inputs
from bnfold.cli.terminal import Terminal
from bnfold.export.dynamic import DEFAULT, wanted
from bnfold.report.benched import render_bench
from bnfold.report.document import Document
from bnfold.report.words import summary_line

__all__ = ["BenchRequest", "run"]

_STAGES = (
    ("import", "importing torch"),
    ("load", "loading the model"),
    ("inputs", "finding inputs"),
    ("fold", "folding"),
    ("measure", "measuring"),
    ("report", "gathering what the report shows"),
    ("write", "writing"),
)
_TOO_FAR = 1e-3
"""Of the largest output: from here on the two models' outputs are called different, and what was timed with them."""


@dataclass(frozen=True)
class BenchRequest:
    """The options of ``bnfold bench``; see its ``--help``."""

    about: ModelRequest
    keep: tuple[str, ...] = ()
    merge: bool = False
    affines: bool = False
    targets: tuple[str, ...] = ()
    dynamic: str | None = None
    batches: tuple[int, ...] = ()
    threads: int | None = None
    seconds: float = 5.0
    cpu_time: bool = False
    reports: tuple[str, ...] = ()
    force: bool = False


def run(request: BenchRequest, terminal: Terminal) -> int:
    """Do it, and return the exit code."""
    with Run(request, terminal, _STAGES) as run:
        document = run.write(bench_onnx(request, run) if is_onnx(request.about.model) else _document(request, run))
    difference = (document.bench or {})["difference"]
    if difference is not None and difference > _TOO_FAR:
        terminal.warn(
            f"The outputs of the two models differ by {difference:.1e} of the largest output, so these are the times "
            "of two different functions. `bnfold fold` says where they start to differ."
        )
    summary = Text(summary_line(document))
    return run.tell(document, *render_bench(document), Text(), summary)


def _document(request: BenchRequest, run: Run) -> Document:
    about = request.about
    dynamic = None if request.dynamic is None else wanted(request.dynamic, by_name=True)
    loaded = run.load()
    found = run.find_inputs(loaded)
    with run.stage("fold"), blaming_inputs(loaded.model, found.inputs):
        from bnfold.fold.api import fold
        from bnfold.inputs.search import shapes_in_words

        folding = fold(loaded.model, found.inputs, keep=request.keep, merge=request.merge, affines=request.affines)
        run.stages.add_parts("fold", folding.seconds)
    with run.stage("measure"):
        from bnfold.bench.api import bench

        clock: Literal["wall", "cpu"] = "cpu" if request.cpu_time else "wall"
        told: dict[str, Any] = {}
        if request.targets:
            told["targets"] = request.targets
        measured = bench(
            loaded.model,
            folding.module,
            found.inputs,
            batches=request.batches or _given_batch(about, found.inputs),
            threads=request.threads,
            seconds=request.seconds,
            clock=clock,
            seed=about.seed,
            dynamic=DEFAULT if dynamic is None else dynamic,
            progress=run.progress("measure"),
            **told,
        )
    details = None
    if run.wants_page:
        from bnfold.report.gather import details_of

        with run.stages("report"):
            details = details_of(folding, None, seed=about.seed, files=run.files_read)
    return Document(
        command="bench",
        model=about.model,
        inputs=(shapes_in_words(found.inputs), found.how),
        capture=folding.plan.capture,
        batchnorms=folding.plan.decisions,
        notes=(*run.notes, *folding.plan.notes),
        bench=measured.to_dict(),
        details=details,
    )


def _given_batch(about: ModelRequest, inputs: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the batch size of inputs that the user gave, else 1."""
    from bnfold.graph.batch_dimension import batch_positions

    positions = batch_positions(inputs)
    given = about.shapes or about.inputs is not None
    return (int(inputs[positions[0]].shape[0]),) if given and positions else (1,)
