"""The records of a run, and their tables as Markdown."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read_checks", "summary"]

Record = Mapping[str, Any]
OUTCOMES = (
    "equivalent",
    "wrong",
    "incomplete",
    "inexact",
    "capture-failed",
    "refused",
    "crash",
    "timeout",
    "memory",
    "died",
    "build-failed",
)


def read_checks(path: Path) -> dict[str, dict[str, Any]]:
    """Read the checks in a file of records: the last of each model, by ``library/model``.

    Args:
        path: ``results.jsonl`` of :mod:`bnfold.batch`, whose records hold the check of a model that came so far, or a
            file of checks, as they were written before there was that. An unfinished line is passed over.
    """
    checks = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            checks.append(record if "model" in record else _check_of(record))
    return {f"{check['library']}/{check['model']}": check for check in checks}


def _check_of(record: Record) -> dict[str, Any]:
    """Return the check in a record of ``bnfold.batch``; of a model that was ended, what is known."""
    if "check" in record:
        return {**record["check"], "peak_bytes": record["peak_bytes"]}
    library, _, model = record["name"].partition("/")
    return {
        "model": model,
        "library": library,
        "family": model,
        "outcome": record["outcome"].replace("out-of-memory", "memory").replace("failed", "crash"),
        "message": record["error"],
        "seconds": {"total": record["seconds"]},
        "peak_bytes": record["peak_bytes"],
    }


def summary(records: Mapping[str, Record]) -> str:
    """Return the tables for the last record of each model, by ``library/model``."""
    rows = list(records.values())
    if not rows:
        return "No records."
    parts = [
        _outcomes(rows),
        _calls(rows),
        _captures(rows),
        _reasons(rows),
        _errors(rows),
        _fuse(rows),
        _exports(rows),
        _failures(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _folded(rows: Iterable[Record]) -> list[Record]:
    """The records of models whose BatchNorms were all decided upon."""
    return [row for row in rows if row.get("actions")]


def _outcomes(rows: Sequence[Record]) -> str:
    shown = [name for name in OUTCOMES if any(row["outcome"] == name for row in rows) or name in OUTCOMES[:2]]
    body: list[list[object]] = []
    libraries = sorted({row["library"] for row in rows})
    for library in [*libraries, *(["all"] if len(libraries) > 1 else [])]:
        mine = [row for row in rows if library in ("all", row["library"])]
        count = Counter(row["outcome"] for row in mine)
        families = {(row["library"], row["family"]) for row in mine}
        body.append([library, len(mine), len(families), *(count[name] for name in shown)])
    return "**Outcomes**\n\n" + _table(["library", "models", "families", *shown], body)


def _calls(rows: Sequence[Record]) -> str:
    done = _folded(rows)
    if not done:
        return ""
    body: list[list[object]] = []
    ways = sorted({row["capture"] for row in done})
    for way in [*ways, *(["all"] if len(ways) > 1 else [])]:
        mine = [row for row in done if way in ("all", row["capture"])]
        calls = sum(row["calls"] for row in mine)
        action = Counter[str]()
        direction = Counter[str]()
        for row in mine:
            action.update(row["actions"])
            direction.update(row["directions"])
        body.append(
            [
                way,
                len(mine),
                calls,
                *(f"{action[name]:,} ({_percent(action[name], calls)})" for name in ("fold", "affine", "keep")),
                *(direction[name] for name in ("backward", "forward", "sideways")),
                sum(row["left"] for row in mine),
            ]
        )
    head = ["capture", "models", "BatchNorm calls", "folded", "explicit affine", "kept"]
    head += ["backward", "forward", "sideways", "BatchNorms left"]
    return "**BatchNorm calls**\n\n" + _table(head, body)


def _captures(rows: Sequence[Record]) -> str:
    """How each way of capture does, and how long it takes beside torch.export."""
    done = [row for row in _folded(rows) if "batch_free" in row]
    body: list[list[object]] = []
    for way in sorted({row["capture"] for row in done}):
        mine = [row for row in done if row["capture"] == way]
        sizes = [row["size_free"] for row in mine if row.get("size_free") is not None]
        both = [row for row in mine if row.get("export_seconds") is not None]
        medians = ["-", "-", "-"]
        if both:
            pairs = [(row["seconds"]["capture"], row["export_seconds"]) for row in both]
            medians = [f"{statistics.median(a for a, _ in pairs):.2f}", f"{statistics.median(b for _, b in pairs):.2f}"]
            medians.append(f"{statistics.median(a / b for a, b in pairs):.2f}")
        free = sum(row["batch_free"] for row in mine)
        body.append([way, len(mine), free, f"{sum(sizes)} of {len(sizes)}", len(both), *medians])
    head = ["capture", "models", "batch free", "size free, of those that are", "exported"]
    head += ["median seconds", "torch.export", "median ratio"]
    return "**Captures**\n\n" + _table(head, body) if body else ""


def _reasons(rows: Sequence[Record]) -> str:
    calls, models, example = Counter[tuple[str, str]](), Counter[tuple[str, str]](), dict[tuple[str, str], str]()
    for row in _folded(rows):
        for became, reasons in (("affine", row["reasons"]), ("kept", row.get("kept", {}))):
            for reason, count in reasons.items():
                key = (reason, became)
                calls[key] += count
                models[key] += 1
                example.setdefault(key, row["model"])
    if not calls:
        return ""
    body = [[*key, count, models[key], example[key]] for key, count in calls.most_common()]
    return "**Why not folded**\n\n" + _table(["reason", "became", "calls", "models", "for example"], body)


def _errors(rows: Sequence[Record]) -> str:
    done = [row for row in rows if "folded32" in row.get("error", {})]
    if not done:
        return ""
    steady = [row for row in done if math.isfinite(float(row["error"]["original32"]))]
    ratios = [float(row["error"]["folded32"]) / max(float(row["error"]["original32"]), 1e-9) for row in steady]
    names = [
        (done, "algebra", "float64, the plan applied to the captured graph"),
        (done, "float64", "float64, against the model itself"),
        (steady, "original32", "float32, the original's own"),
        (steady, "folded32", "float32, folded"),
    ]
    body = [[text, *_middle_and_worst([row["error"][key] for row in rows])] for rows, key, text in names if rows]
    if ratios:
        body.append(["float32, folded, over the original's", f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}"])
    notes = []
    if len(steady) < len(done):
        notes.append(
            f"{len(done) - len(steady)} detectors are left out of the float32 rows: their own float32 lists of boxes "
            "differ from the float64 ones in length."
        )
    hidden = [len(row["unseen"]) for row in done if row.get("unseen")]
    notes.append(
        f"{sum(hidden):,} BatchNorms in {len(hidden):,} models move the outputs too little for these to see them."
    )
    return (
        "**Errors in units of the peak of an output**\n\n"
        + _table(["", "median", "worst"], body)
        + "\n\n"
        + " ".join(notes)
    )


def _middle_and_worst(values: Iterable[Any]) -> tuple[str, str]:
    numbers = [float(value) for value in values]
    return f"{statistics.median(numbers):.1e}", f"{max(numbers):.1e}"


def _fuse(rows: Sequence[Record]) -> str:
    both = [row for row in rows if row.get("fuse") and row["fuse"]["takes"] is not None]
    if not both:
        return ""
    ours, theirs = _folded(both), [row for row in both if row["fuse"]["takes"]]
    calls = sum(_count(row) for row in both)
    untouched = calls - sum(_count(row) for row in ours), calls - sum(_count(row) for row in theirs)
    left = sum(row["left"] for row in ours), sum(row["fuse"]["left"] for row in theirs)
    body: list[list[object]] = [
        [
            "bnfold",
            f"{len(ours):,} of {len(both):,}",
            calls,
            untouched[0] + left[0],
            untouched[0] + sum(row["calls"] - row["actions"]["fold"] for row in ours),
            sum(row["outcome"] == "wrong" for row in both),
        ],
        [
            "torch.fx.experimental.optimization.fuse",
            f"{len(theirs):,} of {len(both):,}",
            calls,
            untouched[1] + left[1],
            untouched[1] + left[1],
            sum(bool(row["fuse"]["wrong"]) for row in theirs),
        ],
    ]
    head = ["tool", "models taken", "BatchNorm calls", "left as a BatchNorm", "not folded", "wrong"]
    text = "**Beside the usual tool**\n\n" + _table(head, body)
    same = [row for row in theirs if row.get("actions")]
    if same:
        text += "\n\nMedian seconds for capture and fold, one thread, of the models that both take: bnfold "
        text += f"{statistics.median(row['seconds']['fold'] for row in same):.2f}, fuse "
        text += f"{statistics.median(row['fuse']['seconds'] for row in same):.2f}."
    return text


def _count(row: Record) -> int:
    """BatchNorm calls; where bnfold did not take the model, its BatchNorm modules."""
    return int(row.get("calls") or row.get("batchnorms") or 0)


def _exports(rows: Sequence[Record]) -> str:
    tried = [row for row in rows if row.get("export")]
    if not tried:
        return ""
    failed = [row for row in tried if "failed" in row["export"]]
    nodes = sum(row["export"].get("batch_normalization", 0) for row in tried)
    body = [[len(tried), len(tried) - len(failed), nodes]]
    text = "**ONNX exports**\n\n" + _table(["models", "exported", "BatchNormalization nodes"], body)
    if failed:
        text += "\n\n" + _table(["model", "why not"], [[row["model"], row["export"]["failed"][:160]] for row in failed])
    return text


def _failures(rows: Sequence[Record]) -> str:
    bad = [row for row in rows if row["outcome"] != "equivalent"]
    if not bad:
        return ""
    bad.sort(key=lambda row: (OUTCOMES.index(row["outcome"]), row["library"], row["model"]))
    body = [[f"{row['library']}/{row['model']}", row["outcome"], row.get("message", "")[:200]] for row in bad]
    return "**Not equivalent**\n\n" + _table(["model", "outcome", "message"], body)
