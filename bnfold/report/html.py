"""The report as one HTML page that needs nothing else: no network, no server, works from a mail attachment.

Names in it come from the model. Jinja escapes all that it is given, SVG is built with the same escaping, data for the
script is JSON without ``<``, ``>`` and ``&``, and a content security policy lets nothing run but the page's own script,
known by its hash, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from bnfold.fold.decision import Decision, MergeDecision
from bnfold.printable import bytes_in_words
from bnfold.report.benched import COLUMNS, bench_rows, machine_line, skipped_lines
from bnfold.report.charts import error_bar, error_range, scale_bars, site_chart, squeezed
from bnfold.report.details import Affine, Details, Picture, SiteError
from bnfold.report.document import Document, versions
from bnfold.report.escape import visible
from bnfold.report.groups import Group, grouped
from bnfold.report.picture import drawn
from bnfold.report.templates import page_source, page_template
from bnfold.report.words import (
    became,
    counted,
    counts_in_words,
    merged_with,
    merges_line,
    name_of,
    number,
    summary_line,
    why,
    why_apart,
)

__all__ = ["html"]

_MOODS = {"equivalent": "good", "not verified": "open", "measured": "open"}
_SIGNS = {"good": "✓", "open": "·", "bad": "✗"}


def html(document: Document) -> str:
    """Return the document as one page."""
    details = document.details or Details()
    sites = {site.decision: site for site in details.sites}
    affines = {affine.decision: affine for affine in details.affines}
    drawings = [
        drawn(picture, document.batchnorms, n, document.merges or ()) for n, picture in enumerate(details.pictures)
    ]
    places = {index: place for drawing in drawings for index, place in drawing.sites.items()}
    low, high = error_range(document.comparisons)
    mood = _MOODS.get(document.outcome, "open" if document.command == "explain" else "bad")
    names = [visible(name_of(decision, document.batchnorms)) for decision in document.batchnorms]
    script = page_source("page.js")
    return page_template("page.html.j2").render(
        document=document,
        outcome="explained" if document.command == "explain" else document.outcome,
        mood=mood,
        sign=_SIGNS[mood],
        visible=visible,
        summary=summary_line(document) if document.capture is not None else None,
        groups=[
            _group(
                group,
                document.batchnorms[group.members[0]],
                [
                    _row(n, document.batchnorms[n], names[n], places.get(n), affines.get(n), sites.get(n))
                    for n in group.members
                ],
            )
            for group in grouped(document.batchnorms)
        ],
        columns={
            "into": any(decision.into for decision in document.batchnorms),
            "through": any(decision.through for decision in document.batchnorms),
            "why": any(decision.action != "fold" for decision in document.batchnorms),
        },
        has_sites=bool(sites),
        has_affines=bool(affines),
        drawings=drawings,
        kinds=_kinds(details.pictures),
        costs=None if document.counts is None else counts_in_words(document.counts),
        merges=None if document.merges is None else _merges(document.merges),
        bench=None if document.bench is None else _bench(document.bench),
        comparisons=[(c, error_bar(c, low, high)) for c in document.comparisons],
        decades=(f"1e{low:g}", f"1e{high:g}"),
        site_chart=site_chart(details.sites, [names[site.decision] for site in details.sites]),
        details=details,
        size=bytes_in_words,
        number=number,
        counted=counted,
        versions=versions(),
        data=_json([squeezed(affine) for affine in details.affines]),
        style=Markup(page_source("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _group(group: Group, first: Decision, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table shows about decisions that say the same: their rows, and one for all of them."""
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    return {
        "rows": rows,
        "id": f"g{group.members[0]}",
        "name": _breakable(visible(group.names)),
        "action": first.action,
        "became": became(first, len(rows)),
        "into": _breakable(visible(group.into)),
        "through": _breakable(visible(group.through)),
        "detail": visible(group.reason),
        "negative": sum(bool(row["negative"]) for row in rows),
        "near_zero": sum(bool(row["near_zero"]) for row in rows),
        "floors": _ratio_in_words(max(ratios)) if ratios else None,
        "far": any(row["far"] for row in rows),
    }


def _ratio_in_words(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def _row(
    index: int, decision: Decision, name: str, place: str | None, affine: Affine | None, site: SiteError | None
) -> dict[str, Any]:
    """What the table shows about one BatchNorm."""
    ratio = None if site is None else (site.error / site.floor if site.floor > 0 else 0.0 if site.error == 0 else None)
    return {
        "id": f"b{index}",
        "index": index,
        "name": _breakable(name),
        "place": place,
        "action": decision.action,
        "became": became(decision),
        "into": _breakable(visible(", ".join(decision.into))),
        "through": _breakable(visible(", ".join(decision.through))),
        "reason": decision.reason,
        "detail": visible(why(decision)),
        "source": visible(decision.source or ""),
        "spread": None if affine is None or not affine.scale else scale_bars(affine),
        "channels": 0 if affine is None else len(affine.scale),
        "negative": 0 if affine is None else affine.negative,
        "near_zero": 0 if affine is None else affine.near_zero,
        "site": site,
        "ratio": ratio,
        "floors": None if ratio is None else _ratio_in_words(ratio),
        "far": ratio is not None and ratio > 10,
    }


def _merges(merges: Sequence[MergeDecision]) -> dict[str, Any]:
    """What the page shows of merges."""
    rows = [
        {
            "into": _breakable(visible(merge.into)),
            "done": merge.action == "merge",
            "with": _breakable(visible(merged_with(merge))),
            "why": visible(why_apart(merge)),
        }
        for merge in merges
    ]
    return {"line": merges_line(merges), "rows": rows}


def _bench(bench: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of the latency."""
    return {
        "columns": COLUMNS,
        "rows": bench_rows(bench),
        "machine": machine_line(bench),
        "skipped": skipped_lines(bench),
    }


def _breakable(name: str) -> Markup:
    """Return a qualified name that a narrow column may break after its dots."""
    return escape(name).replace(".", Markup(".<wbr>"))


def _kinds(pictures: Sequence[Picture]) -> list[tuple[str, int, int]]:
    """Return how often each kind of call stands in the graph before and after: ``(kind, before, after)``."""
    if not any(picture.after for picture in pictures):
        return []
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for picture in pictures:
        for count, vertices in ((before, picture.before), (after, picture.after)):
            count.update(v.kind.split()[0] for v in vertices if v.role != "end" and v.kind)
    every = [(visible(kind), before[kind], after[kind]) for kind in {**before, **after}]
    return sorted(every, key=lambda row: (row[1] == row[2], -row[1], row[0]))


def _json(data: Any) -> Markup:
    """Return JSON that may stand in a script element: ASCII, and no character that could end it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
