"""The report as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from bnfold.fold.decision import Decision
from bnfold.printable import bytes_in_words
from bnfold.report.document import Document
from bnfold.report.escape import visible
from bnfold.report.groups import Group, grouped
from bnfold.report.words import (
    became,
    counted,
    counts_in_words,
    folded_in_words,
    large,
    merged_with,
    merges_line,
    name_of,
    number,
    summary_line,
    why,
    why_apart,
)

__all__ = [
    "plain_table",
    "render_comparisons",
    "render_counts",
    "render_decisions",
    "render_merges",
    "render_outcome",
    "render_outputs",
    "render_seconds",
]

MANY = 24
"""From this many rows on, BatchNorms that folded are summed up unless every row is wanted."""

_STYLES = {"fold": "green", "affine": "yellow", "keep": "magenta"}
_OUTCOMES = {"equivalent": "bold green", "not verified": "yellow"}


def plain_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """Return an empty table; the columns named in ``numbers`` are set flush right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def render_decisions(document: Document, *, every: bool) -> Iterator[Table | Text]:
    """Yield the table of what became of each BatchNorm, and its sums.

    Args:
        document: what was done.
        every: show each row, and where the user's code calls the layer; else what repeats is one row.
    """
    decisions = document.batchnorms
    compact = not every and len(decisions) > MANY
    shown = [decision for decision in decisions if not compact or decision.action != "fold"]
    groups = grouped(shown) if compact else []
    if shown:
        rows = [_group_row(group, shown, decisions) for group in groups] or [
            _row(decision, decisions, every=every) for decision in shown
        ]
        headings = ("BatchNorm", "became", "into", "through", "why", "called at")
        told = [column for column in range(len(headings)) if any(row[column] for row in rows)]
        table = plain_table(*(headings[column] for column in told))
        for row in rows:
            table.add_row(*(row[column] for column in told))
        yield table
        yield Text()
    yield Text(summary_line(document))
    if compact and len(shown) < len(decisions):
        folded = [decision for decision in decisions if decision.action == "fold"]
        yield Text(f"The folded ones ({folded_in_words(folded)}) are listed with -v.")
    if len(groups) < len(shown) and groups:
        yield Text("A row with a count stands for several layers; -v lists each of them.")
    added = sum(decision.added_bytes for decision in decisions)
    if added:
        yield Text(f"Layers that are shared were copied for the calls that folded: {bytes_in_words(added)} more.")


def _row(decision: Decision, decisions: Sequence[Decision], *, every: bool) -> list[Text]:
    return [
        Text(visible(name_of(decision, decisions)), style="bold"),
        Text(became(decision), style=_STYLES[decision.action]),
        Text(visible(", ".join(decision.into))),
        Text(visible(", ".join(decision.through))),
        Text(visible(why(decision))),
        Text(visible(decision.source or "") if every else ""),
    ]


def _group_row(group: Group, shown: Sequence[Decision], decisions: Sequence[Decision]) -> list[Text]:
    first = shown[group.members[0]]
    if len(group.members) == 1:
        return _row(first, decisions, every=False)
    return [
        Text(visible(group.names), style="bold"),
        Text(became(first, len(group.members)), style=_STYLES[first.action]),
        Text(visible(group.into)),
        Text(visible(group.through)),
        Text(visible(group.reason)),
        Text(""),
    ]


def render_merges(document: Document, *, every: bool) -> Iterator[Table | Text]:
    """Yield what became of convolutions that could be one.

    Args:
        document: what was done.
        every: show each row, those that stay apart among them.
    """
    merges = document.merges or ()
    shown = [merge for merge in merges if every or (merge.action == "merge" and len(merges) <= MANY)]
    if shown:
        told = [column for column in _MERGES if column != "why not" or any(merge.reason for merge in shown)]
        table = plain_table(*told, numbers=("multiply-accumulates",))
        for merge in shown:
            known = merge.macs_before is not None and merge.macs_after is not None
            macs = f"{large(merge.macs_before or 0)} -> {large(merge.macs_after or 0)}" if known else ""
            row = [
                Text(visible(merge.into), style="bold"),
                Text("merged" if merge.action == "merge" else "apart", style="green" if not merge.reason else "yellow"),
                Text(visible(merged_with(merge))),
                Text(macs),
                Text(visible(why_apart(merge))),
            ]
            table.add_row(*row[: len(told)])
        yield table
        yield Text()
    yield Text(merges_line(merges))


_MERGES = ("convolution", "became", "with", "multiply-accumulates", "why not")


def render_comparisons(document: Document) -> Iterator[Table | Text]:
    """Yield one line per comparison: its error beside its noise floor."""
    if not document.comparisons:
        return
    table = plain_table(
        "comparison", "error", "noise floor", "allowed", "", "on", numbers=("error", "noise floor", "allowed")
    )
    for comparison in document.comparisons:
        passed = comparison["passed"]
        verdict = Text("ok", style="green") if passed else Text("FAILED ", style="bold red")
        if not passed:
            verdict += Text(visible(comparison.get("detail") or ""))
        measured = [number(comparison[key]) for key in ("max_abs", "noise_floor", "allowed")]
        on = Text(comparison.get("compared_on") or "", style="dim")
        table.add_row(Text(visible(comparison["name"]), style="bold"), *measured, verdict, on)
    yield table


def render_counts(document: Document) -> Iterator[Table | Text]:
    """Yield what the model costs to run, before and after."""
    if document.counts is None:
        return
    table = plain_table("one run", "original", "folded", numbers=("original", "folded"))
    for row in counts_in_words(document.counts):
        table.add_row(*row)
    yield table


def render_outcome(document: Document) -> Text:
    """Return the verdict in one line."""
    outcome = document.outcome
    line = Text(outcome, style=_OUTCOMES.get(outcome, "bold red"))
    verification = document.verification
    if verification is None:
        return line
    if verification["passed"]:
        failed = f" in {counted(len(document.comparisons), 'comparison')}"
        cases = verification.get("cases") or ()
        return line + Text(failed + (f" on {counted(len(cases), 'input')}" if cases else ""))
    line += Text(f": {visible(verification.get('reason') or '')}")
    if verification.get("located"):
        line += Text(f" The first BatchNorm that differs is {visible(verification['located'])}.")
    return line


def render_outputs(document: Document) -> Iterator[Text]:
    """Yield a line per file written: models, then reports."""
    for file in (*document.outputs, *document.reports):
        yield Text("wrote ") + Text(visible(file.path), style="bold") + Text(f"  {document.size_of(file)}")


def render_seconds(document: Document) -> Iterator[Table | Text]:
    """Yield where the time went."""
    table = plain_table("stage", "seconds", numbers=("seconds",))
    stages = {stage: seconds for stage, seconds in document.seconds.items() if "." not in stage}
    for stage, seconds in stages.items():
        table.add_row(stage, f"{seconds:.2f}")
        for part, within in document.seconds.items():
            if part.startswith(f"{stage}."):
                table.add_row(f"  {part.removeprefix(f'{stage}.')}", f"{within:.2f}")
    table.add_row("total", f"{sum(stages.values()):.2f}")
    yield table
