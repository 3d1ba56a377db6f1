"""Run the graph of a capture node by node: with its constants, on numbers or on tensors without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from bnfold.graph.captured import NARROW, Capture

__all__ = ["GraphRun", "constant_value"]


class GraphRun(Interpreter):
    """Runs the graph of a capture, with its constants."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture.root, garbage_collect_values=True, graph=capture.graph)
        self.capture = capture

    def fetch_attr(self, target: str) -> Any:
        """Fetch from the constants of the capture as well."""
        constant = self.capture.constants.get(target)
        return super().fetch_attr(target) if constant is None else constant

    def run_node(self, n: Node) -> Any:
        """Run one node; what the way of torch.fx does besides is for tracers, and takes as long as a small call."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = getattr(self, n.op)(n.target, args, kwargs)
        return value.to(n.meta[NARROW]) if NARROW in n.meta and n.op == "get_attr" else value


def constant_value(capture: Capture, value: Node) -> Tensor:
    """Compute a value that depends on parameters only: standardised weights, parametrizations.

    Args:
        capture: the graph and the model.
        value: a node for which :meth:`bnfold.graph.facts.Facts.is_constant` holds.
    """
    needed: dict[Node, None] = {}
    stack = [value]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed[node] = None
            stack.extend(node.all_input_nodes)
    run: GraphRun | None = capture._cache.get(GraphRun)
    if run is None:
        run = capture._cache[GraphRun] = GraphRun(capture)
    order = {node: index for index, node in enumerate(capture.graph.nodes) if node in needed}
    try:
        with torch.no_grad():
            for node in sorted(needed, key=order.__getitem__):
                run.env[node] = run.run_node(node)
        result = run.env[value]
    finally:
        run.env.clear()
    assert isinstance(result, Tensor)
    return result.detach()
