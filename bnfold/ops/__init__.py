"""All that is known of operations, one file for each family.

=================  ================================================================================================
:mod:`.weighted`   convolutions, linear layers, embeddings: what absorbs an affine
:mod:`.normalising`  BatchNorm, the explicit affine, normalisations with weights
:mod:`.pooling`    pools, means, resizing, padding
:mod:`.elementwise`  activations, dropout, arithmetic, the identity
:mod:`.joining`    sums and concatenations
:mod:`.arranging`  reshapes, permutations, shuffles, flips; reads of a shape
:mod:`.cutting`    slices, selections, splits
:mod:`.own`        layers of a user's own
:mod:`.by_constants`  affines by constants, read from sums, products and quotients
=================  ================================================================================================

Beside them stand what they are made of: :mod:`.operation` (what a class declares), :mod:`.spelling`, :mod:`.form` and
:mod:`.refusal` (what a rule is given, and what it answers), and :mod:`.interface` (what a front end provides).
"""

from __future__ import annotations

from bnfold.ops import arranging, cutting, elementwise, joining, normalising, pooling, weighted
from bnfold.ops.arranging import (
    ChannelShuffle,
    Constant,
    MetadataRead,
    Permute,
    PixelShuffle,
    PixelUnshuffle,
    Rearrange,
    Reshape,
)
from bnfold.ops.by_constants import OfTwo, by_constants, channel_dim
from bnfold.ops.cutting import Item, Select, Slice, Split
from bnfold.ops.elementwise import ActiveDropout, ByNumber, Divide, Multiply, Passing, PositivelyHomogeneous
from bnfold.ops.interface import GraphFacts, HiddenBatchNorm, Source, Value
from bnfold.ops.joining import Add, Concatenate
from bnfold.ops.normalising import AffineNormalization, BatchNorm, ExplicitAffine
from bnfold.ops.operation import Operation, Rule, kinds
from bnfold.ops.own import TaughtAbsorber, TaughtPassing
from bnfold.ops.pooling import AdaptiveAveragePool, AveragePool, Interpolate, MaxPool, Mean, Pad
from bnfold.ops.spelling import Spellings
from bnfold.ops.weighted import Absorber, Convolution, Embedding, Linear, TransposedConvolution

__all__ = [
    "FAMILIES",
    "Absorber",
    "ActiveDropout",
    "AdaptiveAveragePool",
    "Add",
    "AffineNormalization",
    "AveragePool",
    "BatchNorm",
    "ByNumber",
    "ChannelShuffle",
    "Concatenate",
    "Constant",
    "Convolution",
    "Divide",
    "Embedding",
    "ExplicitAffine",
    "GraphFacts",
    "HiddenBatchNorm",
    "Interpolate",
    "Item",
    "Linear",
    "MaxPool",
    "Mean",
    "MetadataRead",
    "Multiply",
    "OfTwo",
    "Operation",
    "Pad",
    "Passing",
    "Permute",
    "PixelShuffle",
    "PixelUnshuffle",
    "PositivelyHomogeneous",
    "Rearrange",
    "Reshape",
    "Rule",
    "Select",
    "Slice",
    "Source",
    "Spellings",
    "Split",
    "TaughtAbsorber",
    "TaughtPassing",
    "TransposedConvolution",
    "Value",
    "by_constants",
    "channel_dim",
    "kinds",
]

FAMILIES: tuple[Spellings, ...] = tuple(
    family.SPELLINGS for family in (weighted, normalising, pooling, elementwise, joining, arranging, cutting)
)
"""The spellings of all operations."""
