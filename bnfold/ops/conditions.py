"""The conditions that several rules share: each returns None where it holds, else why not.

Each has a test that shows a property (where it holds, moving the affine changes nothing) and a counter-example (where
it does not, moving it anyway would be wrong).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import Operation
from bnfold.ops.refusal import Count, Refusal

__all__ = ["apart_from_channels", "has_fixed_size", "is_channel", "needs_shapes", "scale_nonnegative", "shift_zero"]


def scale_nonnegative(call: Operation, form: ChannelForm, facts: GraphFacts) -> Refusal | None:  # noqa: ARG001
    """A maximum, and a relu, keep an order: they commute with growing functions only."""
    negative = int((form.affine.scale < 0).sum())
    if not negative:
        return None
    count = Count(negative, form.affine.channels, "scale")
    return Refusal("negative-scale", "{count} negative and {op} stands {side} it", count=count, op=call)


def shift_zero(call: Operation, form: ChannelForm, facts: GraphFacts) -> Refusal | None:  # noqa: ARG001
    """A relu of a shifted value is not the shifted relu."""
    shifted = int((form.affine.shift != 0).sum())
    if not shifted:
        return None
    count = Count(shifted, form.affine.channels, "shift")
    return Refusal("nonzero-shift", "{count} not zero and {op} stands {side} it", count=count, op=call)


def needs_shapes(call: Operation) -> Refusal:
    """The refusal for what only an example input can tell."""
    return Refusal("shapes-unknown", "the shapes at {op} are not known without example inputs", op=call)


def is_channel(dim: int, call: Operation, form: ChannelForm, facts: GraphFacts) -> bool | Refusal:
    """Whether a dimension, counted from the end if negative, is that of the form's channels."""
    if dim >= 0:
        return dim == form.dim
    rank = form.rank or facts.rank(call.node)
    return needs_shapes(call) if rank is None else dim + rank == form.dim


def apart_from_channels(
    dims: Iterable[int], call: Any, form: ChannelForm, facts: GraphFacts, pattern: str
) -> Refusal | None:
    """Why a call may not do along these dimensions what it does: one is that of the channels, or may be."""
    for dim in dims:
        along = is_channel(dim, call, form, facts)
        if along is not False:
            return along if isinstance(along, Refusal) else Refusal("channel-dimension", pattern, op=call)
    return None


def has_fixed_size(value: Value, dim: int, facts: GraphFacts) -> bool:
    """Whether the graph tells the size of a dimension, whatever the size of the model's input."""
    if dim == 1 and facts.channels_by_layers(value) is not None:  # known without a run
        return True
    sizes = facts.sizes(value)
    return sizes is not None and sizes[dim].number is not None
