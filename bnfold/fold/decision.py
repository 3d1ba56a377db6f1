"""What was decided about each BatchNorm, and why: the public face of a plan.

A :class:`Decision` is plain data: names and words, no tensors and no graph. The numbers that a rewrite needs stand in
:mod:`bnfold.fold.plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, overload

__all__ = ["Action", "Decision", "Decisions", "Direction", "MergeDecision", "fold_sentence", "listed"]

Action = Literal["fold", "affine", "keep"]
Direction = Literal["backward", "forward", "sideways"]


@dataclass(frozen=True)
class Decision:
    """What happens to one call of one BatchNorm.

    Attributes:
        batchnorm: qualified name of the layer, or the name of its node in the graph where it is a bare function call.
        action: ``"fold"``: absorbed into weights, no op is left. ``"affine"``: becomes an explicit per-channel affine.
            ``"keep"``: stays a BatchNorm.
        direction: which way the affine moved; None unless it folded.
        into: names of the layers that absorbed it (for a bare function call, of its node).
        through: names of what it moved through, nearest to the BatchNorm first.
        reason: why it did not fold: a stable kebab-case code; None for a fold.
        detail: one sentence for a person.
        site: name of the call's node in the captured graph: tells the calls of a shared layer apart.
        source: ``file:line`` of the call in the user's code, or None where the capture did not keep it.
        added_bytes: memory that this fold added because a layer or a parameter is shared and had to be copied.
        because: why it did not fold: the end of the sentence, without the full stop; empty for a fold. Not in reports.
        kind: ``"batchnorm"``, or ``"affine"`` for a multiplication, a division or a sum by constants of each channel.
    """

    batchnorm: str
    action: Action
    direction: Direction | None
    into: tuple[str, ...]
    through: tuple[str, ...]
    reason: str | None
    detail: str
    site: str = ""
    source: str | None = None
    added_bytes: int = 0
    because: str = field(default="", compare=False)
    kind: Literal["batchnorm", "affine"] = "batchnorm"

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain JSON types."""
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        del found["because"]
        return found

    def staying(self, because: str) -> Decision:
        """Return the same decision about what did not fold, for another reason in words."""
        became = "became an explicit affine" if self.action == "affine" else "stays a BatchNorm"
        became = "stays an affine" if self.kind == "affine" else became
        return replace(self, because=because, detail=f"{self.batchnorm} {became}: {because}.")


@dataclass(frozen=True)
class MergeDecision:
    """What happens to convolutions whose sum, or whose sequence, could be one.

    Attributes:
        into: name of the layer that they become, or would have become.
        merged: names of what goes into it: convolutions and pools.
        action: ``"merge"`` or ``"refuse"``.
        kind: ``"sum"``, ``"sequence"`` or ``"factor"`` (a multiplication by constants) of a merge; else empty.
        reason: why they stay apart: a stable kebab-case code; None for a merge.
        detail: one sentence for a person.
        macs_before: multiply-accumulates of the layers for one example; None where shapes are not known.
        macs_after: of the one layer.
        site: name of the node in the folded graph that has, or would have, the one layer's value.
        identity: whether the identity goes into it too. Not in reports.
        because: why they stay apart: the end of the sentence, without the full stop. Not in reports.
    """

    into: str
    merged: tuple[str, ...]
    action: Literal["merge", "refuse"]
    kind: str
    reason: str | None
    detail: str
    macs_before: int | None = None
    macs_after: int | None = None
    site: str = ""
    identity: bool = field(default=False, compare=False)
    because: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain JSON types."""
        found = asdict(self) | {"merged": list(self.merged)}
        del found["identity"], found["because"]
        return found


@dataclass(frozen=True)
class Decisions(Sequence[Decision]):
    """One decision per BatchNorm call, in the order in which the calls run.

    Attributes:
        decisions: the decisions.
        capture: how the graph was obtained: ``"recorded"``, ``"symbolic"``, ``"export"`` or ``"piecewise"``.
        notes: further sentences for the user, about nothing that is wrong.
        merges: what became of convolutions that could be one; empty unless merging was asked for.
    """

    decisions: tuple[Decision, ...]
    capture: str
    notes: tuple[str, ...] = field(default=())
    merges: tuple[MergeDecision, ...] = field(default=())

    @overload
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Decision, ...]: ...
    def __getitem__(self, index: int | slice) -> Decision | tuple[Decision, ...]:
        return self.decisions[index]

    def __len__(self) -> int:
        return len(self.decisions)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)

    @property
    def summary(self) -> dict[str, int]:
        """How many BatchNorm calls fold, become an affine, and stay."""
        count = Counter(decision.action for decision in self.decisions)
        return {"fold": count["fold"], "affine": count["affine"], "keep": count["keep"]}

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"capture", "batchnorms", "summary", "notes", "merges"}`` as plain JSON types."""
        return {
            "capture": self.capture,
            "batchnorms": [decision.to_dict() for decision in self.decisions],
            "summary": self.summary,
            "notes": list(self.notes),
            "merges": [merge.to_dict() for merge in self.merges],
        }


def fold_sentence(name: str, direction: Direction, into: tuple[str, ...], through: tuple[str, ...]) -> str:
    """Return the ``detail`` of a fold: "bn1 folded into conv1 through pool."."""
    way = "" if direction == "backward" else f"{direction} "
    passing = f" through {listed(through)}" if through else ""
    return f"{name} folded {way}into {listed(into)}{passing}."


def listed(names: tuple[str, ...]) -> str:
    """Return names in a sentence: "a, b and c", or "a, b, c and 7 more"."""
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
