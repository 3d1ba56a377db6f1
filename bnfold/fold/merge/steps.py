"""What a rewrite does to merge: data, by names of nodes."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.fold.merge.branches import Branch, Chain, Identity, Scaled, Sum

__all__ = ["Knot", "MergeStep", "Part"]


@dataclass(frozen=True, eq=False)
class Part:
    """One convolution that comes to be.

    Attributes:
        branch: what it is made of.
        terms: names of the values that it stands for: terms of the sum, or the one value.
    """

    branch: Branch
    terms: tuple[str, ...]

    @property
    def has_identity(self) -> bool:
        """Whether the value itself is one of its terms."""
        return _has_identity(self.branch)


@dataclass(frozen=True)
class Knot:
    """A node of a tree of sums: the values it adds, by name, each with its sign."""

    node: str
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class MergeStep:
    """A value that is computed anew.

    Attributes:
        root: name of its node: a sum, or the last call of a sequence.
        parts: the convolutions that it is the sum of, and of what is left of it.
        tree: the sums inside this one, and what passes values on between them; empty for a sequence.
    """

    root: str
    parts: tuple[Part, ...]
    tree: tuple[Knot, ...] = ()


def _has_identity(branch: Branch) -> bool:
    if isinstance(branch, Sum):
        return any(_has_identity(term.branch) for term in branch.terms)
    if isinstance(branch, Chain):
        return _has_identity(branch.first) or _has_identity(branch.second)
    return _has_identity(branch.of) if isinstance(branch, Scaled) else isinstance(branch, Identity)
