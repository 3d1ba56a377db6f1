"""The report as Markdown, ready for a pull request or a CI step summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnfold.report.benched import COLUMNS, bench_rows, machine_line, skipped_lines
from bnfold.report.document import Document, versions
from bnfold.report.escape import for_markdown
from bnfold.report.words import (
    became,
    counts_in_words,
    merged_with,
    merges_line,
    name_of,
    number,
    summary_line,
    why,
    why_apart,
)

__all__ = ["markdown"]

_SIGNS = {"equivalent": "✅", "not equivalent": "❌", "not verifiable": "❌", "not everything folded": "❌"}


def markdown(document: Document) -> str:
    """Return the document as Markdown with tables."""
    told = f"{for_markdown(document.model)}" + (
        f" and {for_markdown(document.candidate)}" if document.candidate is not None else ""
    )
    lines = [f"## bnfold: {told}: {_SIGNS.get(document.outcome, '')} {document.outcome}".replace(":  ", ": "), ""]
    if document.capture is not None:
        lines += [summary_line(document) + ".", ""]
    if document.batchnorms:
        rows = (
            (
                name_of(decision, document.batchnorms),
                became(decision),
                ", ".join(decision.into),
                ", ".join(decision.through),
                why(decision),
            )
            for decision in document.batchnorms
        )
        lines += _table(("BatchNorm", "became", "into", "through", "why not"), rows)
    if document.merges is not None:
        lines += [merges_line(document.merges) + ".", ""]
    if document.merges:
        merges = (
            (merge.into, "merged" if merge.action == "merge" else "apart", merged_with(merge), why_apart(merge))
            for merge in document.merges
        )
        lines += _table(("convolution", "became", "with", "why not"), merges)
    if document.counts is not None:
        costs = ((what.strip(), before, after) for what, before, after in counts_in_words(document.counts))
        lines += _table(("one run", "original", "folded"), costs)
    if document.comparisons:
        compared = (
            (
                str(comparison["name"]),
                number(comparison["max_abs"]),
                number(comparison["noise_floor"]),
                number(comparison["allowed"]),
                "passed" if comparison["passed"] else f"FAILED {comparison.get('detail', '')}",
            )
            for comparison in document.comparisons
        )
        lines += _table(("comparison", "error", "noise floor", "allowed", "verdict"), compared)
    if document.bench is not None:
        lines += _table(COLUMNS, bench_rows(document.bench))
        lines += [for_markdown(machine_line(document.bench)) + ".", ""]
        lines += [*(f"- {for_markdown(line)}" for line in skipped_lines(document.bench)), ""]
    if document.outputs:
        files = ((file.path, document.size_of(file), file.sha256) for file in document.outputs)
        lines += _table(("file", "size", "sha256"), files)
    if document.notes:
        lines += [*(f"- {for_markdown(note)}" for note in document.notes), ""]
    lines.append(", ".join(f"{name} {version}" for name, version in versions().items()))
    return "\n".join(lines) + "\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    lines += ["| " + " | ".join(for_markdown(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]
