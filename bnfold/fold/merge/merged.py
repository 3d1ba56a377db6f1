"""What carrying out a merge needs, whatever the graph: the one layer's weights, and what is left of a sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bnfold.errors import NotFiniteError
from bnfold.fold.merge.branches import Branch, Reader
from bnfold.fold.merge.steps import MergeStep

__all__ = ["Rest", "merged_weights"]

V = TypeVar("V")


def merged_weights(
    branch: Branch, step: MergeStep, reader: Reader, like: Tensor, types: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one layer that a branch becomes, computed in float64 and rounded once.

    Args:
        branch: part of the step.
        step: names the root, for errors.
        reader: gives the numbers.
        like: the weight of the layer that the branch is named after: tells the device.
        types: of weight and bias.

    Raises:
        NotFiniteError: a weight overflowed when rounded; ``error.node`` is the root of the step.
    """
    made = branch.weights(reader, like)
    weight, bias = (tensor.to(dtype) for tensor, dtype in zip(made, types, strict=True))
    for tensor in (weight, bias):
        if not bool(torch.isfinite(tensor).all()):
            names = " and ".join(f"`{name}`" for name in branch.names[:2])
            error = NotFiniteError(
                f"A weight of {names} as one is not finite in {tensor.dtype}.",
                fix="Merge nothing, or convert the model to a wider dtype first.",
            )
            error.node = step.root  # type: ignore[attr-defined]
            raise error
    return weight, bias


class Rest(Generic[V]):
    """What is left of a tree of sums without some of its terms.

    Args:
        step: the tree, and the terms that go.
        values: gives the value of a name.
        summed: makes the sum of two values, or for a sign of -1 the difference.
    """

    def __init__(self, step: MergeStep, values: Callable[[str], V], summed: Callable[[V, V, int], V]) -> None:
        self.values = values
        self.summed = summed
        self.terms = {name for part in step.parts for name in part.terms}
        self.tree = {knot.node: knot.values for knot in step.tree}

    def of(self, name: str) -> tuple[V, int] | None:
        """Return the value that is left, with its sign; None where nothing is."""
        if name in self.terms:
            return None
        if name not in self.tree:
            return self.values(name), 1
        left = [(self.of(value), value, sign) for value, sign in self.tree[name]]
        if all(rest == (self.values(value), 1) for rest, value, _ in left):
            return self.values(name), 1
        signed = [(rest[0], rest[1] * sign) for rest, _, sign in left if rest is not None]
        if not signed:
            return None
        if len(signed) == 1:
            return signed[0]
        (one, first), (other, second) = signed
        if first < 0 and second < 0:
            return self.summed(one, other, 1), -1
        return (self.summed(other, one, -1), 1) if first < 0 else (self.summed(one, other, second), 1)
