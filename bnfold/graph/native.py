"""The BatchNorms of decomposed graphs: operators that return saved statistics beside the output."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph

from bnfold.graph.captured import DTYPE

__all__ = ["rewrite_native"]

aten = torch.ops.aten

# Whether ``training`` is an argument: (input, weight, bias, running_mean, running_var, [training,] momentum, eps)
_NATIVE: dict[Any, bool] = {
    torch.native_batch_norm: True,
    aten.native_batch_norm: True,
    aten.native_batch_norm.default: True,
    aten._native_batch_norm_legit_no_training: False,
    aten._native_batch_norm_legit_no_training.default: False,
}


def rewrite_native(graph: Graph) -> tuple[str, ...]:
    """Write such a call as ``aten.batch_norm``, where only its first result is read: the same function.

    Returns:
        A sentence for each that stays: its saved statistics are read as well, or its arguments are not understood.
    """
    left: list[str] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _NATIVE or not node.users:
            continue
        alone = all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
        arguments = list(node.args) if _NATIVE[node.target] else [*node.args[:5], False, *node.args[5:]]
        if not alone or node.kwargs or len(arguments) != 8:
            why = "is called with names" if alone else "is read for more than its output"
            left.append(f"The batch normalisation `{node.name}` {why}, and stays as it is.")
            continue
        with graph.inserting_before(node):
            new = graph.call_function(aten.batch_norm.default, (*arguments, True))
        new.meta.update({key: node.meta[key] for key in ("source", "lines", "module") if key in node.meta})
        for output in list(node.users):
            new.meta[DTYPE] = output.meta.get(DTYPE)
            output.replace_all_uses_with(new)
            graph.erase_node(output)
        graph.erase_node(node)
    return tuple(left)
