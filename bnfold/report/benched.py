"""What ``bnfold bench`` found, in rows and sentences, and as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bnfold.report.console import plain_table
from bnfold.report.document import Document
from bnfold.report.escape import visible

__all__ = ["COLUMNS", "bench_rows", "duration", "machine_line", "render_bench", "skipped_lines"]

COLUMNS = ("target", "batch", "original", "min … max", "folded", "min … max", "speedup", "95 % interval", "")
_TARGETS = {
    "eager": "torch eager",
    "channels-last": "torch eager, channels_last",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
}
_STYLES = {"faster": "green", "slower": "red", "the same": ""}


def bench_rows(bench: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of :data:`COLUMNS` for each timing; times are medians.

    Args:
        bench: what ``Bench.to_dict()`` gave.
    """
    return [
        (
            target_in_words(timing["target"]),
            "-" if timing["batch"] is None else str(timing["batch"]),
            duration(timing["original"]["median"]),
            _range(timing["original"]),
            duration(timing["folded"]["median"]),
            _range(timing["folded"]),
            f"{timing['speedup']:.3f}x",
            f"{timing['low']:.3f} … {timing['high']:.3f}",
            timing["verdict"],
        )
        for timing in bench["timings"]
    ]


def machine_line(bench: dict[str, Any]) -> str:
    """Return in one line where and how it was measured."""
    machine, runs = bench["machine"], [timing["original"]["runs"] for timing in bench["timings"]]
    threads = "1 thread" if bench["threads"] == 1 else f"{bench['threads']} threads"
    parts = [machine["processor"], machine["system"], f"{threads} of {machine['cores']} cores"]
    parts.append("CPU time" if bench["clock"] == "cpu" else "wall time")
    if runs:
        least, most = min(runs), max(runs)
        parts.append(f"{least:,} rounds" if least == most else f"{least:,} to {most:,} rounds")
    if machine["load"] is not None and machine["load"] > 0.5:
        hint = "" if bench["clock"] == "cpu" else ", which --cpu-time leaves out"
        parts.append(f"other work ran beside it (load {machine['load']:g}){hint}")
    return "; ".join(parts)


def skipped_lines(bench: dict[str, Any]) -> list[str]:
    """Return a sentence for each target that was not measured."""
    return [
        f"{target_in_words(skipped['target'])} was not measured: {skipped['reason']}" for skipped in bench["skipped"]
    ]


def render_bench(document: Document) -> Iterator[Table | Text]:
    """Yield the table of latencies, the machine, and what was not measured."""
    if document.bench is None:
        return
    told = [(target_in_words(t["target"]), t["verdict"]) for t in document.bench["timings"]]
    if told:
        table = plain_table(*COLUMNS, numbers=COLUMNS[1:8])
        for row, (_, verdict) in zip(bench_rows(document.bench), told, strict=True):
            cells: Sequence[Text] = [Text(cell) for cell in row]
            cells[0].stylize("bold")
            for cell in cells[6:]:
                cell.stylize(_STYLES[verdict])
            table.add_row(*cells)
        yield table
        yield Text()
    yield Text(visible(machine_line(document.bench)))
    for line in skipped_lines(document.bench):
        yield Text(visible(line), style="yellow")


def target_in_words(target: str) -> str:
    """Return a target as people call it."""
    return _TARGETS.get(target, target)


def duration(seconds: float) -> str:
    """Return a time in three digits, with a unit that suits it.

    >>> duration(0.000123), duration(0.01234), duration(1.5)
    ('123 us', '12.3 ms', '1.50 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} us"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _range(spread: dict[str, Any]) -> str:
    return f"{duration(spread['minimum'])} … {duration(spread['maximum'])}"
