"""Functions that work element by element: activations, sums, dropout, and what passes a value on."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.inplace import IN_PLACE_ADD, IN_PLACE_SUBTRACT
from bnfold.graph.signature import Signature, static
from bnfold.graph.vocabulary.reading import BINARY, UNARY, Arguments, FunctionReader, Row, one_input, spelled, value_of

__all__ = ["FUNCTIONS", "METHODS"]


def _dropout(node: Node, a: Arguments) -> calls.Call:
    active = bool(static(a["training"])) and static(a["p"]) > 0
    return (calls.ActiveDropout if active else calls.Passing)(node, value_of(a["input"]))


def _aten_dropout(node: Node, a: Arguments) -> calls.Call:
    return _dropout(node, {"input": a["input"], "p": a["p"], "training": a["train"]})


def _add(sign: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call | None:
        left, right = a["input"], a["other"]
        if isinstance(left, Node) and not isinstance(right, Node) and right == 0:
            return calls.Passing(node, left)  # `x + 0`, as sum([...]) writes it
        if isinstance(right, Node) and not isinstance(left, Node) and left == 0 and sign > 0:
            return calls.Passing(node, right)
        if a.get("alpha", 1) != 1 or not isinstance(left, Node) or not isinstance(right, Node):
            return None
        return calls.Add(node, left, right, sign)

    return read


aten = torch.ops.aten
_DROPOUT = Signature("input, p=0.5, training=True, inplace=False")
_LIKE = Signature("input, memory_format=None")
_homogeneous = one_input(calls.PositivelyHomogeneous)
_passing = one_input(calls.Passing)

FUNCTIONS: dict[Any, Row] = {
    F.relu: (Signature("input, inplace=False"), _homogeneous),
    F.leaky_relu: (Signature("input, negative_slope=0.01, inplace=False"), _homogeneous),
    aten.dropout.default: (Signature("input, p, train"), _aten_dropout),
}
METHODS: dict[str, Row] = {
    "relu": (UNARY, _homogeneous),
    "relu_": (UNARY, _homogeneous),
    "contiguous": (_LIKE, _passing),
    "clone": (_LIKE, _passing),
    "detach": (UNARY, _passing),
    "add": (BINARY, _add(1)),
    "add_": (BINARY, _add(1)),
    "sub": (BINARY, _add(-1)),
    "sub_": (BINARY, _add(-1)),
}
spelled(FUNCTIONS, (UNARY, _homogeneous), torch.relu, torch.relu_, aten.relu.default, aten.relu_.default)
spelled(
    FUNCTIONS,
    (Signature("input, negative_slope=0.01"), _homogeneous),
    F.leaky_relu_, aten.leaky_relu.default, aten.leaky_relu_.default,
)  # fmt: skip
spelled(
    FUNCTIONS,
    (_DROPOUT, _dropout),
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
)  # fmt: skip
spelled(
    FUNCTIONS,
    (_LIKE, _passing),
    torch.clone, torch.detach,
    aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default,
)  # fmt: skip
spelled(FUNCTIONS, (BINARY, _add(1)), operator.add, IN_PLACE_ADD, torch.add, aten.add.Tensor, aten.add_.Tensor)
spelled(
    FUNCTIONS,
    (BINARY, _add(-1)),
    operator.sub, IN_PLACE_SUBTRACT, torch.sub, torch.subtract, aten.sub.Tensor, aten.sub_.Tensor,
)  # fmt: skip
