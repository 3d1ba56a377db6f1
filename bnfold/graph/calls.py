"""What a node of the graph computes, in the words that the rules use.

A :class:`Call` is one node read as one mathematical operation, the same whether it was written as a module, as a
function of ``torch.nn.functional``, as a tensor method or as an aten operator. :mod:`bnfold.graph.vocabulary` does the
reading; the rules in :mod:`bnfold.fold.rules` see only what stands here.

A *source* is where a parameter comes from: the qualified name of a tensor of the model (``str``), or the node that
computes it (:class:`torch.fx.Node`), or None where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch.fx import Node

Source: TypeAlias = "str | Node | None"
Size: TypeAlias = "int | tuple[int, ...]"


@dataclass(frozen=True, eq=False)
class Call:
    """One node, read as an operation. ``node`` is the node."""

    node: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The values that the operation reads, parameters excluded."""
        value = getattr(self, "input", None)
        return () if value is None else (value,)


# --- what absorbs an affine into its weights ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Absorber(Call):
    """An operation with weights that are linear in its output: ``y = weight * something + bias``."""

    input: Node
    weight: Source
    bias: Source


@dataclass(frozen=True, eq=False)
class Convolution(Absorber):
    """``conv1d`` to ``conv3d``: weight ``(C_out, C_in / groups, *kernel)``, channels in dimension 1."""

    spatial_dims: int
    stride: Size
    padding: Size | str
    dilation: Size
    groups: int
    padding_mode: str = "zeros"


@dataclass(frozen=True, eq=False)
class TransposedConvolution(Absorber):
    """``conv_transpose1d`` to ``3d``: weight ``(C_in, C_out / groups, *kernel)``, channels in dimension 1."""

    spatial_dims: int
    stride: Size
    padding: Size
    output_padding: Size
    groups: int
    dilation: Size


@dataclass(frozen=True, eq=False)
class Linear(Absorber):
    """``linear``: weight ``(C_out, C_in)``, channels in the last dimension."""


@dataclass(frozen=True, eq=False)
class Embedding(Absorber):
    """``embedding``: weight ``(entries, C)``, no bias, channels in the last dimension of the output."""


@dataclass(frozen=True, eq=False)
class AffineNormalization(Absorber):
    """GroupNorm, LayerNorm or InstanceNorm: a normalisation of its own, then ``* weight + bias`` per channel.

    Attributes:
        channel_dim: the dimension that weight and bias run along; -1 for LayerNorm over one dimension.
        channels: C; 0 where only the weight tells.
        rank: the number of dimensions an input must have for ``channel_dim`` to hold; None for any.
    """

    channel_dim: int
    channels: int
    rank: int | None = None


@dataclass(frozen=True, eq=False)
class TaughtAbsorber(Absorber):
    """A module of the user's (:mod:`bnfold.extend`) whose output is linear in its weight, channels in dimension 1.

    Attributes:
        weight_dim: the dimension of the weight that the output's channels run along.
        weight_name: the weight's attribute in the module.
        bias_name: the bias's.
    """

    weight_dim: int
    weight_name: str
    bias_name: str


# --- the affines themselves --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BatchNorm(Call):
    """A batch normalisation, channels in dimension 1.

    Attributes:
        uses_batch_statistics: whether it computes mean and variance from its input, even in eval mode.
        name: qualified name of the layer, None for a bare function call whose statistics have no name.
        rank: the number of dimensions an input must have for the channels to be in dimension 1; None for any.
    """

    input: Node
    running_mean: Source
    running_var: Source
    weight: Source
    bias: Source
    eps: float
    uses_batch_statistics: bool
    name: str | None
    rank: int | None = None


@dataclass(frozen=True, eq=False)
class ExplicitAffine(Absorber):
    """A :class:`bnfold.fold.explicit.ExplicitAffine` layer: ``x * weight + bias``, channels in dimension 1."""


@dataclass(frozen=True, eq=False)
class Constant(Call):
    """A value that depends on parameters and constants only, not on the model's input."""


# --- what an affine may pass ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Passing(Call):
    """The identity on values in eval mode: dropout, identity, contiguous, detach, clone."""

    input: Node


@dataclass(frozen=True, eq=False)
class ActiveDropout(Call):
    """A dropout that is active in eval mode too (``F.dropout`` without ``training=False``)."""

    input: Node


@dataclass(frozen=True, eq=False)
class MaxPool(Call):
    """A max pooling over the last ``spatial_dims`` dimensions, sliding or adaptive; pads with minus infinity."""

    input: Node
    returns_indices: bool
    spatial_dims: int


@dataclass(frozen=True, eq=False)
class AveragePool(Call):
    """A sliding average pooling over the last ``spatial_dims`` dimensions."""

    input: Node
    spatial_dims: int
    kernel_size: Size
    stride: Size | None
    padding: Size
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None

    @property
    def pads(self) -> bool:
        """Whether any window reaches over the border on purpose."""
        padding = self.padding
        return padding != 0 if isinstance(padding, int) else any(side != 0 for side in padding)

    @property
    def window(self) -> int:
        """How many elements a whole window holds."""
        if isinstance(self.kernel_size, int):
            return int(self.kernel_size**self.spatial_dims)
        sizes = self.kernel_size * self.spatial_dims if len(self.kernel_size) == 1 else self.kernel_size
        count = 1
        for size in sizes:
            count *= size
        return count


@dataclass(frozen=True, eq=False)
class AdaptiveAveragePool(Call):
    """An adaptive average pooling over the last ``spatial_dims`` dimensions.

    The windows lie inside the input, and their weights sum to 1.
    """

    input: Node
    spatial_dims: int


@dataclass(frozen=True, eq=False)
class Mean(Call):
    """A mean over ``dims`` (as written, possibly negative; None for all)."""

    input: Node
    dims: tuple[int, ...] | None
    keepdim: bool


@dataclass(frozen=True, eq=False)
class Interpolate(Call):
    """An up- or downsampling whose interpolation weights sum to 1."""

    input: Node
    mode: str


@dataclass(frozen=True, eq=False)
class PositivelyHomogeneous(Call):
    """relu, leaky relu, PReLU: ``f(a x) = a f(x)`` for ``a >= 0``."""

    input: Node


@dataclass(frozen=True, eq=False)
class TaughtPassing(Call):
    """A module of the user's (:mod:`bnfold.extend`) that affines along dimension 1 may pass, unchanged.

    Attributes:
        nonnegative: whether every scale must be >= 0.
        unshifted: whether every shift must be 0.
    """

    input: Node
    nonnegative: bool
    unshifted: bool


@dataclass(frozen=True, eq=False)
class Pad(Call):
    """A padding: ``widths`` are pairs from the last dimension backwards, as for ``torch.nn.functional.pad``."""

    input: Node
    widths: tuple[int, ...] | None
    mode: str
    value: float


@dataclass(frozen=True, eq=False)
class PixelShuffle(Call):
    """Channels ``c * r**2 + k`` become positions inside the pixel of channel ``c``."""

    input: Node
    factor: int


@dataclass(frozen=True, eq=False)
class PixelUnshuffle(Call):
    """The inverse of :class:`PixelShuffle`."""

    input: Node
    factor: int


@dataclass(frozen=True, eq=False)
class ChannelShuffle(Call):
    """Channels ``(g, C/g)`` become ``(C/g, g)``."""

    input: Node
    groups: int


@dataclass(frozen=True, eq=False)
class Reshape(Call):
    """Any operation that keeps the elements in row-major order: view, reshape, flatten, squeeze, unsqueeze."""

    input: Node


@dataclass(frozen=True, eq=False)
class Permute(Call):
    """Output dimension ``i`` is input dimension ``order[i]``; for a swap, ``order`` is the pair, ``swap`` is True."""

    input: Node
    order: tuple[int, ...]
    swap: bool = False


@dataclass(frozen=True, eq=False)
class Concatenate(Call):
    """A concatenation along ``dim``."""

    parts: tuple[Node, ...]
    dim: int

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The parts."""
        return self.parts


@dataclass(frozen=True, eq=False)
class Add(Call):
    """``left + sign * right`` of two values; ``sign`` is 1 or -1."""

    left: Node
    right: Node
    sign: int

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Both terms."""
        return (self.left, self.right)


@dataclass(frozen=True, eq=False)
class Slice(Call):
    """``[start, stop)`` of dimension ``dim``, step 1; ``stop`` None for the end, both possibly negative.

    Attributes:
        dim: as written, possibly negative; None where no dimension is cut like that.
        others: dimensions cut in other ways: with a step, from or to where is only known when it runs, or too.
    """

    input: Node
    dim: int | None
    start: int
    stop: int | None
    others: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Select(Call):
    """Entries of dimension ``dim`` by their numbers: ``index_select``, ``x[:, index]``.

    Attributes:
        dim: as written, possibly negative.
        index: the numbers, or the node that computes them.
        wraps: whether negative numbers count from the end; else they are an error.
    """

    input: Node
    dim: int
    index: Node | tuple[int, ...]
    wraps: bool

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The value of which entries are taken."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class Rearrange(Call):
    """Values take other places along ``dims`` (as written, possibly negative): flip, roll."""

    input: Node
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ByNumber(Call):
    """``factor * x + offset`` with two numbers, ``factor`` not 0."""

    input: Node
    factor: float
    offset: float


@dataclass(frozen=True, eq=False)
class Split(Call):
    """A split along ``dim``, whose pieces are taken by ``getitem``; ``sizes`` int for ``split``, or a tuple."""

    input: Node
    dim: int
    sizes: Size | None
    chunks: int | None


@dataclass(frozen=True, eq=False)
class Item(Call):
    """``source[index]`` of a call that returns several values."""

    input: Node
    index: int


@dataclass(frozen=True, eq=False)
class MetadataRead(Call):
    """Reads the shape, the dtype or the device of a value, never its numbers."""

    input: Node
