"""Normalisations: the affine that is to be folded, what it becomes where nothing absorbs it, and those with weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.ops.interface import GraphFacts, Source, Value
from bnfold.ops.operation import STOPS, Operation
from bnfold.ops.refusal import Refusal
from bnfold.ops.spelling import Arguments, NotStaticError, Signature, Spellings
from bnfold.ops.symbolic import Shape, Sight, number, with_size
from bnfold.ops.weighted import Absorber

__all__ = ["SPELLINGS", "AffineNormalization", "BatchNorm", "ExplicitAffine"]


@dataclass(frozen=True, eq=False)
class BatchNorm(Operation):
    """A batch normalisation; or any other affine by constants, of mean 0 and variance 1.

    Attributes:
        uses_batch_statistics: whether it computes mean and variance from its input, even in eval mode.
        name: qualified name of the layer, None for a bare function call whose statistics have no name.
        rank: the number of dimensions an input must have for the channels to be in dimension 1; None for any.
        fixed: whether it takes so many channels and no others; arithmetic of the user's own stretches one channel.
        dim: the dimension that its channels run along.
        by_constants: whether it is an affine by constants, and no normalisation.
        stays: why it must stay as it is, where the front end knows.
    """

    words = "BatchNorm"
    keeps_rank = True
    keeps_channels = True
    memory = "fresh"
    rule = STOPS

    input: Value
    running_mean: Source
    running_var: Source
    weight: Source
    bias: Source
    eps: float
    uses_batch_statistics: bool
    name: str | None
    rank: int | None = None
    fixed: bool = True
    dim: int = 1
    by_constants: bool = False
    stays: Refusal | None = None

    def own_channels(self, facts: GraphFacts) -> int | None:
        """The statistics tell."""
        shape = facts.shape_of(self.running_mean) if isinstance(self.running_mean, str) and self.dim == 1 else None
        return None if shape is None else shape[0]

    def sizes(self, before: Shape, sight: Sight) -> Shape:
        """All sizes stay, and the statistics tell the channels."""
        channels = self.own_channels(sight.facts)
        return before if channels is None or len(before) < 2 else with_size(before, 1, number(channels))


_RANKS: dict[type[nn.Module] | None, int] = {
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.InstanceNorm1d: 3,  # also takes an input without a batch, whose channels stand in dimension 0
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}


def _batch_norm(node: Value, a: Arguments) -> Operation:
    statistics = (a.source("running_mean"), a.source("running_var"))
    weight, bias = a.source("weight"), a.source("bias")
    owners = (source.rpartition(".")[0] for source in (statistics[0], weight) if isinstance(source, str))
    name = a.name or next(filter(None, owners), None)
    training = a.layer.training if a.layer is not None else bool(a.static("training", False))
    uses_batch = training or None in statistics
    rank = _RANKS.get(type(a.layer))
    return BatchNorm(node, a.value(), *statistics, weight, bias, float(a.static("eps")), uses_batch, name, rank)


@dataclass(frozen=True, eq=False)
class AffineNormalization(Absorber):
    """GroupNorm, LayerNorm or InstanceNorm: a normalisation of its own, then ``* weight + bias`` per channel.

    Attributes:
        channel_dim: the dimension that weight and bias run along; -1 for LayerNorm over one dimension.
        channels: C; 0 where only the weight tells.
        rank: the number of dimensions an input must have for ``channel_dim`` to hold; None for any.
    """

    words = "normalisation"
    keeps_rank = True
    keeps_channels = True
    takes = frozenset(("after",))

    channel_dim: int
    channels: int
    rank: int | None = None

    @property
    def channels_at(self) -> int:  # type: ignore[override]
        """The dimension that the channels run along."""
        return self.channel_dim

    @property
    def needed_rank(self) -> int | None:
        """Its output has as many dimensions."""
        return self.rank

    def output_channels(self, weight: Tensor | None) -> int:
        """Those of the weight."""
        return self.channels if weight is None or self.channels else int(weight.shape[0])

    def own_channels(self, facts: GraphFacts) -> int | None:  # noqa: ARG002
        """Its input has as many, and is asked."""
        return None

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """All sizes stay."""
        return before


def _group_norm(node: Value, a: Arguments) -> Operation | None:
    weight, bias = a.source("weight"), a.source("bias")
    if a.layer is None:
        return None if weight is None else AffineNormalization(node, a.value(), weight, bias, 1, 0)
    channels = a.layer.num_channels if isinstance(a.layer, nn.GroupNorm) else a.layer.num_features
    return AffineNormalization(node, a.value(), weight, bias, 1, int(channels), _RANKS.get(type(a.layer)))


def _instance_norm(node: Value, a: Arguments) -> Operation | None:
    """With running statistics it is an eval-mode BatchNorm."""
    if a.layer is not None:
        tracked = a.layer.track_running_stats and a.layer.running_mean is not None
        return _batch_norm(node, a) if tracked and not a.layer.training else _group_norm(node, a)
    if a.static("use_input_stats"):
        return _group_norm(node, a)
    return None if a.get("running_mean") is None else _batch_norm(node, a)


def _layer_norm(node: Value, a: Arguments) -> Operation | None:
    shape = a.static("normalized_shape")
    sizes = (shape,) if isinstance(shape, int) else shape
    if len(sizes) != 1:
        raise NotStaticError("layer norm over several dimensions")
    return AffineNormalization(node, a.value(), a.source("weight"), a.source("bias"), -1, int(sizes[0]))


@dataclass(frozen=True, eq=False)
class ExplicitAffine(Absorber):
    """A :class:`bnfold.fold.explicit.ExplicitAffine` layer: ``x * weight + bias``, channels in dimension 1."""

    words = "affine"
    keeps_rank = True
    takes = frozenset(("after", "before"))

    def input_channels(self, weight: Tensor) -> int:
        """Those of the weight."""
        return int(weight.shape[0])

    def by_input(self, weight: Tensor, values: Tensor) -> Tensor:  # noqa: ARG002
        """As the weight is laid out."""
        return values

    def summed(self, weight: Tensor) -> Tensor:
        """As the weight is laid out."""
        return weight


def explicit_affine(node: Value, a: Arguments) -> Operation | None:
    """Read bnfold's own layer."""
    if a.layer.dim != 1:
        return None
    return ExplicitAffine(node, a.value(), a.source("weight"), a.source("bias"))


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_BN = Signature("input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05")
_TORCH_BN = Signature("input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True")
_IN = Signature(
    "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-05"
)
_TORCH_IN = Signature("input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=1")
_GROUP_NORM = Signature("input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True")
_LAYER_NORM = Signature("input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enabled=True")

SPELLINGS.function(_BN, _batch_norm, F.batch_norm)
SPELLINGS.function(_TORCH_BN, _batch_norm, torch.batch_norm, aten.batch_norm.default, aten.batch_norm)
SPELLINGS.function(_IN, _instance_norm, F.instance_norm)
SPELLINGS.function(_TORCH_IN, _instance_norm, torch.instance_norm, aten.instance_norm.default)
SPELLINGS.function(_GROUP_NORM, _group_norm, F.group_norm, torch.group_norm, aten.group_norm.default)
SPELLINGS.function(_LAYER_NORM, _layer_norm, F.layer_norm, torch.layer_norm, aten.layer_norm.default)
SPELLINGS.layer(_batch_norm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SPELLINGS.layer(_instance_norm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
SPELLINGS.layer(_group_norm, nn.GroupNorm)
SPELLINGS.layer(_layer_norm, nn.LayerNorm)
