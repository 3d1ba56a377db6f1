"""Operations with weights that are linear in their output, ``y = weight * something + bias``: they absorb affines.

The algebra is on tensors, in float64. For an affine after the operation, with C output channels::

    weight'[c] = scale[c] * weight[c]
    bias'[c]   = scale[c] * bias[c] + shift[c]

and for one before it, where each output sees a whole window, with input channel i::

    weight'[c, i] = weight[c, i] * scale[i]
    bias'[c]      = bias[c] + sum over i and the kernel of weight[c, i] * shift[i]

Each class says where in its weight the channels run. Source: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1 and
Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.affine import ChannelAffine
from bnfold.ops.interface import GraphFacts, Source, Value
from bnfold.ops.operation import STOPS, Dims, Operation
from bnfold.ops.refusal import Refusal
from bnfold.ops.spelling import Arguments, NotStaticError, Signature, Spellings
from bnfold.ops.symbolic import Shape, Sight, number

__all__ = ["SPELLINGS", "Absorber", "Convolution", "Embedding", "Linear", "TransposedConvolution", "Weights"]

Weights: TypeAlias = "tuple[Tensor, Tensor | None]"  # weight and bias, float64


@dataclass(frozen=True, eq=False)
class Absorber(Operation):
    """An operation with weights that are linear in its output.

    Class attributes:
        takes: the sides on which it absorbs an affine: after it, before it, or beside it.
        channels_at: the dimension that the output's channels run along: 1, or -1.
    """

    keeps_channels = False
    memory = "fresh"
    rule = STOPS
    takes: ClassVar[frozenset[str]]
    channels_at: ClassVar[int] = 1

    input: Value
    weight: Source
    bias: Source

    @property
    def needed_rank(self) -> int | None:
        """The number of dimensions that its output must have for the channels to be where it says; None for any."""
        return None

    @property
    def input_rank_less(self) -> int:
        """How many dimensions its input has less than its output."""
        return 0

    @property
    def held_as(self) -> tuple[str, str]:
        """What a layer calls its weight and its bias."""
        return "weight", "bias"

    # --- the layout of the weight ---------------------------------------------------------------------------------

    def output_channels(self, weight: Tensor | None) -> int:
        """Return C, the number of channels that the output has."""
        assert weight is not None
        return int(weight.shape[0])

    def input_channels(self, weight: Tensor) -> int:
        """Return the number of channels that the input has."""
        raise NotImplementedError

    def by_output(self, weight: Tensor, values: Tensor) -> Tensor:
        """Return one value for each output channel, shaped to be multiplied by the weight."""
        return values.reshape(-1, *[1] * (weight.ndim - 1))

    def by_input(self, weight: Tensor, values: Tensor) -> Tensor:
        """Return one value for each input channel, shaped to be multiplied by the weight."""
        raise NotImplementedError

    def summed(self, weight: Tensor) -> Tensor:
        """Return the sum over all that each output channel reads."""
        return weight.flatten(1).sum(1)

    # --- the algebra ----------------------------------------------------------------------------------------------

    def absorb_after(self, weights: Weights, affine: ChannelAffine) -> Weights:
        """Return weight and bias of the operation that computes ``affine(op(x))``.

        Args:
            weights: weight and bias, float64; not changed. The bias may be None, which means 0.
            affine: C values each, on the device of the weights.
        """
        weight, bias = weights
        scaled = weight * self.by_output(weight, affine.scale)
        return scaled, affine.shift.clone() if bias is None else affine.scale * bias + affine.shift

    def absorb_before(self, weights: Weights, affine: ChannelAffine) -> Weights:
        """Return weight and bias of the operation that computes ``op(affine(x))``, each output seeing a whole window.

        Args:
            weights: weight and bias, float64; not changed.
            affine: one value for each input channel, on the device of the weights.
        """
        weight, bias = weights
        added = self.summed(weight * self.by_input(weight, affine.shift))
        return weight * self.by_input(weight, affine.scale), added if bias is None else bias + added

    def absorb_beside(self, weights: Weights, affine: ChannelAffine) -> Weights:
        """Return weight and bias of the operation that computes ``op(x) + affine(x)``."""
        raise NotImplementedError

    @property
    def scales_rows(self) -> bool:
        """Whether all it takes to absorb an affine after it is to scale the rows of its weight."""
        return type(self).by_output is Absorber.by_output and type(self).absorb_after is Absorber.absorb_after

    def shift_stops(self, kernel: tuple[int, ...]) -> Refusal | None:  # noqa: ARG002
        """Return why a shift of its input does not add the same to each output: ``{count}`` is that of the shifts."""
        return None

    def own_channels(self, facts: GraphFacts) -> int | None:
        """The weight tells."""
        shape = facts.shape_of(self.weight) if self.channels_at == 1 else None
        return None if shape is None else self.channels_of(shape)

    def channels_of(self, shape: tuple[int, ...]) -> int | None:
        """Return C for a weight of this shape."""
        return shape[0]

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """All sizes stay but that of the channels."""
        shape = sight.facts.shape_of(self.weight)
        channels = None if shape is None else self.channels_of(shape)
        at = self.channels_at % len(sight.fresh)
        size = sight.fresh[at] if channels is None else number(channels)
        return (*before[:at], size, *before[at + 1 :])


# --- convolutions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OverSpace(Absorber):
    """A convolution of any kind over the last ``spatial_dims`` dimensions."""

    keeps_rank = True

    spatial_dims: int

    @property
    def needed_rank(self) -> int:
        """Its output has as many dimensions."""
        return self.spatial_dims + 2

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:
        """The batch stays, the weight tells the channels, and nothing tells of space."""
        if len(before) != self.spatial_dims + 2:
            return None
        channels = self.own_channels(sight.facts)
        return (before[0], sight.fresh[1] if channels is None else number(channels), *sight.fresh[2:])


@dataclass(frozen=True, eq=False)
class _OfPlainWeights(OverSpace):
    """One whose weight is its own."""

    stride: Dims
    padding: Dims | str
    dilation: Dims
    groups: int


@dataclass(frozen=True, eq=False)
class Convolution(_OfPlainWeights):
    """``conv1d`` to ``conv3d``: weight ``(C_out, C_in / groups, *kernel)``, channels in dimension 1.

    Attributes:
        uneven: whether it pads one side more than the other, or as its input asks; ``padding`` then tells nothing.
    """

    words = "convolution"
    takes = frozenset(("after", "before", "beside"))

    padding_mode: str = "zeros"
    uneven: bool = False

    def input_channels(self, weight: Tensor) -> int:
        """Those of the weight."""
        return int(weight.shape[1] * self.groups)

    def by_input(self, weight: Tensor, values: Tensor) -> Tensor:
        """As the weight is laid out."""
        rows, columns = weight.shape[0] // self.groups, weight.shape[1]
        by_row = values.reshape(self.groups, 1, columns).expand(-1, rows, -1)
        return by_row.reshape(weight.shape[0], columns, *[1] * (weight.ndim - 2))

    def shift_stops(self, kernel: tuple[int, ...]) -> Refusal | None:
        """Whether it reads padding."""
        if self.padding_mode != "zeros" or not self._pads(kernel):
            return None
        return Refusal("zero-padding", "{count} not zero and {op} pads with zeros", op=self)

    def _pads(self, kernel: tuple[int, ...]) -> bool:
        if self.uneven:
            return True
        if isinstance(self.padding, str):
            return self.padding == "same" and any(size != 1 for size in kernel)
        return not _all(self.padding, 0)

    def centre_tap(self, kernel: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the kernel position that sees the output's own position in an input of the same size, or None.

        Output position o reads input ``o * stride - padding + k * dilation`` at tap k. It is o for ``k = padding /
        dilation``, and the size stays if ``2 * padding = dilation * (kernel - 1)``.
        """
        taps = []
        if self.uneven:
            return None
        for dim, size in enumerate(kernel):
            stride, dilation = _at(self.stride, dim), _at(self.dilation, dim)
            reach = dilation * (size - 1)
            if self.padding == "valid":
                padding = 0
            elif isinstance(self.padding, str):
                padding = reach // 2
            else:
                padding = _at(self.padding, dim)
            if stride != 1 or 2 * padding != reach or padding % dilation:
                return None
            taps.append(padding // dilation)
        return tuple(taps)

    def absorb_beside(self, weights: Weights, affine: ChannelAffine) -> Weights:
        """Return weight and bias of the convolution that computes ``conv(x) + affine(x)``.

        For C channels in G groups, output channel c reads input channel c as column ``c % (C/G)``; at the tap that sees
        the output's own position::

            weight'[c, c % (C/G), tap] = weight[c, c % (C/G), tap] + scale[c]
            bias'[c]                   = bias[c] + shift[c]
        """
        weight, bias = weights
        tap = self.centre_tap(tuple(weight.shape[2:]))
        assert tap is not None
        moved = with_identity(weight, affine.scale, tap)
        return moved, affine.shift.clone() if bias is None else bias + affine.shift


def with_identity(weight: Tensor, scale: Tensor, tap: tuple[int, ...]) -> Tensor:
    """Return a convolution's weight ``(C, C/G, *kernel)`` with ``scale`` times the identity added at a tap."""
    rows = torch.arange(weight.shape[0], device=weight.device)
    moved = weight.clone()
    at_tap = moved
    for position in tap:
        at_tap = at_tap.select(2, position)  # a view; in the end (C, C/G)
    at_tap[rows, rows % weight.shape[1]] += scale
    return moved


@dataclass(frozen=True, eq=False)
class TransposedConvolution(_OfPlainWeights):
    """``conv_transpose1d`` to ``3d``: weight ``(C_in, C_out / groups, *kernel)``, channels in dimension 1.

    Output channel c is column ``c % (C/G)`` of row block ``c // (C/G)``.
    """

    words = "transposed convolution"
    takes = frozenset(("after", "before"))

    output_padding: Dims = 0

    def output_channels(self, weight: Tensor | None) -> int:
        """Those of the weight."""
        assert weight is not None
        return int(weight.shape[1] * self.groups)

    def channels_of(self, shape: tuple[int, ...]) -> int:
        """As the weight is laid out."""
        return shape[1] * self.groups

    def input_channels(self, weight: Tensor) -> int:
        """Those of the weight."""
        return int(weight.shape[0])

    def by_output(self, weight: Tensor, values: Tensor) -> Tensor:
        """As the weight is laid out."""
        rows, columns = weight.shape[0] // self.groups, weight.shape[1]
        by_group = values.reshape(self.groups, 1, columns).expand(-1, rows, -1)
        return by_group.reshape(weight.shape[0], columns, *[1] * self.spatial_dims)

    def by_input(self, weight: Tensor, values: Tensor) -> Tensor:
        """As the weight is laid out."""
        return values.reshape(-1, *[1] * (weight.ndim - 1))

    def summed(self, weight: Tensor) -> Tensor:
        """As the weight is laid out."""
        by_group = weight.reshape(self.groups, -1, *weight.shape[1:])
        return by_group.sum(dim=[1, *range(3, by_group.ndim)]).reshape(-1)

    def shift_stops(self, kernel: tuple[int, ...]) -> Refusal | None:
        """Whether it reads padding."""
        point = all(size == 1 for size in kernel) and _all(self.stride, 1) and _all(self.output_padding, 0)
        if point and not isinstance(self.padding, str) and _all(self.padding, 0):
            return None
        return Refusal("zero-padding", "{count} not zero and windows of {op} overlap unevenly", op=self)


def _all(size: Dims, value: int) -> bool:
    return size == value if isinstance(size, int) else all(part == value for part in size)


def _at(size: Dims, dim: int) -> int:
    if isinstance(size, int):
        return size
    return size[dim] if len(size) > 1 else size[0]


def _convolution(dims: int, node: Value, a: Arguments) -> Operation:
    weights = a.value(), a.source("weight"), a.source("bias")
    how = a.static("stride"), a.static("padding"), a.static("dilation"), a.static("groups")
    return Convolution(node, *weights, dims, *how, a.static("padding_mode", "zeros"))


def _transposed(dims: int, node: Value, a: Arguments) -> Operation:
    weights = a.value(), a.source("weight"), a.source("bias")
    how = a.static("stride"), a.static("padding"), a.static("dilation"), a.static("groups")
    return TransposedConvolution(node, *weights, dims, *how, a.static("output_padding"))


def _convolution_of_any_kind(node: Value, a: Arguments) -> Operation:
    """``aten.convolution``: its lists tell the number of dimensions, a flag whether it is transposed."""
    return (_transposed if a.static("transposed") else _convolution)(len(a.static("stride")), node, a)


# --- matrices ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Linear(Absorber):
    """``linear``: weight ``(C_out, C_in)``, channels in the last dimension."""

    words = "linear layer"
    keeps_rank = True
    takes = frozenset(("after", "before"))
    channels_at = -1

    def input_channels(self, weight: Tensor) -> int:
        """Those of the weight."""
        return int(weight.shape[1])

    def by_input(self, weight: Tensor, values: Tensor) -> Tensor:  # noqa: ARG002
        """As the weight is laid out."""
        return values


def _linear(node: Value, a: Arguments) -> Operation:
    return Linear(node, a.value(), a.source("weight"), a.source("bias"))


@dataclass(frozen=True, eq=False)
class Embedding(Absorber):
    """``embedding``: weight ``(entries, C)``, no bias, channels in the last dimension of the output."""

    words = "embedding"
    keeps_rank = False
    takes = frozenset(("after",))
    channels_at = -1

    @property
    def input_rank_less(self) -> int:
        """The entries are numbers."""
        return 1

    def output_channels(self, weight: Tensor | None) -> int:
        """Those of the weight."""
        assert weight is not None
        return int(weight.shape[1])

    def channels_of(self, shape: tuple[int, ...]) -> int:
        """As the weight is laid out."""
        return shape[1]

    def absorb_after(self, weights: Weights, affine: ChannelAffine) -> Weights:
        """Each entry takes scale and shift: there is no bias."""
        return weights[0] * affine.scale + affine.shift, None


def _embedding(node: Value, a: Arguments) -> Operation | None:
    if a.get("max_norm") is not None:  # renormalises its weight when called
        raise NotStaticError("embedding with max_norm")
    return Embedding(node, a.value(), a.source("weight"), None)


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_CONV = Signature("input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1")
_CONV_T = Signature("input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1")
_ANY_CONV = "input, weight, bias, stride, padding, dilation, transposed, output_padding, groups"
_LINEAR = Signature("input, weight, bias=None")
_EMBEDDING = Signature(
    "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False"
)
_TORCH_EMBEDDING = Signature("weight, input, padding_idx=-1, scale_grad_by_freq=False, sparse=False")

for _n in (1, 2, 3):
    _name, _read, _read_t = f"conv{_n}d", partial(_convolution, _n), partial(_transposed, _n)
    _op, _op_t = getattr(aten, _name), getattr(aten, f"conv_transpose{_n}d")
    SPELLINGS.function(_CONV, _read, getattr(torch, _name), _op.default, _op.padding)
    SPELLINGS.function(_CONV_T, _read_t, getattr(F, f"conv_transpose{_n}d"), _op_t.default if _n == 1 else _op_t.input)
    SPELLINGS.layer(_read, getattr(nn, f"Conv{_n}d"))
    SPELLINGS.layer(_read_t, getattr(nn, f"ConvTranspose{_n}d"))
SPELLINGS.function(Signature(_ANY_CONV), _convolution_of_any_kind, aten.convolution.default)
SPELLINGS.function(
    Signature(_ANY_CONV + ", benchmark, deterministic, cudnn_enabled, allow_tf32"),
    _convolution_of_any_kind,
    aten._convolution.default,
)
SPELLINGS.function(_LINEAR, _linear, F.linear, aten.linear.default)
SPELLINGS.layer(_linear, nn.Linear)
SPELLINGS.function(_EMBEDDING, _embedding, F.embedding)
SPELLINGS.function(_TORCH_EMBEDDING, _embedding, aten.embedding.default)
SPELLINGS.layer(_embedding, nn.Embedding)
