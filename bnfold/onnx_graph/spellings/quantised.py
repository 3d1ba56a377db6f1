"""Convolutions whose weights are whole numbers times a scale: they take an affine into the scale.

    w[c] = (q[c] - z[c]) s[c]        scale[c] w[c] = (q[c] - z[c]) (scale[c] s[c])

The whole numbers stay, and the scales are rounded once. Scales may be negative and zero: ``DequantizeLinear``
multiplies by them, in ONNX Runtime too (``benchmarks/bench_dequantised.py``). Where values are quantised, and not
weights alone, ONNX Runtime computes the layer in whole numbers; such models stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.constants import is_standard
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.operation import STOPS
from bnfold.ops.refusal import Refusal
from bnfold.ops.symbolic import Shape, Sight
from bnfold.ops.weighted import OverSpace

__all__ = ["OfQuantisedWeights", "OfScaledWeights", "dequantised", "scaled_convolution", "unscaled"]

_PER_AXIS = 13
"""The opset from which on DequantizeLinear has a scale for each channel."""


@dataclass(frozen=True, eq=False)
class OfQuantisedWeights(ops.Operation):
    """A convolution or a matrix product with quantised weights that stay as they are."""

    words = "layer with quantised weights"
    keeps_rank = False
    keeps_channels = False
    memory = "fresh"
    rule = STOPS

    input: OnnxValue
    why: str

    @property
    def refusal(self) -> Refusal:
        """Why nothing moves into them."""
        return Refusal("quantised-weights", "{op} stays as it is: {why}", op=self, why=self.why)

    def sizes(self, before: Shape, sight: Sight) -> None:  # noqa: ARG002
        """The shape inference tells them."""
        return


@dataclass(frozen=True, eq=False)
class OfScaledWeights(OverSpace):
    """A convolution of dequantised weights. Its weight is the scale of these, one for each output channel."""

    words = "convolution with quantised weights"
    takes: ClassVar[frozenset[str]] = frozenset(("after",))


def dequantised(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes a value; None where another node does, or none."""
    maker = None if value is None else value.producer()
    return maker if maker is not None and is_standard(maker) and maker.op_type == "DequantizeLinear" else None


def unscaled(node: OnnxValue, a: NodeArguments) -> OfQuantisedWeights:
    """Read a matrix product with quantised weights, or a bias that is."""
    return OfQuantisedWeights(node, a.value(), "only a convolution takes an affine into the scale of its weights")


def scaled_convolution(node: OnnxValue, a: NodeArguments, axis: int) -> ops.Operation:
    """Read a convolution, or a transposed one, with quantised weights.

    Args:
        node: its value.
        a: its arguments.
        axis: the dimension of its weight that the output's channels run along.
    """

    def stays(why: str) -> ops.Operation:
        return OfQuantisedWeights(node, a.value(), why)

    maker = dequantised(a.at(1))
    if maker is None or dequantised(a.at(2) if a.has(2) else None) is not None:
        return stays("its bias is quantised")
    given = NodeArguments(maker, a.facts)
    if not all(given.is_constant(place) for place in range(len(maker.inputs)) if given.has(place)):
        return stays("its weights are computed, or may be overridden")
    if a.facts.constants.quantises_values:
        return stays("the model quantises values, too: ONNX Runtime computes such layers in whole numbers")
    shape, scale = given.shape(0), given.shape(1)
    channels, dims = shape[axis], len(shape) - 2
    if not 1 <= dims <= 3 or (axis == 1 and a.integer("group", 1) != 1):
        return stays("one scale is that of several output channels")
    if a.version < _PER_AXIS:
        return stays(f"before opset {_PER_AXIS} all channels have one scale")
    if given.integer("output_dtype", 0) not in (0, a.facts.constants.dtype(given.at(1))):
        return stays("its weights are of another type than their scale")
    if given.integer("block_size", 0):
        return stays("the scales of its weights are those of blocks")
    along = given.integer("axis", 1) % len(shape)
    if scale not in ((), (1,)) and (scale != (channels,) or along != axis):
        return stays("the scales of its weights run along another dimension than the output's channels")
    bias = a.source(2)
    if a.has(2) and a.is_constant(2) and a.shape(2) != (channels,):
        return stays("its bias has another shape")
    return OfScaledWeights(node, a.value(), given.source(1, vector=channels), bias, dims)
