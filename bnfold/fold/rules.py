"""The table of rules, made from what the operations say of themselves: which of them an affine may pass, and why.

No row, no passage: an operation that is not here stops the affine. ``docs/explanation/rules.md`` holds the same table.
"""

from __future__ import annotations

from bnfold.ops.operation import Operation, Rule, kinds

__all__ = ["RULES"]

RULES: dict[type[Operation], Rule] = {kind: kind.rule for kind in kinds() if kind.rule is not None}
"""One row for each operation that an affine passes, backward or forward."""
