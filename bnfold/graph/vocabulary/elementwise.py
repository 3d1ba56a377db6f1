"""Functions that work element by element: activations, sums, dropout, and what passes a value on."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.inplace import IN_PLACE_ADD, IN_PLACE_DIVIDE, IN_PLACE_MULTIPLY, IN_PLACE_SUBTRACT
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
        alpha = static(a["alpha"])
        if isinstance(left, Node) and isinstance(right, Node):
            return calls.Add(node, left, right, sign) if alpha == 1 else None
        if isinstance(left, Node) and _is_number(right) and _is_number(alpha):
            return calls.ByNumber(node, left, 1.0, float(sign * alpha * right))
        if isinstance(right, Node) and _is_number(left) and _is_number(alpha) and alpha != 0:
            return calls.ByNumber(node, right, float(sign * alpha), float(left))
        return None

    return read


def _subtract_from(node: Node, a: Arguments) -> calls.Call | None:
    """``rsub``: other - alpha * input."""
    other, alpha = a["other"], static(a["alpha"])
    if isinstance(other, Node) or not _is_number(other) or not _is_number(alpha) or alpha == 0:
        return None
    return calls.ByNumber(node, value_of(a["input"]), float(-alpha), float(other))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _multiply(node: Node, a: Arguments) -> calls.Call | None:
    value, factor = (a["input"], a["other"]) if isinstance(a["input"], Node) else (a["other"], a["input"])
    if not _is_number(factor) or factor == 0:
        return None
    return calls.ByNumber(node, value_of(value), float(factor), 0.0)


def _divide(node: Node, a: Arguments) -> calls.Call | None:
    divisor = a["other"]
    if not _is_number(divisor) or divisor == 0:
        return None
    return calls.ByNumber(node, value_of(a["input"]), 1 / divisor, 0.0)


def _negate(node: Node, a: Arguments) -> calls.Call:
    return calls.ByNumber(node, value_of(a["input"]), -1.0, 0.0)


aten = torch.ops.aten
_DROPOUT = Signature("input, p=0.5, training=True, inplace=False")
_PAIR = Signature("input, other")
_LIKE = Signature("input, memory_format=None")
_homogeneous = one_input(calls.PositivelyHomogeneous)
_passing = one_input(calls.Passing)

FUNCTIONS: dict[Any, Row] = {
    F.relu: (Signature("input, inplace=False"), _homogeneous),
    F.leaky_relu: (Signature("input, negative_slope=0.01, inplace=False"), _homogeneous),
}
METHODS: dict[str, Row] = {
    "relu": (UNARY, _homogeneous),
    "relu_": (UNARY, _homogeneous),
    "contiguous": (_LIKE, _passing),
    "clone": (_LIKE, _passing),
    "detach": (UNARY, _passing),
    "mul": (_PAIR, _multiply),
    "mul_": (_PAIR, _multiply),
    "div": (_PAIR, _divide),
    "div_": (_PAIR, _divide),
    "neg": (UNARY, _negate),
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
spelled(FUNCTIONS, (Signature("input, weight"), _homogeneous), F.prelu, torch.prelu, aten.prelu.default)
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
spelled(
    FUNCTIONS,
    (Signature("input, p, train"), _aten_dropout),
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
)  # fmt: skip
spelled(FUNCTIONS, (_PAIR, _multiply), operator.mul, torch.mul, torch.multiply, aten.mul.Tensor, aten.mul.Scalar)
spelled(FUNCTIONS, (_PAIR, _multiply), IN_PLACE_MULTIPLY, aten.mul_.Tensor, aten.mul_.Scalar)
spelled(FUNCTIONS, (_PAIR, _divide), operator.truediv, torch.div, torch.divide, torch.true_divide)
spelled(FUNCTIONS, (_PAIR, _divide), IN_PLACE_DIVIDE, aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor)
spelled(FUNCTIONS, (UNARY, _negate), operator.neg, torch.neg, torch.negative, aten.neg.default)
spelled(FUNCTIONS, (BINARY, _subtract_from), torch.rsub, aten.rsub.Tensor, aten.rsub.Scalar)
spelled(FUNCTIONS, (BINARY, _add(1)), operator.add, IN_PLACE_ADD, torch.add, aten.add.Tensor, aten.add_.Tensor)
spelled(
    FUNCTIONS,
    (BINARY, _add(-1)),
    operator.sub, IN_PLACE_SUBTRACT, torch.sub, torch.subtract, aten.sub.Tensor, aten.sub_.Tensor,
)  # fmt: skip
