"""The conditions of the rules: each returns None where it holds, else a :class:`Refusal` that says what is in the way.

Each has a test that shows a property (where it holds, moving the affine changes nothing) and a counter-example (where
it does not, moving it anyway would be wrong).
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from bnfold.fold.demand import Demand, Refusal
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = [
    "channels_not_pooled",
    "channels_not_resized",
    "indices_unused",
    "name_of",
    "needs_shapes",
    "pads_with_a_fixed_point",
    "scale_nonnegative",
    "shift_zero",
    "window_weights_sum_to_one",
]

_WORDS: dict[type[calls.Call], str] = {
    calls.MaxPool: "max pooling",
    calls.AveragePool: "average pooling",
    calls.AdaptiveAveragePool: "average pooling",
    calls.Mean: "mean",
    calls.PositivelyHomogeneous: "activation",
    calls.Pad: "padding",
    calls.Concatenate: "concatenation",
    calls.Add: "sum",
    calls.ActiveDropout: "dropout",
    calls.Convolution: "convolution",
    calls.TransposedConvolution: "transposed convolution",
    calls.Linear: "linear layer",
    calls.Embedding: "embedding",
    calls.Interpolate: "interpolation",
    calls.Reshape: "reshape",
    calls.Permute: "permutation",
    calls.ByNumber: "arithmetic",
    calls.Rearrange: "rearrangement",
    calls.Select: "selection",
    calls.BatchNorm: "BatchNorm",
    calls.ExplicitAffine: "affine",
    calls.TaughtPassing: "layer",
    calls.TaughtAbsorber: "layer",
}


def name_of(node: Node) -> str:
    """Return the layer's qualified name, or the node's name for a bare function call."""
    return str(node.target) if node.op == "call_module" else node.name


def described(call: calls.Call) -> str:
    """Return the operation in words, with its name: "max pooling `pool2`"."""
    return f"{_WORDS.get(type(call), type(call).__name__.lower())} `{name_of(call.node)}`"


def counted(part: int, whole: int, noun: str) -> str:
    """Return "7 of 64 scales are", "1 of 64 scales is", "all 64 scales are"."""
    if part == whole:
        return f"all {whole} {noun}s are" if whole > 1 else f"the only {noun} is"
    return f"{part} of {whole} {noun}s {'is' if part == 1 else 'are'}"


def scale_nonnegative(call: Any, demand: Demand, facts: Facts) -> Refusal | None:  # noqa: ARG001
    """A maximum, and a relu, keep an order: they commute with growing functions only."""
    negative = int((demand.affine.scale < 0).sum())
    if not negative:
        return None
    text = counted(negative, demand.affine.channels, "scale")
    return Refusal("negative-scale", f"{text} negative and {described(call)} stands before it")


def shift_zero(call: Any, demand: Demand, facts: Facts) -> Refusal | None:  # noqa: ARG001
    """A relu of a shifted value is not the shifted relu."""
    shifted = int((demand.affine.shift != 0).sum())
    if not shifted:
        return None
    text = counted(shifted, demand.affine.channels, "shift")
    return Refusal("nonzero-shift", f"{text} not zero and {described(call)} stands before it")


def indices_unused(call: calls.MaxPool, demand: Demand, facts: Facts) -> Refusal | None:  # noqa: ARG001
    """Positions of maxima move where a scale of zero makes ties, so nobody may look at them."""
    if not call.returns_indices:
        return None
    if all(isinstance(item := facts.call(user), calls.Item) and item.index == 0 for user in call.node.users):
        return None
    return Refusal("indices-used", f"the indices that {described(call)} returns are used")


def window_weights_sum_to_one(call: calls.AveragePool, demand: Demand, facts: Facts) -> Refusal | None:
    """The shift passes unchanged only where a window's weights sum to 1, or to the same number everywhere."""
    if shift_zero(call, demand, facts) is None or averages_whole_windows(call):
        return None
    if call.divisor_override is not None and not call.pads and not call.ceil_mode:
        return None  # every window holds all its elements: the weights sum to window / divisor
    if call.divisor_override is not None:
        text = "divides by a fixed number also where a window is cut at the border"
        return Refusal("divisor-override", f"{described(call)} {text}, and the shift is not zero")
    text = "counts padded zeros in (count_include_pad=True)"
    return Refusal("padding-counted-in", f"{described(call)} {text}, and the shift is not zero")


def averages_whole_windows(call: calls.AveragePool) -> bool:
    """Whether each window divides by the number of real elements it holds."""
    return call.divisor_override is None and (not call.pads or not call.count_include_pad)


def channels_not_pooled(call: Any, demand: Demand, facts: Facts) -> Refusal | None:
    """A pool runs over the last dimensions, which must not be the channels."""
    rank = demand.rank if demand.rank is not None else facts.rank(call.node)
    if rank is None:
        return needs_shapes(call)
    if demand.dim < rank - call.spatial_dims:
        return None
    return Refusal("channel-dimension", f"{described(call)} runs over the channels")


def channels_not_resized(call: Any, demand: Demand, facts: Facts) -> Refusal | None:  # noqa: ARG001
    """An interpolation resizes all dimensions from the third on."""
    return None if demand.dim < 2 else Refusal("channel-dimension", f"{described(call)} resizes the channels")


def pads_with_a_fixed_point(call: calls.Pad, demand: Demand, facts: Facts) -> Refusal | None:  # noqa: ARG001
    """Reflected, replicated and circular padding repeat real values; a constant must be mapped to itself."""
    if call.mode != "constant" or (call.widths is not None and all(width <= 0 for width in call.widths)):
        return None
    mapped = demand.affine.scale * call.value + demand.affine.shift
    moved = int((mapped != call.value).sum())
    if not moved:
        return None
    text = counted(moved, demand.affine.channels, "channel")
    return Refusal("constant-padding", f"{described(call)} pads with {call.value:g} and {text} shifted away from it")


def needs_shapes(call: calls.Call) -> Refusal:
    """The refusal for what only an example input can tell."""
    text = f"the shapes at {described(call)} are not known without example inputs"
    return Refusal("shapes-unknown", text)
