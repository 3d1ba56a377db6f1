"""The tables of the page of rules are those of the code."""

from __future__ import annotations

import bnfold.onnx_graph.spellings.quantised  # noqa: F401 - defines an operation
from bnfold import ops
from bnfold.fold.rules import RULES
from tests.docs.scripts import script


def test_the_page_is_current() -> None:
    made = script("rules")
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.current(page) == page, "run: python docs/rules.py"
    assert made.current(page.replace("a max(x) + b", "b max(x) + a")) == page


def test_the_page_holds_a_row_for_each_operation() -> None:
    page = script("rules").PAGE.read_text(encoding="utf-8")
    for kind in (*RULES, *ops.kinds(ops.Absorber)):
        assert f"| **{kind.__name__}**:" in page
