"""Writes what was measured of ONNX files into its section of ``results/onnx.md``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["RESULTS", "table", "write_section"]

RESULTS = Path(__file__).resolve().parent / "results" / "onnx.md"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_section(title: str, text: str, path: Path = RESULTS) -> None:
    """Put paragraphs and tables in the place of the section of that title, or at the end where there is none."""
    whole = path.read_text(encoding="utf-8")
    parts = [part if part.startswith("|") else textwrap.fill(part, 118) for part in text.strip().split("\n\n")]
    section = "\n\n".join([f"## {title}", *parts]) + "\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", whole, re.MULTILINE | re.DOTALL)
    if found is None:
        whole = f"{whole.rstrip()}\n\n{section}"
    else:
        after = whole[found.end() :]
        whole = f"{whole[: found.start()]}{section}" + (f"\n{after}" if after else "")
    path.write_text(whole, encoding="utf-8")
