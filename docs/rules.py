"""Write the tables of ``docs/explanation/rules.md`` from the operations themselves: ``python docs/rules.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "rules.md"


def tables() -> dict[str, str]:
    """Return the tables of the page, by the name of their place in it."""
    import bnfold.onnx_graph.spellings.quantised  # noqa: F401 - defines an operation
    from bnfold import ops
    from bnfold.fold.rules import RULES

    rules = ["| operation | why an affine passes it | conditions |", "| --- | --- | --- |"]
    for kind, rule in RULES.items():
        conditions = ", ".join(condition.__name__.replace("_", " ") for condition in rule.conditions) or "none"
        rules.append(f"| **{kind.__name__}**: {_first_line(kind)} | {_cell(rule.mathematics)} | {conditions} |")
    absorbers = ["| operation | takes an affine |", "| --- | --- |"]
    for kind in ops.kinds(ops.Absorber):
        sides = ", ".join(f"{side} it" for side in ("after", "before", "beside") if side in kind.takes)
        absorbers.append(f"| **{kind.__name__}**: {_first_line(kind)} | {sides} |")
    return {"rules": "\n".join(rules), "absorbers": "\n".join(absorbers)}


def current(page: str) -> str:
    """Return the page with its tables as they are now."""
    for name, table in tables().items():
        begin, end = f"<!-- {name}: made by docs/rules.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        page = pattern.sub(lambda _, text=f"{begin}\n{table}\n{end}": text, page)  # type: ignore[misc]
    return page


def _first_line(kind: type) -> str:
    line = re.sub(r":\w+:`~?([^`]+)`", r"\1", (kind.__doc__ or "").splitlines()[0])
    return _cell(line.replace("``", "`").rstrip("."))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("r*r", "r\\*r")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(current(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
