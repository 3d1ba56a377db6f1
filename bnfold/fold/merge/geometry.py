"""What a convolution looks at, without its numbers; and whether one fits inside another.

Output position o of a convolution reads input ``o * stride - low + k * dilation`` at tap k; ``low`` is the padding
before the first position. A small convolution is a large one with zeros at some taps if its taps are among those of
the large one, and if both give outputs of the same size whatever the input's: then its kernel stands at an *offset* in
the larger one, at every ``step``-th tap::

    low_large - low_small = offset * dilation
    high_large - high_small = (kernel_large - reach - offset) * dilation    reach = (kernel_small - 1) * step + 1

Both read the same padding at those taps, so the sum is exact at the borders, too (Ding et al. 2021, arXiv:2101.03697,
section 3.3, and arXiv:2103.13425 for sequences and pools).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from bnfold import ops
from bnfold.ops.operation import Dims
from bnfold.ops.refusal import Refusal

__all__ = ["Geometry", "Place", "composed", "geometry_of", "identity_geometry", "placed", "sizes"]


@dataclass(frozen=True)
class Geometry:
    """A convolution without its numbers.

    Attributes:
        kernel, stride, dilation: one value for each dimension of space.
        padding: pairs (before, after) for each.
        mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        groups, inputs, outputs: of the channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: str
    groups: int
    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for each position of the output."""
        return prod(self.kernel) * (self.inputs // self.groups) * self.outputs

    @property
    def is_point(self) -> bool:
        """Whether it reads one position, and no padding."""
        return all(size == 1 for size in self.kernel) and not self.pads

    @property
    def pads(self) -> bool:
        """Whether it reads padding."""
        return any(side != 0 for pair in self.padding for side in pair)

    @property
    def pads_with_zeros(self) -> bool:
        """Whether it reads zeros where there are no values."""
        return self.pads and self.mode == "zeros"

    @property
    def layer_padding(self) -> tuple[int, ...] | str | None:
        """The padding as a layer takes it; None where no layer can."""
        if all(low == high for low, high in self.padding):
            return tuple(low for low, _ in self.padding)
        reach = [dilation * (size - 1) for size, dilation in zip(self.kernel, self.dilation, strict=True)]
        same = all(pair == (r // 2, r - r // 2) for pair, r in zip(self.padding, reach, strict=True))
        return "same" if same and all(stride == 1 for stride in self.stride) else None


@dataclass(frozen=True)
class Place:
    """Where a small kernel stands in a larger one: tap k of it at ``offset + k * step``, in each dimension."""

    offset: tuple[int, ...]
    step: tuple[int, ...]


def geometry_of(call: ops.Convolution, weight: tuple[int, ...]) -> Geometry:
    """Return the geometry of a call with a weight of this shape, ``(C_out, C_in / groups, *kernel)``."""
    dims = call.spatial_dims
    kernel = weight[2:]
    dilation = sizes(call.dilation, dims)
    if isinstance(call.padding, str):
        reach = [d * (k - 1) if call.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple((r // 2, r - r // 2) for r in reach)
    else:
        padding = tuple((side, side) for side in sizes(call.padding, dims))
    return Geometry(
        kernel,
        sizes(call.stride, dims),
        dilation,
        padding,
        call.padding_mode,
        call.groups,
        weight[1] * call.groups,
        weight[0],
    )


def identity_geometry(dims: int, channels: int) -> Geometry:
    """Return the identity as a depthwise convolution."""
    ones = (1,) * dims
    return Geometry(ones, ones, ones, ((0, 0),) * dims, "zeros", channels, channels, channels)


def placed(large: Geometry, small: Geometry) -> tuple[Place, Geometry] | Refusal:
    """Return where ``small`` stands in ``large``, and their sum; or why it does not fit there."""
    if len(large.kernel) != len(small.kernel) or (large.inputs, large.outputs) != (small.inputs, small.outputs):
        return Refusal("channels-differ", "they have other channels in and out")
    if large.stride != small.stride:
        return _differs("stride-differs", "their strides are {one} and {other}", large.stride, small.stride)
    if small.pads and small.mode != large.mode:
        return Refusal("padding-mode-differs", "they pad with {one} and {other}", one=large.mode, other=small.mode)
    offsets, steps = [], []
    for dim, (size, inner) in enumerate(zip(large.kernel, small.kernel, strict=True)):
        unit = large.dilation[dim] if size > 1 else 1
        spread = small.dilation[dim] if inner > 1 else unit
        if spread % unit:
            text = "their dilations are {one} and {other}"
            return _differs("dilation-differs", text, large.dilation, small.dilation)
        step = spread // unit
        reach = (inner - 1) * step + 1
        before = large.padding[dim][0] - small.padding[dim][0]
        after = large.padding[dim][1] - small.padding[dim][1]
        if before % unit or not 0 <= before // unit <= size - reach:
            return _off_centre(large, small)
        if after != (size - reach - before // unit) * unit:
            return _off_centre(large, small)
        offsets.append(before // unit)
        steps.append(step)
    return Place(tuple(offsets), tuple(steps)), replace(large, groups=gcd(large.groups, small.groups))


def _off_centre(large: Geometry, small: Geometry) -> Refusal:
    text = "with kernels of {one} and {other} their paddings of {low} and {less} do not see the same positions"
    low, less = ([first for first, _ in geometry.padding] for geometry in (large, small))
    return _differs("padding-differs", text, large.kernel, small.kernel).having(low=_times(low), less=_times(less))


def _differs(reason: str, text: str, one: Sequence[int], other: Sequence[int]) -> Refusal:
    return Refusal(reason, text, one=_times(one), other=_times(other))


def composed(first: Geometry, second: Geometry) -> Geometry | Refusal:
    """Return the convolution that is ``second(first(x))``, where one of them reads single positions.

    Where ``first`` does, and ``second`` pads with zeros, the bias of ``first`` must be zero: the caller's to check.
    """
    if first.outputs != second.inputs or len(first.kernel) != len(second.kernel):
        return Refusal("channels-differ", "they have other channels between them")
    groups = gcd(first.groups, second.groups)
    if second.is_point:
        stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
        both = replace(first, stride=stride, groups=groups, outputs=second.outputs)
        if both.layer_padding is None:
            return Refusal("padding-differs", "no layer pads one side more with a stride")
        return both
    if first.is_point and all(stride == 1 for stride in first.stride):
        return replace(second, groups=groups, inputs=first.inputs)
    return Refusal("no-point", "neither is a convolution of single positions with stride 1")


def sizes(size: Dims, dims: int) -> tuple[int, ...]:
    """Return one value for each dimension."""
    if isinstance(size, int):
        return (size,) * dims
    return tuple(size) * dims if len(size) == 1 else tuple(size)


def _times(values: Sequence[int]) -> str:
    return "x".join(map(str, values))
