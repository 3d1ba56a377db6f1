"""The words that all formats share: what became of a BatchNorm, what a comparison compared, numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnfold.fold.decision import Decision, MergeDecision
from bnfold.printable import bytes_in_words

if TYPE_CHECKING:
    from bnfold.report.document import Document

__all__ = [
    "became",
    "counted",
    "counts_in_words",
    "folded_in_words",
    "large",
    "merged_with",
    "merges_line",
    "name_of",
    "number",
    "summary_line",
    "why",
    "why_apart",
]


def became(decision: Decision, count: int = 1) -> str:
    """Return what became of a BatchNorm, or of several of which this is one, in a few words."""
    if count > 1:
        explicit = decision.action == "affine" and decision.kind == "batchnorm"
        return f"{count} explicit affines" if explicit else f"{count} {became(decision)}"
    if decision.kind == "affine" and decision.action == "affine":
        return "left an affine"
    if decision.action == "fold":
        return f"folded {decision.direction}" if decision.direction else "folded"
    return {"affine": "explicit affine", "keep": "kept"}[decision.action]


def name_of(decision: Decision, all_decisions: Sequence[Decision]) -> str:
    """Return the BatchNorm's name; where it is called more than once, with the call's node."""
    calls = sum(other.batchnorm == decision.batchnorm for other in all_decisions)
    return f"{decision.batchnorm} at {decision.site}" if calls > 1 and decision.site else decision.batchnorm


def why(decision: Decision) -> str:
    """Return the reason alone: nothing for a fold, and without what a table says in other columns."""
    if decision.action == "fold":
        return ""
    return f"{decision.because}." if decision.because and decision.action == "affine" else decision.detail


def merges_line(merges: Sequence[MergeDecision]) -> str:
    """Return the sums of what was merged in one line."""
    done = [merge for merge in merges if merge.action == "merge"]
    apart = len(merges) - len(done)
    left = f"; {apart} stay apart" if apart else ""
    if not done:
        return f"No convolutions became one{left}"
    before = [merge.macs_before for merge in done if merge.macs_before is not None]
    after = [merge.macs_after for merge in done if merge.macs_after is not None]
    saved = f", with {large(sum(after))} multiply-accumulates instead of {large(sum(before))}" if before else ""
    layers = sum(len(merge.merged) + 1 for merge in done)
    return f"{counted(len(done), 'merge')}: {counted(layers, 'layer')} became {len(done)}{saved}{left}"


def merged_with(merge: MergeDecision) -> str:
    """Return what goes into a convolution, or would have: layers, and the identity."""
    return ", ".join((*merge.merged, *(("the identity",) if merge.identity else ())))


def why_apart(merge: MergeDecision) -> str:
    """Return the reason alone, without the names."""
    return f"{merge.because}." if merge.because else ""


def number(value: float | None) -> str:
    """Return a number in three digits; what JSON cannot hold is a dash.

    >>> number(0.00012345), number(None), number(0.0)
    ('1.23e-04', '-', '0')
    """
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.2e}"


def counted(count: int, singular: str) -> str:
    """Return ``1 BatchNorm`` or ``3 BatchNorms``."""
    return f"{count} {singular}" if count == 1 else f"{count} {singular}s"


def summary_line(document: Document) -> str:
    """Return the sums of a plan in one line."""
    summary, capture = document.summary, document.capture
    affines = sum(decision.kind == "affine" for decision in document.batchnorms)
    total = counted(sum(summary.values()) - affines, "BatchNorm")
    if affines:
        total += f" and {counted(affines, 'affine')} by constants"
    how = "" if capture is None else f" ({capture} capture)"
    return f"{total}: {summary['fold']} folded, {summary['affine']} explicit affine, {summary['keep']} kept{how}"


def folded_in_words(folded: Sequence[Decision]) -> str:
    """Return how many of the folded ones went which way, and how many moved through something."""
    ways = Counter(decision.direction or "in place" for decision in folded)
    parts = [f"{count} {way}" for way, count in ways.most_common()]
    moved = sum(bool(decision.through) for decision in folded)
    return ", ".join(parts) + (f"; {moved} of them through other layers" if moved else "")


def counts_in_words(counts: tuple[dict[str, Any], dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return rows of what a model costs to run: what is counted, before, after.

    >>> cost = {"macs": 2_500_000, "parameters": 900, "parameter_bytes": 4096, "ops": {"batch_norm": 3, "relu": 2}}
    >>> counts_in_words((cost, cost | {"ops": {"relu": 2}}))[0]
    ('multiply-accumulates', '2.5 M', '2.5 M')
    """
    before, after = counts
    rows = []
    if before["macs"] is not None and after["macs"] is not None:
        rows.append(("multiply-accumulates", large(before["macs"]), large(after["macs"])))
    rows.append(("parameters", large(before["parameters"]), large(after["parameters"])))
    rows.append(
        ("memory of the weights", bytes_in_words(before["parameter_bytes"]), bytes_in_words(after["parameter_bytes"]))
    )
    if before["ops"] and after["ops"]:
        rows.append(("operations", str(sum(before["ops"].values())), str(sum(after["ops"].values()))))
        for name in sorted(before["ops"].keys() | after["ops"].keys()):
            old, new = before["ops"].get(name, 0), after["ops"].get(name, 0)
            if old != new:
                rows.append((f"  {name}", str(old), str(new)))
    return rows


def large(count: int) -> str:
    """Return a large number in three digits.

    >>> large(1_234_567), large(999), large(12_345)
    ('1.23 M', '999', '12.3 k')
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}" if count < 1000 * size else f"{count / size:,.0f} {letter}"
    return str(count)
