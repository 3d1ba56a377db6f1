"""Write ``docs/reference/versions.md`` from the records of ``make matrix``: ``python docs/versions.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "versions.md"
sys.path.insert(0, str(ROOT))

from benchmarks import matrix  # noqa: E402  the folder is none of a package's

HEAD = """# Versions of torch and Python

bnfold works with torch {oldest} and newer, and with Python {python} and newer. `make matrix` tries some of them, one at
a time and each in an environment of its own: the core tests (folding, capture, rules, proof, both exports), `bnfold
doctor` (a fold, `torch.export`, `.pt2`, ONNX, ONNX Runtime) and the demo. This page is made by `docs/versions.py` from
what it recorded.

| Python | torch | onnx | onnxscript | onnxruntime | numpy | core tests | exports | demo |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page as the records and the limits make it."""
    lines = [row(record) for record in sorted(matrix.records(), key=_order)]
    limits = [f"- Before torch {_dotted(limit.before)}: {limit.sentence}" for limit in matrix.LIMITS]
    count = sum(len(limit.tests) for limit in matrix.LIMITS)
    return (
        HEAD.format(oldest=bound("torch>="), python=bound('requires-python = ">='))
        + "\n".join(lines)
        + "\n\n## What older versions cannot do\n\n"
        + f"The {count} tests that show these are left out where they apply.\n\n"
        + "\n".join(limits)
        + "\n\nWhat differs in the code stands in one module, `bnfold/graph/torch_versions.py`.\n"
    )


def row(record: dict[str, Any]) -> str:
    """Return the line of one record."""
    if "error" in record:
        return f"| {record['python']} | {record['torch']} | | | | | not tried: {record['error']} | | |"
    have = record["installed"]
    core = record["core"]
    told = ", ".join(f"{core[word]} {word}" for word in ("passed", "skipped", "failed", "error") if core.get(word))
    packages = " | ".join(
        have[name].partition("+")[0] for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    )
    return f"| {record['python']} | {packages} | {told} | {record['export']} | {record['demo']} |"


def bound(before: str) -> str:
    """Return the version that follows some text in pyproject.toml."""
    rest = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition(before)[2]
    return rest.split(",")[0].split('"')[0]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _order(record: dict[str, Any]) -> tuple[int, ...]:
    parts = (*record["torch"].split("."), *record["python"].split("."))
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
