"""Each operation says all of itself in its own class, and hardly anywhere else is it named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import bnfold
from bnfold import ops
from bnfold.ops.operation import DECLARED, STOPS, undeclared

PACKAGE = Path(bnfold.__file__).parent
KINDS = ops.kinds()
MADE_OF = {"Add", "Convolution", "BatchNorm", "ExplicitAffine"}
"""What folding and merging are about: they are named where these are done."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_class_leaves_nothing_undeclared(kind: type[ops.Operation]) -> None:
    assert undeclared(kind) == ()
    assert kind.memory in ("fresh", "view", "in place", "unknown")
    assert kind.words == kind.words.strip(" `")
    assert (kind.__doc__ or "").startswith(("A", "B", "C", "G", "I", "O", "R", "T", "V", "E", "P", "``", "r"))


@pytest.mark.parametrize("left_out", [*DECLARED, "takes", "the mathematics"])
def test_a_class_that_leaves_something_out_is_found(left_out: str) -> None:
    base = ops.Absorber if left_out == "takes" else ops.Operation
    rule = ops.Rule("", (), lambda *_: None, lambda *_: None) if left_out == "the mathematics" else STOPS
    said = {"words": "thing", "keeps_rank": True, "keeps_channels": True, "memory": "fresh", "rule": rule}
    said |= {"sizes": lambda *_: None, "takes": frozenset(("after",))}
    said.pop(left_out, None)
    odd = dataclass(frozen=True, eq=False)(type("Odd", (base,), {"__annotations__": {}, **said}))
    assert undeclared(odd) == (("rule",) if left_out == "the mathematics" else (left_out,))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, ops.Absorber)], ids=lambda k: k.__name__)
def test_what_absorbs_before_it_says_where_its_input_channels_run(kind: type[ops.Absorber]) -> None:
    for name in ("by_input", "input_channels"):
        assert (getattr(kind, name) is not getattr(ops.Absorber, name)) == ("before" in kind.takes)
    assert (kind.absorb_beside is not ops.Absorber.absorb_beside) == ("beside" in kind.takes)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.__name__ not in MADE_OF], ids=lambda kind: kind.__name__)
def test_an_operation_is_named_in_three_files_at_most(kind: type[ops.Operation]) -> None:
    home = kind.__module__.rpartition(".")[2]
    named = re.compile(rf"\bops\.{kind.__name__}\b|\bfrom bnfold\.ops\.{home} import [^\n]*\b{kind.__name__}\b")
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "ops" or path.stem != "__init__"]
    files = [path for path in files if not any("onnx" in part for part in path.parts)]  # of another front end
    found = {path for path in files if named.search(path.read_text())} | {PACKAGE / "ops" / f"{home}.py"}
    assert len(found) <= 3, sorted(str(path.relative_to(PACKAGE)) for path in found)
