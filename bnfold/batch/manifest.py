"""The manifest: which models, each with the options of ``bnfold fold``; a bad row is told before anything starts.

A ``.csv`` file has a row for each model and a column for each option that some model needs; a ``.jsonl`` file has an
object for each model. A folder stands for all model files in it.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bnfold.batch.columns import columns, path_from
from bnfold.batch.job import FOLD, Job, folder_name
from bnfold.batch.units import parse_memory, parse_seconds
from bnfold.cli.outputs import output_paths
from bnfold.errors import FileAccessError, UsageError
from bnfold.files.code import looks_like_spec
from bnfold.printable import shown, shown_path

__all__ = ["SUFFIXES", "read_manifest"]

SUFFIXES = (".pt", ".pth", ".safetensors", ".pt2", ".onnx")
"""Of the files that count as models in a folder."""

_OWN = ("name", "source", "timeout", "memory")
_MOST_TOLD = 10


@dataclass
class _Row:
    """One row as it stands, and where; ``problems`` gathers what is wrong, with its column."""

    line: int
    cells: Mapping[str, Any]
    problems: list[tuple[str | None, str]] = field(default_factory=list)


def read_manifest(
    manifest: Path, output: Path, *, defaults: Mapping[str, Sequence[str]] | None = None, work: str = FOLD
) -> list[Job]:
    """Read a manifest.

    Args:
        manifest: a ``.csv`` or ``.jsonl`` file, or a folder of model files.
        output: the folder that gets all results.
        defaults: of columns, where a row has nothing: values as on a command line, paths absolute.
        work: what runs for each model.

    Raises:
        UsageError: rows are wrong; it says which, with line and column.
        FileAccessError: the manifest cannot be read.
    """
    rows = _rows(manifest)
    folder = (manifest if manifest.is_dir() else manifest.parent).absolute()
    jobs, problems = [], []
    seen: dict[str, int] = {}
    for row in rows:
        job = _job(row, folder, output.absolute(), defaults or {}, work)
        if job is not None and job.name in seen:
            row.problems.append(("name", f"{shown(job.name)!r} is the name of line {seen[job.name]} too."))
        if row.problems:
            problems += [_told(manifest, row.line, column, text) for column, text in row.problems]
        elif job is not None:
            seen[job.name] = row.line
            jobs.append(job)
    if problems:
        more = f" And {len(problems) - _MOST_TOLD} more." if len(problems) > _MOST_TOLD else ""
        raise UsageError(" ".join(problems[:_MOST_TOLD]) + more, fix="Correct the manifest; nothing was started.")
    if not jobs:
        raise UsageError(
            f"There is no model in {shown_path(manifest)}.",
            fix=f"A folder must hold {', '.join(SUFFIXES)} files; a manifest needs a row for each model.",
        )
    return jobs


def _told(manifest: Path, line: int, column: str | None, text: str) -> str:
    where = f", column {column}" if column else ""
    return f"{shown_path(manifest)}, line {line}{where}: {text}"


def _rows(manifest: Path) -> list[_Row]:
    try:
        if manifest.is_dir():
            paths = sorted(path for path in manifest.rglob("*") if path.suffix in SUFFIXES and path.is_file())
            names = [path.relative_to(manifest).as_posix() for path in paths]
            return [_Row(number, {"name": name, "source": name}) for number, name in enumerate(names, start=1)]
        text = manifest.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileAccessError(
            f"The manifest {shown_path(manifest)} cannot be read: {error.strerror}.",
            fix="Give a .csv or .jsonl file, or a folder of models.",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The manifest {shown_path(manifest)} is not UTF-8 text.", fix="Save it as UTF-8.") from error
    if manifest.suffix == ".csv":
        return list(_of_csv(text))
    if manifest.suffix in (".jsonl", ".ndjson"):
        return list(_of_jsonl(text))
    raise UsageError(
        f"The suffix of the manifest {shown_path(manifest)} names no format.", fix="Give .csv, .jsonl, or a folder."
    )


def _of_csv(text: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins = 1
    try:
        head = [name.strip() for name in next(reader, [])]
        problems: list[tuple[str | None, str]] = [(name or "?", why) for name in head if (why := _unknown(name))]
        problems += [(name, "It stands there twice.") for name in {*head} if head.count(name) > 1]
        if problems:
            yield _Row(1, {}, problems)
            return
        begins = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                row = _Row(begins, dict(zip(head, cells, strict=False)))
                if len(cells) > len(head):
                    row.problems.append((None, f"It has {len(cells)} cells, and there are {len(head)} columns."))
                yield row
            begins = reader.line_num + 1
    except csv.Error as error:
        yield _Row(begins, {}, [(None, f"It is no CSV: {error}.")])


def _of_jsonl(text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except ValueError as error:
            column = getattr(error, "colno", None)
            yield _Row(number, {}, [(None if column is None else str(column), f"It is no JSON: {error}.")])
            continue
        if not isinstance(cells, dict):
            yield _Row(number, {}, [(None, "It is no JSON object.")])
            continue
        yield _Row(number, cells, [(shown(name), why) for name in cells if (why := _unknown(name))])


def _unknown(name: str) -> str | None:
    """Return what to say of a column that does not exist."""
    known = [*_OWN, *columns()]
    if name in known:
        return None
    near = difflib.get_close_matches(name, known, n=1)
    return "There is no such column" + (f"; is it {near[0]}?" if near else f"; there are {', '.join(known)}.")


def _job(row: _Row, folder: Path, output: Path, defaults: Mapping[str, Sequence[str]], work: str) -> Job | None:
    """Return what a row asks for; None where it is wrong, and then its problems say why."""
    if row.problems:
        return None
    cell = row.cells.get
    values: dict[str, list[str]] = {}
    for name, column in columns().items():
        try:
            given = column.values(cell(name))
        except click.BadParameter as error:
            row.problems.append((name, error.message.rstrip(".") + "."))
            continue
        empty = cell(name) is None or cell(name) == ""
        values[name] = list(defaults.get(name, ())) if empty else given
        if not empty and column.names_files:
            values[name] = [path_from(folder, text) for text in given]
    limits = {"timeout": _limit(row, "timeout", parse_seconds), "memory": _limit(row, "memory", parse_memory)}
    source, spec = _text(cell("source")), next(iter(values.get("model", ())), None)
    if source is None and spec is None:
        row.problems.append(("source", "It is empty, and column model names nothing that makes the model."))
    if row.problems:
        return None
    name = _text(cell("name")) or source or str(spec)
    return _made(name, source, spec, values, limits, folder, output, work)


def _limit(row: _Row, name: str, parse: Callable[[str], float]) -> Any:
    text = _text(row.cells.get(name))
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        row.problems.append((name, str(error)))
        return None


def _beside(source: str) -> list[str]:
    """Return the files of an ONNX model's external data, as they are usually called, that are there."""
    return [path for path in (source + ".data", source + "_data") if source.endswith(".onnx") and os.path.isfile(path)]


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None


def _made(
    name: str,
    source: str | None,
    spec: str | None,
    values: dict[str, list[str]],
    limits: Mapping[str, Any],
    folder: Path,
    output: Path,
    work: str,
) -> Job:
    if source is not None:
        source = path_from(folder, source)
        if looks_like_spec(source):
            source, spec = None, source
    model = source or str(spec)
    if source is None:
        values = values | {"model": []}
    place = output / "models" / folder_name(name)
    factory = model.rpartition(":")[2].rpartition(".")[2] if source is None else None
    own = output_paths((), model, factory)  # as `bnfold fold` would name them
    if source is not None and source.endswith(".onnx"):
        own = [path for path in own if path.suffix == ".onnx"]
    outputs = values.pop("output") or [path.name for path in own]
    reports = ["report.json", "report.html", *values.pop("report")]
    arguments = [f"--output={place / path}" for path in outputs] + [f"--report={place / path}" for path in reports]
    for column in columns().values():
        arguments += column.arguments(values.get(column.name, ()))
    if "--force" not in arguments:
        arguments.append("--force")  # the folder is the model's own
    of_specs = [text.rpartition(":")[0] for text in (model, *values["model"]) if looks_like_spec(text)]
    reads = [source or "", *(path for path in of_specs if path.endswith(".py"))]
    reads += _beside(source) if source is not None else []
    named = [each.name for each in columns().values() if each.names_files and each.name != "model"]
    reads += [path for name in named for path in values[name]]
    return Job(
        name=name,
        source=source,
        arguments=(model, *arguments),
        folder=str(place),
        reads=tuple(dict.fromkeys(path for path in reads if path)),
        work=work,
        seconds=limits["timeout"],
        memory=limits["memory"],
    )
