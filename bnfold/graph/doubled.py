"""The capture of a model in float64 throughout: what a fold's algebra is proved with."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, Node

from bnfold.graph.captured import DTYPE, NARROW, Capture
from bnfold.graph.shells import double_shell

__all__ = ["capture_in_double"]


def _double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def capture_in_double(captured: Capture, shells: dict[int, Any]) -> Capture:
    """Return the capture of the same model with float64 parameters and no narrower casts."""
    from bnfold.graph.facts import Facts

    graph = _graph_in_double(captured.graph)
    known = Facts.of(captured).shapes_by_name() if captured.affines else ()  # which affines are such, they tell
    shapes = tuple({node: found[node.name] for node in graph.nodes if node.name in found} for found in known)
    return replace(
        captured,
        graph=graph,
        root=double_shell(captured.root, shells),
        shapes=shapes,
        constants={name: _double(value) for name, value in captured.constants.items()},
        pieces={path: capture_in_double(piece, shells) for path, piece in captured.pieces.items()},
        _cache={},
    )


_CASTS = frozenset(("float", "half", "bfloat16"))


def _graph_in_double(graph: Graph) -> Graph:
    """Return a copy of the graph in which no cast to a narrower floating type is left."""
    new = Graph()
    copies: dict[Node, Node] = {}
    new.graph_copy(graph, copies)
    new.set_codegen(copy.copy(graph._codegen))
    for node in graph.nodes:
        if node.op == "output":
            new.node_copy(node, copies.__getitem__)
    for node in new.nodes:
        node.args, node.kwargs = _wide(node.args), _wide(node.kwargs)
        node.meta.pop(NARROW, None)
        if DTYPE in node.meta:
            node.meta[DTYPE] = _wide(node.meta[DTYPE])
        if node.op == "call_method" and node.target in _CASTS:
            node.target = "double"
    return new


def _wide(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_wide(part) for part in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: _wide(part) for key, part in value.items()}
    return torch.float64 if value in (torch.float32, torch.float16, torch.bfloat16) else value
