"""Operations that work element by element on one value: activations, dropout, arithmetic, the identity."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnfold.ops.conditions import scale_nonnegative, shift_zero
from bnfold.ops.form import ChannelForm
from bnfold.ops.inplace import IN_PLACE_DIVIDE, IN_PLACE_MULTIPLY
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import STOPS, Operation, Rule, unchanged
from bnfold.ops.spelling import UNARY, Arguments, Signature, Spellings, one_input
from bnfold.ops.symbolic import Shape, Sight, broadcast

__all__ = [
    "SPELLINGS",
    "ActiveDropout",
    "ByNumber",
    "Divide",
    "Multiply",
    "Passing",
    "PositivelyHomogeneous",
    "arithmetic",
    "identity",
    "is_number",
]


@dataclass(frozen=True, eq=False)
class _Elementwise(Operation):
    """An operation on each element of one value."""

    keeps_rank = True
    keeps_channels = True
    takes_spread = True

    input: Value

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """All sizes stay."""
        return before


@dataclass(frozen=True, eq=False)
class Passing(_Elementwise):
    """The identity on values in eval mode: dropout, identity, contiguous, detach, clone, ``x + 0``.

    Attributes:
        adds_zero: whether it is ``x + 0``, as ``sum([...])`` and some training forms write it.
    """

    words = "identity"
    passes_on = True
    memory = "view"
    rule = Rule("the identity", (), backward=unchanged, forward=unchanged)

    adds_zero: bool = False


def identity(node: Value, value: Value, *, adds_zero: bool = False) -> Operation:
    """Return the operation that passes a value on."""
    return Passing(node, value, adds_zero)


@dataclass(frozen=True, eq=False)
class ActiveDropout(_Elementwise):
    """A dropout that is active in eval mode too (``F.dropout`` without ``training=False``)."""

    words = "dropout"
    keeps_channels = False
    memory = "unknown"
    rule = STOPS
    takes_spread = False


def _dropout(node: Value, a: Arguments) -> Operation:
    training = a.layer.training if a.layer is not None else a.plain(a.get("training", a.get("train")))
    return (ActiveDropout if training and a.static("p") > 0 else Passing)(node, a.value())


@dataclass(frozen=True, eq=False)
class PositivelyHomogeneous(_Elementwise):
    """relu, leaky relu, PReLU: ``f(a x) = a f(x)`` for ``a >= 0``."""

    words = "activation"
    memory = "in place"
    rule = Rule("f(a x) = a f(x) for a >= 0", (scale_nonnegative, shift_zero), backward=unchanged, forward=unchanged)


def before_number(call: ByNumber, form: ChannelForm, facts: GraphFacts) -> ChannelForm:  # noqa: ARG001
    """``a (f x + o) + b = f (a x + (a o + b - o) / f) + o``."""
    scale, shift = form.affine.scale, form.affine.shift
    return form.with_affine(form.affine.with_shift((scale * call.offset + shift - call.offset) / call.factor))


def past_number(call: ByNumber, form: ChannelForm, facts: GraphFacts) -> ChannelForm:  # noqa: ARG001
    """``f (a x + b) + o = a (f x + o) + (f b + o - a o)``."""
    scale, shift = form.affine.scale, form.affine.shift
    return form.with_affine(form.affine.with_shift(call.factor * shift + call.offset - scale * call.offset))


@dataclass(frozen=True, eq=False)
class ByNumber(_Elementwise):
    """``factor * x + offset`` with two numbers, ``factor`` not 0."""

    words = "arithmetic"
    memory = "in place"
    rule = Rule("a (f x + o) + b = f (a x + (a o + b - o) / f) + o", (), backward=before_number, forward=past_number)

    factor: float
    offset: float


def arithmetic(node: Value, value: Value, factor: float, offset: float) -> Operation | None:
    """Return the operation ``factor * x + offset``; None where the factor is 0."""
    return ByNumber(node, value, factor, offset) if factor else None


def is_number(value: Any) -> bool:
    """Whether an argument is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, eq=False)
class _OfTwo(Operation):
    """A product or a quotient of two values, one of which may be a constant."""

    keeps_rank = False
    keeps_channels = False
    memory = "in place"
    rule = STOPS

    left: Value
    right: Value

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Both."""
        return (self.left, self.right)

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """Both are stretched to one another."""
        other = sight.known.get(self.right)  # none where it is a number
        return broadcast([before, *((other,) if other is not None else ())], sight.fresh)


@dataclass(frozen=True, eq=False)
class Multiply(_OfTwo):
    """The product of two values. Merging reads it; no affine passes."""

    words = "product"


@dataclass(frozen=True, eq=False)
class Divide(_OfTwo):
    """The quotient of two values. No affine passes."""

    words = "quotient"


def _multiply(node: Value, a: Arguments) -> Operation | None:
    left, right = a.get("input"), a.get("other")
    if a.is_value(left) and a.is_value(right):
        return Multiply(node, left, right) if left is not right else None
    value, factor = (left, right) if a.is_value(left) else (right, left)
    if not a.is_value(value) or not is_number(factor) or factor == 0:
        return None
    return ByNumber(node, value, float(factor), 0.0)


def _divide(node: Value, a: Arguments) -> Operation | None:
    value, divisor = a.get("input"), a.get("other")
    if a.is_value(value) and a.is_value(divisor):
        return Divide(node, value, divisor)
    if not is_number(divisor) or divisor == 0:
        return None
    return ByNumber(node, a.value(), 1 / divisor, 0.0)


def _negate(node: Value, a: Arguments) -> Operation:
    return ByNumber(node, a.value(), -1.0, 0.0)


def _subtract_from(node: Value, a: Arguments) -> Operation | None:
    """``rsub``: other - alpha * input."""
    other, alpha = a.get("other"), a.static("alpha")
    if not is_number(other) or not is_number(alpha) or alpha == 0:
        return None
    return ByNumber(node, a.value(), float(-alpha), float(other))


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_DROPOUT = Signature("input, p=0.5, training=True, inplace=False")
_PAIR = Signature("input, other")
_LIKE = Signature("input, memory_format=None")
_SLOPE = Signature("input, negative_slope=0.01")
_homogeneous = one_input(PositivelyHomogeneous)
_passing = one_input(Passing)

SPELLINGS.function(Signature("input, inplace=False"), _homogeneous, F.relu)
SPELLINGS.function(UNARY, _homogeneous, torch.relu, torch.relu_, aten.relu.default, aten.relu_.default)
SPELLINGS.function(Signature("input, negative_slope=0.01, inplace=False"), _homogeneous, F.leaky_relu)
SPELLINGS.function(_SLOPE, _homogeneous, F.leaky_relu_, aten.leaky_relu.default, aten.leaky_relu_.default)
SPELLINGS.function(Signature("input, weight"), _homogeneous, F.prelu, aten.prelu.default)
SPELLINGS.method(UNARY, _homogeneous, "relu", "relu_")
SPELLINGS.layer(_homogeneous, nn.ReLU, nn.LeakyReLU, nn.PReLU)

_dropouts = "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"
SPELLINGS.function(_DROPOUT, _dropout, *(getattr(F, name) for name in _dropouts))
_dropouts_of_aten = aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout
SPELLINGS.function(Signature("input, p, train"), _dropout, *(packet.default for packet in _dropouts_of_aten))
SPELLINGS.layer(_dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_copies = aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default
SPELLINGS.function(_LIKE, _passing, torch.clone, torch.detach, *_copies)
SPELLINGS.method(_LIKE, _passing, "contiguous", "clone")
SPELLINGS.method(UNARY, _passing, "detach")
SPELLINGS.layer(_passing, nn.Identity)

_products = operator.mul, torch.mul, torch.multiply, IN_PLACE_MULTIPLY
SPELLINGS.function(_PAIR, _multiply, *_products, aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Tensor, aten.mul_.Scalar)
SPELLINGS.method(_PAIR, _multiply, "mul", "mul_", "multiply")
_quotients = operator.truediv, torch.div, torch.divide, torch.true_divide, IN_PLACE_DIVIDE
SPELLINGS.function(_PAIR, _divide, *_quotients, aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor)
SPELLINGS.method(_PAIR, _divide, "div", "div_")
SPELLINGS.function(UNARY, _negate, operator.neg, torch.neg, torch.negative, aten.neg.default)
SPELLINGS.method(UNARY, _negate, "neg")
SPELLINGS.function(Signature("input, other, alpha=1"), _subtract_from, torch.rsub, aten.rsub.Tensor, aten.rsub.Scalar)
