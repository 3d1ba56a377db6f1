"""The report as Markdown, ready for a pull request or a CI step summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnfold.fold.decision import Decision
from bnfold.report.benched import COLUMNS, bench_rows, machine_line, skipped_lines
from bnfold.report.document import Document, versions
from bnfold.report.escape import for_markdown
from bnfold.report.groups import grouped
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
    lines += _decisions(document.batchnorms)
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


def _decisions(decisions: Sequence[Decision]) -> list[str]:
    """Return the table of what became of each BatchNorm: what repeats is one row, and each opens by a click."""
    if not decisions:
        return []
    heading = ("BatchNorm", "became", "into", "through", "why not")
    each = [
        (name_of(one, decisions), became(one), ", ".join(one.into), ", ".join(one.through), why(one))
        for one in decisions
    ]
    groups = grouped(decisions)
    if len(groups) == len(decisions):
        return _table(heading, each)
    rows = [
        each[group.members[0]]
        if len(group.members) == 1
        else (
            group.names,
            became(decisions[group.members[0]], len(group.members)),
            group.into,
            group.through,
            group.reason,
        )
        for group in groups
    ]
    opened = f"<details><summary>Each of the {len(decisions)} BatchNorms</summary>"
    return [*_table(heading, rows), opened, "", *_table(heading, each), "</details>", ""]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    lines += ["| " + " | ".join(for_markdown(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]
