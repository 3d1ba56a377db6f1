"""Which values of a graph may share memory, and what is written into it when the graph runs."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch.fx import Node

from bnfold import ops
from bnfold.graph.captured import Capture
from bnfold.graph.effects import mutated_inputs

__all__ = ["Memory"]

_ARITHMETIC: frozenset[Any] = frozenset(
    (
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.matmul),
        *(torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.neg, torch.matmul),
        *("add", "sub", "mul", "div", "pow", "neg", "matmul"),
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.div.Tensor,
    )
)  # functions and methods that always make a new tensor


class Memory:
    """Questions about the memory of one graph's values; ``Facts.memory`` holds the one of a capture.

    Args:
        capture: the graph and the model.
        index: of each node.
        call: tells what a node computes.
    """

    def __init__(
        self, capture: Capture, index: Mapping[Node, int], call: Callable[[Node], ops.Operation | None]
    ) -> None:
        self.capture = capture
        self.index = index
        self.call = call

    @cached_property
    def _owners(self) -> dict[Node, Node]:
        """For each value, a representative of the values it may share memory with."""
        owner: dict[Node, Node] = {}

        def find(node: Node) -> Node:
            while owner[node] is not node:
                owner[node] = owner[owner[node]]
                node = owner[node]
            return node

        for node in self.index:
            owner[node] = node
            call = self.call(node)
            if call is not None and (
                call.memory == "fresh" or (call.memory == "in place" and not self._writes_at(node))
            ):
                continue
            if node.op != "call_module" and node.target in _ARITHMETIC and "out" not in node.kwargs:
                continue
            in_place = call is not None and call.memory == "in place"
            for read in mutated_inputs(node, self.capture.module) if in_place else node.all_input_nodes:
                owner[find(read)] = find(node)
        return {node: find(node) for node in owner}

    @cached_property
    def _writes(self) -> dict[Node, list[int]]:
        """For each representative of :attr:`_owners`, the indices of the nodes that write into it."""
        writes: dict[Node, list[int]] = defaultdict(list)
        for node, index in self.index.items():
            for value in mutated_inputs(node, self.capture.module):
                writes[self._owners[value]].append(index)
        return writes

    def written_in_place(self, attribute: Node) -> bool:
        """Whether a node writes into the tensor that ``attribute``, a ``get_attr`` node, reads, or into a view of it.

        Other than :meth:`mutated` this follows only what surely shares memory: views, identities, in-place operations.
        """
        return any(self._origin(value) is attribute for value in self._written_values)

    def may_be_written(self, constant: Node) -> bool:
        """Whether a value that depends on parameters and constants only may be another when the graph runs."""
        stack, seen = [constant], {constant}
        while stack:
            node = stack.pop()
            if self._writes.get(self._owners[node]):
                return True
            stack.extend(fresh := [read for read in node.all_input_nodes if read not in seen])
            seen.update(fresh)
        return False

    def updated(self, attribute: Node) -> bool:
        """Whether a BatchNorm that uses batch statistics updates the running ones that ``attribute`` reads."""
        for reader in attribute.users:
            call = self.call(reader)
            if isinstance(call, ops.BatchNorm) and call.uses_batch_statistics:
                return attribute.target in (call.running_mean, call.running_var)
        return False

    @cached_property
    def written_names(self) -> frozenset[str]:
        """Names of parameters and buffers that the graph writes into when it runs."""
        origins = (self._origin(value) for value in self._written_values)
        return frozenset(str(origin.target) for origin in origins if origin.op == "get_attr")

    @cached_property
    def _written_values(self) -> list[Node]:
        return [value for node in self.index for value in mutated_inputs(node, self.capture.module)]

    def _origin(self, value: Node) -> Node:
        """Follow views and in-place operations back to the value whose memory they share."""
        while True:
            written = mutated_inputs(value, self.capture.module)
            if written and value.op != "call_module":
                value = written[0]
            elif (call := self.call(value)) is not None and call.memory == "view":
                value = call.inputs[0]
            else:
                return value

    def sharing_memory(self, value: Node) -> tuple[Node, ...]:
        """Return the values that may share memory with ``value``, itself included."""
        owner = self._owners[value]
        return tuple(node for node, other in self._owners.items() if other is owner)

    def mutated(self, value: Node) -> bool:
        """Whether anything writes into the memory of ``value`` after it was computed, or may do so."""
        return self.written_between(value, self.index[value], len(self.index))

    def written_between(self, value: Node, first: int, last: int) -> bool:
        """Whether a node between two indices, both exclusive, writes into the memory of ``value``, or may do so."""
        return any(first < index < last for index in self._writes.get(self._owners[value], ()))

    def _writes_at(self, node: Node) -> bool:
        return bool(mutated_inputs(node, self.capture.module))
