"""Compute values that depend on parameters only: standardised weights, parametrizations, shapes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

__all__ = ["evaluate"]


def evaluate(value: Node, tensor: Callable[[str], Tensor], module: Callable[[str], nn.Module]) -> Tensor:
    """Compute a constant value by running the nodes that it depends on.

    Args:
        value: a node for which :meth:`bnfold.graph.facts.Facts.is_constant` holds.
        tensor: gives a parameter, buffer or constant by name.
        module: gives a layer by name.
    """
    needed: dict[Node, None] = {}
    stack = [value]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed[node] = None
            stack.extend(node.all_input_nodes)
    order = {node: index for index, node in enumerate(value.graph.nodes) if node in needed}
    found: dict[Node, Any] = {}
    with torch.no_grad():
        for node in sorted(needed, key=order.__getitem__):
            found[node] = _run(node, found, tensor, module)
    result = found[value]
    assert isinstance(result, Tensor)
    return result


def _run(
    node: Node, found: dict[Node, Any], tensor: Callable[[str], Tensor], module: Callable[[str], nn.Module]
) -> Any:
    if node.op == "get_attr":
        return tensor(str(node.target)).detach()
    args = map_arg(node.args, found.__getitem__)
    kwargs = map_arg(node.kwargs, found.__getitem__)
    if node.op == "call_module":
        return module(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]
