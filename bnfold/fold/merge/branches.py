"""Branches: parts of a graph that are one convolution each, as trees of what they are made of.

A branch knows its :class:`Geometry`, the value that it reads, the calls that vanish where it becomes one layer, and how
to compute its weights in float64. It holds names of nodes and no nodes: a plan is data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from bnfold.fold.merge.geometry import Geometry, Place
from bnfold.fold.merge.kernels import added, averaging, composed_weights, in_fewer_groups
from bnfold.ops.weighted import with_identity

__all__ = ["Branch", "Chain", "Identity", "Leaf", "Pool", "Reader", "Scaled", "Sum", "Term"]


class Reader(Protocol):
    """Where a branch finds its numbers."""

    def weights(self, node: str) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of a convolution call in float64, with all that it absorbed."""

    def factor(self, node: str) -> Tensor:
        """Return the constants that a node multiplies by."""


Weights: TypeAlias = "tuple[Tensor, Tensor]"


@dataclass(frozen=True, eq=False)
class Branch:
    """A part of a graph that is one convolution.

    Attributes:
        source: name of the node whose value it reads.
        geometry: of the one convolution.
        members: names of the nodes that vanish, the last of which gave the branch's value; empty for an identity.
        layer: name of the convolution call that gives the layer its name and type; None if there is none.
        cost: multiply-accumulates that its calls do now, for one example.
        names: what these calls are for a person.
    """

    source: str
    geometry: Geometry
    members: tuple[str, ...]
    layer: str | None
    cost: int
    names: tuple[str, ...]

    def weights(self, reader: Reader, like: Tensor) -> Weights:
        """Return weight and bias in float64, on the device of ``like``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Leaf(Branch):
    """A convolution call as it stands, after all that it absorbed."""

    def weights(self, reader: Reader, like: Tensor) -> Weights:  # noqa: ARG002
        """Return its own weights."""
        assert self.layer is not None
        weight, bias = reader.weights(self.layer)
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias


@dataclass(frozen=True, eq=False)
class Pool(Branch):
    """An average pool."""

    divisor: int = 1

    def weights(self, reader: Reader, like: Tensor) -> Weights:  # noqa: ARG002
        """Return the same weight for all positions of the window."""
        weight = averaging(self.geometry.inputs, self.geometry.kernel, self.divisor, like)
        return weight, weight.new_zeros(weight.shape[0])


@dataclass(frozen=True, eq=False)
class Identity(Branch):
    """The value itself."""

    def weights(self, reader: Reader, like: Tensor) -> Weights:  # noqa: ARG002
        """Return a single tap of one."""
        zeros = torch.zeros(self.geometry.inputs, dtype=torch.float64, device=like.device)
        dims = len(self.geometry.kernel)
        return with_identity(zeros.reshape(-1, 1, *[1] * dims), zeros + 1, (0,) * dims), zeros


@dataclass(frozen=True, eq=False)
class Scaled(Branch):
    """A branch times constants.

    Attributes:
        of: the branch.
        by: a number, or the name of the node that multiplies by constants, one for each channel.
    """

    of: Branch = field(kw_only=True)
    by: float | str = field(kw_only=True)

    def weights(self, reader: Reader, like: Tensor) -> Weights:
        """Return ``by[c] * weight[c]`` and ``by[c] * bias[c]``."""
        weight, bias = self.of.weights(reader, like)
        if isinstance(self.by, float):
            return weight * self.by, bias * self.by
        factor = reader.factor(self.by).detach().to(weight.device, torch.float64).reshape(-1)
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias * factor


@dataclass(frozen=True, eq=False)
class Term:
    """One term of a sum: a branch, its sign, and where its kernel stands in that of the sum."""

    branch: Branch
    sign: int
    place: Place


@dataclass(frozen=True, eq=False)
class Sum(Branch):
    """Branches of one value whose values are added."""

    terms: tuple[Term, ...] = field(kw_only=True)

    def weights(self, reader: Reader, like: Tensor) -> Weights:
        """Return the sum of the kernels, each at its place."""
        geometry = self.geometry
        shape = (geometry.outputs, geometry.inputs // geometry.groups, *geometry.kernel)
        total = torch.zeros(shape, dtype=torch.float64, device=like.device)
        bias = torch.zeros(geometry.outputs, dtype=torch.float64, device=like.device)
        for term in self.terms:
            weight, shift = term.branch.weights(reader, like)
            weight = in_fewer_groups(weight, term.branch.geometry.groups, geometry.groups)
            added(total, weight if term.sign > 0 else -weight, term.place)
            bias += term.sign * shift
        return total, bias


@dataclass(frozen=True, eq=False)
class Chain(Branch):
    """A branch of a branch's value."""

    first: Branch = field(kw_only=True)
    second: Branch = field(kw_only=True)

    def weights(self, reader: Reader, like: Tensor) -> Weights:
        """Return the weights of the two as one."""
        first, second = self.first.weights(reader, like), self.second.weights(reader, like)
        return composed_weights(*first, self.first.geometry.groups, *second, self.second.geometry.groups)


def divisor_of(geometry: Geometry, override: int | None) -> int:
    """Return what an average pool divides by."""
    return prod(geometry.kernel) if override is None else override
