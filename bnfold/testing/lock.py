"""The lock file: which BatchNorms do not fold, as a reviewer reads it.

JSON, one line for each BatchNorm that stays, under the test that folds the model::

    {
      "tests/test_net.py::test_folds": {
        "folded": 59,
        "stay": {
          "features.norm5": "several-readers"
        }
      }
    }

A test may leave those and no others; one that is not listed must fold all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import RefusedFileError

if TYPE_CHECKING:
    from bnfold.fold.plan import Plan

__all__ = ["Lock"]

Entry = dict[str, Any]


@dataclass
class Lock:
    """What the lock file says, and what the tests that ran found.

    Attributes:
        path: of the file, which need not exist.
        update: whether it is to be rewritten.
        known: the file's entries, by test.
        found: what the tests of this run found; an entry without any that stay is to be removed.
    """

    path: Path
    update: bool
    known: dict[str, Entry] = field(default_factory=dict)
    found: dict[str, Entry] = field(default_factory=dict)

    @staticmethod
    def read(path: Path, *, update: bool) -> Lock:
        """Return the lock file's content; none where there is no file.

        Raises:
            RefusedFileError: it is no lock file.
        """
        if not path.exists():
            return Lock(path, update)
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            right = isinstance(known, dict) and all(
                isinstance(entry, dict) and isinstance(entry.get("stay"), dict) for entry in known.values()
            )
        except (ValueError, OSError):
            right = False
        if not right:
            raise RefusedFileError(
                f"{path.name} is not a lock file of bnfold.", fix="Remove it and run `pytest --bnfold-update`."
            )
        return Lock(path, update, known)

    def check(self, test: str, plan: Plan, kept: Sequence[str]) -> str:
        """Note what a plan leaves; return what is wrong with it, or nothing.

        Args:
            test: its node id, and the model's name where it has several.
            plan: of the fold.
            kept: BatchNorms that the test itself keeps.
        """
        stay = {d.batchnorm: d for d in plan if d.action != "fold" and d.batchnorm not in kept}
        self.found[test] = {"folded": plan.summary["fold"], "stay": {name: d.reason for name, d in stay.items()}}
        allowed = self.known.get(test, {"stay": {}})["stay"]
        new = [decision for name, decision in stay.items() if name not in allowed]
        if self.update or not new:
            return ""
        lines = [f"{decision.batchnorm} did not fold: {decision.detail}" for decision in new]
        return "\n".join(
            [*lines, f"If that is right, `pytest --bnfold-update` records it in {self.path.name} for the review."]
        )

    def told(self) -> Iterator[str]:
        """Yield what is to be said at the end of a run."""
        if self.update:
            stay = sum(len(entry["stay"]) for entry in self.found.values())
            yield f"{self.path.name} is up to date with {len(self.found)} tests that ran; {stay} BatchNorms stay there."
            return
        better = [
            test
            for test, entry in self.found.items()
            if self.known.get(test, {"stay": {}})["stay"].keys() - entry["stay"].keys()
        ]
        if better:
            yield (
                f"fewer BatchNorms stay than {self.path.name} allows in {', '.join(better[:3])}"
                + (f" and {len(better) - 3} more" if len(better) > 3 else "")
                + "; `pytest --bnfold-update` records that."
            )

    def write(self) -> None:
        """Write the file, whole or not at all: tests that ran as they were found, the others as they were.

        Raises:
            FileAccessError: it cannot be written.
        """
        every = {test: entry for test, entry in sorted((self.known | self.found).items()) if entry["stay"]}
        if every == self.known:
            return
        from bnfold.files.save import Output, write_outputs

        content = (json.dumps(every, indent=2, ensure_ascii=False) + "\n").encode()
        write_outputs([Output(self.path, content)], inputs=[], force=True)
