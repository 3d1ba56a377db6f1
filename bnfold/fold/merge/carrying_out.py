"""Put one convolution in the place of several, in a graph that may be changed; decide nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnfold.errors import NotFiniteError
from bnfold.fold.merge.branches import Branch, Reader
from bnfold.fold.merge.steps import MergeStep
from bnfold.graph.on_demand import OnDemand, made

__all__ = ["Merging", "built"]

_LAYERS: dict[int, Callable[..., Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Weighing(Reader, Protocol):
    """A reader that also tells what the model's own weight is."""

    def own(self, node: str) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of a call as the model has them."""


class Merging:
    """Carries out merges.

    Args:
        graph: changed in place.
        reader: gives the numbers.
        hold: puts a layer into the new module in the place of a call, and returns its name.
    """

    def __init__(self, graph: Graph, reader: Weighing, hold: Callable[[str, nn.Module], str]) -> None:
        self.graph = graph
        self.reader = reader
        self.hold = hold
        self.nodes = {node.name: node for node in graph.nodes}
        self.order = {node: index for index, node in enumerate(graph.nodes)}

    def run(self, steps: Sequence[MergeStep]) -> None:
        """Do all of them, in order.

        Raises:
            NotFiniteError: a weight overflowed when rounded; ``error.node`` is the root of the step.
        """
        for step in steps:
            self._merge(step)

    def _merge(self, step: MergeStep) -> None:
        root = self.nodes[step.root]
        merged = [(part, self._layer(part.branch, step)) for part in step.parts]
        terms = {self.nodes[name] for part in step.parts for name in part.terms}
        with self.graph.inserting_before(root):
            total = _Rest(self.graph, self.nodes, step, terms).of(root)
            for _, layer in merged:
                total = (layer, 1) if total is None else (_sum(self.graph, (layer, 1), total), 1)
        assert total is not None
        value, sign = total
        assert sign > 0
        root.replace_all_uses_with(value)
        for part, layer in merged:
            self._remove(part.branch.members, layer)
        for knot in step.tree:  # from the root inwards
            node = self.nodes[knot.node]
            if node in self.order and not node.users:
                self._erase(node)
        self.nodes[step.root] = value

    def _remove(self, names: tuple[str, ...], instead: Node) -> None:
        """Remove nodes that nobody needs now; who reads a shape reads that of the new value."""
        gone = {self.nodes[name] for name in names} - {instead}
        order = sorted(gone & self.order.keys(), key=self.order.__getitem__)
        for node in order:
            for user in list(node.users):
                if user not in gone:
                    self._redirect(user, node, instead)
        for node in reversed(order):
            self._erase(node)

    def _redirect(self, user: Node, old: Node, new: Node) -> None:
        """Let a reader of a shape read that of another value; what it then computes a second time is removed."""
        user.replace_input_with(old, new)
        for other in list(new.users):
            if other.target != user.target or self.order.get(other, 0) >= self.order.get(user, 0):
                continue
            if user.target is torch._assert and user.args[0] is other.args[0]:
                self._erase(user)
                return
            if user.target in (getattr, operator.eq) and user.args == other.args:
                for reader in list(user.users):
                    self._redirect(reader, user, other)
                self._erase(user)
                return

    def _erase(self, node: Node) -> None:
        self.graph.erase_node(node)
        del self.order[node]

    def _layer(self, branch: Branch, step: MergeStep) -> Node:
        assert branch.layer is not None
        name = self.hold(branch.layer, built(branch, step, self.reader))
        members = [self.nodes[member] for member in branch.members]
        first = min(members, key=self.order.__getitem__)
        with self.graph.inserting_before(first):
            node = self.graph.call_module(name, (self.nodes[branch.source],))
        node.meta.update(self.nodes[branch.layer].meta)
        return node


def built(branch: Branch, step: MergeStep, reader: Weighing) -> nn.Module:
    """Return the one layer that a branch becomes, its weights rounded once.

    Raises:
        NotFiniteError: a weight overflowed when rounded; ``error.node`` is the root of the step.
    """
    assert branch.layer is not None
    like, bias_like = reader.own(branch.layer)
    weight, bias = branch.weights(reader, like)
    geometry = branch.geometry
    layer: nn.Module = _LAYERS[len(geometry.kernel)](
        geometry.inputs,
        geometry.outputs,
        geometry.kernel,
        stride=geometry.stride,
        padding=geometry.layer_padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
        padding_mode=geometry.mode,
        device="meta",
    )
    rounded = _rounded(weight, like)
    rounded_bias = bias.to(like.dtype if bias_like is None else bias_like.dtype)
    for tensor in (rounded, rounded_bias):
        if not bool(torch.isfinite(tensor).all()):
            raise _not_finite(branch, step, tensor)
    if isinstance(like, OnDemand):  # the kernel too is made when a call needs it
        new: Any = OnDemand(
            nn.Parameter(rounded), like.dtype, lambda: made(_rounded(branch.weights(reader, like)[0], like))
        )
        layer.register_parameter("weight", new.requires_grad_(like.requires_grad))
    else:
        layer.register_parameter("weight", nn.Parameter(rounded, requires_grad=like.requires_grad))
    layer.register_parameter("bias", nn.Parameter(rounded_bias, requires_grad=like.requires_grad))
    return layer.eval()


def _rounded(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight in the dtype and memory format of another."""
    rounded = weight.to(like.dtype)
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return rounded.contiguous(memory_format=torch.channels_last)
    return rounded


def _not_finite(branch: Branch, step: MergeStep, tensor: Tensor) -> NotFiniteError:
    names = " and ".join(f"`{name}`" for name in branch.names[:2])
    error = NotFiniteError(
        f"A weight of {names} as one is not finite in {tensor.dtype}.",
        fix="Merge nothing, or convert the model to a wider dtype first.",
    )
    error.node = step.root  # type: ignore[attr-defined]
    return error


class _Rest:
    """What is left of a tree of sums without some of its terms."""

    def __init__(self, graph: Graph, nodes: dict[str, Node], step: MergeStep, terms: set[Node]) -> None:
        self.graph = graph
        self.terms = terms
        self.tree = {nodes[knot.node]: [(nodes[name], sign) for name, sign in knot.values] for knot in step.tree}

    def of(self, node: Node) -> tuple[Node, int] | None:
        """Return the value that is left, with its sign; None where nothing is."""
        if node in self.terms:
            return None
        if node not in self.tree:
            return node, 1
        values = self.tree[node]
        left = [(self.of(value), sign) for value, sign in values]
        if all(rest == (value, 1) for (rest, _), (value, _) in zip(left, values, strict=True)):
            return node, 1
        signed = [(rest[0], rest[1] * sign) for rest, sign in left if rest is not None]
        if not signed:
            return None
        return signed[0] if len(signed) == 1 else _signed_sum(self.graph, *signed)


def _signed_sum(graph: Graph, left: tuple[Node, int], right: tuple[Node, int]) -> tuple[Node, int]:
    if left[1] < 0 and right[1] < 0:
        return _sum(graph, (left[0], 1), (right[0], 1)), -1
    if left[1] < 0:
        left, right = right, left
    return _sum(graph, left, right), 1


def _sum(graph: Graph, left: tuple[Node, int], right: tuple[Node, int]) -> Node:
    """Add or subtract; the first has a positive sign."""
    return graph.call_function(operator.add if right[1] > 0 else operator.sub, (left[0], right[0]))
