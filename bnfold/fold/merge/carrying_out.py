"""Put one convolution in the place of several, in a torch.fx graph that may be changed; decide nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnfold.fold.merge.branches import Branch, Reader
from bnfold.fold.merge.merged import Rest, merged_weights
from bnfold.fold.merge.steps import MergeStep
from bnfold.on_demand import OnDemand, made

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
        with self.graph.inserting_before(root):
            total = Rest(step, self.nodes.__getitem__, self._sum).of(step.root)
            for _, layer in merged:
                total = (layer if total is None else self._sum(layer, *total)), 1
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

    def _sum(self, left: Node, right: Node, sign: int) -> Node:
        return self.graph.call_function(operator.add if sign > 0 else operator.sub, (left, right))

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
    types = like.dtype, like.dtype if bias_like is None else bias_like.dtype
    rounded, rounded_bias = merged_weights(branch, step, reader, like, types)
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
    rounded = _laid_out(rounded, like)
    if isinstance(like, OnDemand):  # the kernel too is made when a call needs it
        new: Any = OnDemand(
            nn.Parameter(rounded),
            like.dtype,
            lambda: made(_laid_out(branch.weights(reader, like)[0].to(like.dtype), like)),
        )
        layer.register_parameter("weight", new.requires_grad_(like.requires_grad))
    else:
        layer.register_parameter("weight", nn.Parameter(rounded, requires_grad=like.requires_grad))
    layer.register_parameter("bias", nn.Parameter(rounded_bias, requires_grad=like.requires_grad))
    return layer.eval()


def _laid_out(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight in the memory format of another."""
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return weight.contiguous(memory_format=torch.channels_last)
    return weight
