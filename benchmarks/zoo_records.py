"""The file of records: one JSON line per model, appended, the last line of a model being the one that counts."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["append", "latest", "read_records"]

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Append a record as one line; NaN and infinity become strings, since JSON has neither."""
    line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and not _ends_a_line(file):  # a stopped run left half a line
            line = b"\n" + line
        file.write(line)


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_records(path: Path) -> list[Record]:
    """Read the records of a file; a line that a stopped run left unfinished is passed over, and its model run again."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """Return the last record of every model, by ``library/model``."""
    return {f"{record['library']}/{record['model']}": record for record in records}
