"""What a run came to, over all models: a table for the terminal, ``index.html``, ``junit.xml``, Markdown and JSON."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from bnfold._version import __version__
from bnfold.batch.records import RESULTS, Record
from bnfold.batch.units import memory_in_words, seconds_in_words
from bnfold.files.save import Output, write_outputs
from bnfold.report.escape import for_markdown, for_xml, for_xml_attribute, visible
from bnfold.report.templates import page_source, page_template

__all__ = ["OUTCOMES", "by_outcome", "overview", "write_overview"]

OUTCOMES = (
    "equivalent",
    "not-verified",
    "not-equivalent",
    "refused",
    "failed",
    "timeout",
    "out-of-memory",
    "died",
)
"""In the order of tables."""


def by_outcome(records: Sequence[Record]) -> dict[str, int]:
    """Return how many models have each outcome that occurs, the usual ones first."""
    count = Counter(record["outcome"] for record in records)
    return {name: count[name] for name in [*OUTCOMES, *sorted(set(count) - set(OUTCOMES))] if count[name]}


def render_overview(records: Sequence[Record]) -> Table:
    """Return the table by outcome, for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, right in (
        ("outcome", False),
        ("models", True),
        ("BatchNorms", True),
        ("folded", True),
        ("longest", True),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    table.add_column("most memory", justify="right", no_wrap=True)
    for outcome, count in by_outcome(records).items():
        mine = [record for record in records if record["outcome"] == outcome]
        calls, folded = _calls(mine)
        seconds = max((record["seconds"] or 0.0 for record in mine), default=0.0)
        peak = max((record["peak_bytes"] or 0 for record in mine), default=0)
        style = "green" if outcome == "equivalent" else "red"
        cells = (str(calls), str(folded)) if calls else ("", "")
        table.add_row(
            Text(outcome, style=style),
            str(count),
            *cells,
            seconds_in_words(seconds),
            memory_in_words(peak) if peak else "",
        )
    return table


def _calls(records: Sequence[Record]) -> tuple[int, int]:
    """How many BatchNorm calls there are, and how many of them folded."""
    summaries = [record["summary"] for record in records if record.get("summary")]
    return sum(sum(summary.values()) for summary in summaries), sum(summary["fold"] for summary in summaries)


def write_overview(folder: Path, records: Sequence[Record]) -> None:
    """Write ``index.html`` and ``junit.xml``, both or none."""
    made = [Output(folder / name, overview(Path(name), records, folder)) for name in ("index.html", "junit.xml")]
    write_outputs(made, inputs=[], force=True)


def overview(path: Path, records: Sequence[Record], folder: Path) -> bytes:
    """Return the bytes of a report on all models; the suffix of ``path`` says in which format.

    Args:
        path: where it will stand.
        records: of the models, in order.
        folder: of the results, which links lead to.
    """
    return _FORMATS[path.suffix](records, folder, path).encode("utf-8")


def as_json(records: Sequence[Record]) -> str:
    """Return all records as JSON."""
    data = {"schema": 1, "outcomes": by_outcome(records), "models": list(records)}
    return json.dumps(data, indent=2, ensure_ascii=True) + "\n"


def junit(records: Sequence[Record]) -> str:
    """Return a test case for each model; one that is not equivalent has failed."""
    bad = sum(record["outcome"] != "equivalent" for record in records)
    seconds = sum(record["seconds"] or 0.0 for record in records)
    head = f'tests="{len(records)}" failures="{bad}" errors="0" skipped="0" time="{seconds:.3f}"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<testsuites name="bnfold batch">']
    lines.append(f'  <testsuite name="bnfold.batch" {head}>')
    for record in records:
        inside = ""
        if record["outcome"] != "equivalent":
            message = f"{record['outcome']}: {record.get('error') or 'no more is known'}"
            inside = f"<failure message={for_xml_attribute(message)}/>"
        for sentence in record.get("before", ()):
            inside += f"<system-out>{for_xml(sentence)}</system-out>"
        name, time = for_xml_attribute(record["name"]), record["seconds"] or 0.0
        lines.append(f'    <testcase classname="bnfold.batch" name={name} time="{time:.3f}">{inside}</testcase>')
    return "\n".join([*lines, "  </testsuite>", "</testsuites>"]) + "\n"


def markdown(records: Sequence[Record]) -> str:
    """Return the counts, and a table of what is not equivalent, for a CI's summary."""
    counts = ", ".join(f"{count} {name}" for name, count in by_outcome(records).items())
    lines = [f"**{len(records)} models: {counts}**" if records else "**No models**", ""]
    bad = [record for record in records if record["outcome"] != "equivalent"]
    if bad:
        lines += ["| model | outcome | why |", "| --- | --- | --- |"]
        lines += [
            f"| {for_markdown(r['name'])} | {for_markdown(r['outcome'])} | {for_markdown(r.get('error') or '')} |"
            for r in bad
        ]
    return "\n".join(lines).rstrip() + "\n"


def html(records: Sequence[Record], folder: Path, path: Path) -> str:
    """Return the page: a table of all models to sort, filter and follow links from; it needs nothing but itself."""
    script = page_source("batch.js")
    base = folder.absolute() if path.is_absolute() or path.parent != Path() else Path()
    calls, folded = _calls(records)
    bad = sum(record["outcome"] != "equivalent" for record in records)
    return page_template("batch.html.j2").render(
        rows=[_row(record, folder, base) for record in records],
        outcomes=by_outcome(records),
        bad=bad,
        calls=calls,
        folded=folded,
        total=len(records),
        version=__version__,
        results=RESULTS,
        visible=visible,
        style=Markup(page_source("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _row(record: Record, folder: Path, base: Path) -> dict[str, object]:
    """What the page shows of one model; links only to what is there."""
    links = []
    where = Path(record.get("folder") or ".")
    names = [("page", "report.html"), ("log", "log.txt")]
    names += [(Path(output["path"]).suffix, output["path"]) for output in record.get("outputs") or ()]
    for text, name in names:
        if (folder / where / name).is_file():
            links.append((text, quote((base / where / name).as_posix())))
    summary = record.get("summary") or {}
    return {
        "name": visible(record["name"]),
        "source": visible(record.get("source") or ""),
        "outcome": visible(record["outcome"]),
        "good": record["outcome"] == "equivalent",
        "summary": summary,
        "batchnorms": sum(summary.values()) if summary else None,
        "seconds": record.get("seconds"),
        "time": seconds_in_words(record["seconds"]) if record.get("seconds") is not None else "",
        "peak": record.get("peak_bytes"),
        "memory": memory_in_words(record["peak_bytes"]) if record.get("peak_bytes") else "",
        "error": visible(record.get("error") or ""),
        "before": [visible(sentence) for sentence in record.get("before", ())],
        "page": next((link for text, link in links if text == "page"), None),
        "links": links,
    }


_FORMATS: dict[str, Callable[[Sequence[Record], Path, Path], str]] = {
    ".html": html,
    ".json": lambda records, _folder, _path: as_json(records),
    ".md": lambda records, _folder, _path: markdown(records),
    ".xml": lambda records, _folder, _path: junit(records),
}
