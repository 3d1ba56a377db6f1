"""The rule tables: which op an affine may pass, how it is rewritten, and what must hold.

Each row is one op, one move (:mod:`bnfold.fold.moves`), its conditions (:mod:`bnfold.fold.conditions`) and one line of
mathematics. An affine is ``a x + b`` per channel. No row, no passage: an op that is not here stops the affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bnfold.fold import carries, moves
from bnfold.fold.claims import passes_as_taught
from bnfold.fold.conditions import (
    channels_not_pooled,
    channels_not_resized,
    indices_unused,
    pads_with_a_fixed_point,
    scale_nonnegative,
    shift_zero,
    window_weights_sum_to_one,
)
from bnfold.fold.demand import Demand, Refusal
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = ["PULL_RULES", "PUSH_RULES", "PullRule", "PushRule", "pull_rule", "push_rule"]

Condition: TypeAlias = Callable[[Any, Demand, Facts], "Refusal | None"]
Move: TypeAlias = Callable[[Any, Demand, Facts], moves.Moved]
Carry: TypeAlias = Callable[[Any, carries.Held, Facts], carries.Carried]


@dataclass(frozen=True)
class PullRule:
    """How an affine after ``op`` is rewritten as affines before it.

    Attributes:
        op: the kind of call.
        move: from the demand on the output to the demands on the inputs.
        conditions: all must hold.
        mathematics: why it is right, in one line.
    """

    op: type[calls.Call]
    move: Move
    conditions: tuple[Condition, ...]
    mathematics: str


PULL_RULES = (
    PullRule(
        calls.MaxPool,
        moves.unchanged,
        (channels_not_pooled, scale_nonnegative, indices_unused),
        "max(a x + b) = a max(x) + b for a >= 0; padding is -inf and never wins",
    ),
    PullRule(
        calls.AveragePool,
        moves.through_average,
        (channels_not_pooled, window_weights_sum_to_one),
        "mean(a x + b) = a mean(x) + w b, w the sum of the window's weights",
    ),
    PullRule(
        calls.AdaptiveAveragePool,
        moves.unchanged,
        (channels_not_pooled,),
        "mean(a x + b) = a mean(x) + b",
    ),
    PullRule(calls.Mean, moves.through_mean, (), "mean(a x + b) = a mean(x) + b"),
    PullRule(calls.Interpolate, moves.unchanged, (channels_not_resized,), "sum w (a x + b) = a sum w x + b, sum w = 1"),
    PullRule(calls.Passing, moves.unchanged, (), "the identity"),
    PullRule(
        calls.PositivelyHomogeneous,
        moves.unchanged,
        (scale_nonnegative, shift_zero),
        "f(a x) = a f(x) for a >= 0",
    ),
    PullRule(calls.TaughtPassing, moves.unchanged, (passes_as_taught,), "as the user said, checked in float64"),
    PullRule(calls.Pad, moves.through_pad, (pads_with_a_fixed_point,), "padding copies values, or adds c = a c + b"),
    PullRule(calls.PixelShuffle, moves.before_pixel_shuffle, (), "output channel c reads r*r adjacent inputs"),
    PullRule(calls.PixelUnshuffle, moves.before_pixel_unshuffle, (), "r*r adjacent outputs read input channel c"),
    PullRule(calls.ChannelShuffle, moves.before_channel_shuffle, (), "a permutation of the channels"),
    PullRule(calls.Reshape, moves.reshaped, (), "the same numbers in row-major order"),
    PullRule(calls.Permute, moves.permuted, (), "the same numbers, dimensions renumbered"),
    PullRule(calls.Concatenate, moves.split_over_parts, (), "each part takes the affine of its channels"),
    PullRule(calls.Add, moves.scale_to_both, (), "a (x ± y) + b = (a x + b) ± a y"),
    PullRule(calls.Slice, moves.slice_of, (), "only the channels read take the affine"),
    PullRule(calls.Select, moves.selected, (), "only the channels taken, in the order of their numbers"),
    PullRule(calls.Rearrange, moves.rearranged, (), "the same numbers in other places of the same channel"),
    PullRule(calls.ByNumber, moves.before_number, (), "a (f x + o) + b = f (a x + (a o + b - o) / f) + o"),
    PullRule(calls.Item, moves.item_of_pool, (), "only the channels read take the affine"),
)


@dataclass(frozen=True)
class PushRule:
    """How affines before ``op`` are rewritten as one after it.

    Attributes:
        op: the kind of call.
        carry: from the affines that the inputs hold to the one that the output holds.
        conditions: all must hold for the affine of each input that holds one.
        mathematics: why it is right, in one line.
    """

    op: type[calls.Call]
    carry: Carry
    conditions: tuple[Condition, ...]
    mathematics: str


PUSH_RULES = (
    PushRule(
        calls.MaxPool,
        carries.unchanged,
        (channels_not_pooled, scale_nonnegative, indices_unused),
        "max(a x + b) = a max(x) + b",
    ),
    PushRule(
        calls.AveragePool,
        carries.past_average,
        (channels_not_pooled, window_weights_sum_to_one),
        "mean(a x + b) = a mean(x) + w b, w the sum of the window's weights",
    ),
    PushRule(calls.AdaptiveAveragePool, carries.unchanged, (channels_not_pooled,), "mean(a x + b) = a mean(x) + b"),
    PushRule(calls.Mean, carries.past_mean, (), "mean(a x + b) = a mean(x) + b"),
    PushRule(
        calls.Interpolate,
        carries.unchanged,
        (channels_not_resized,),
        "sum w (a x + b) = a sum w x + b, sum w = 1",
    ),
    PushRule(calls.Passing, carries.unchanged, (), "the identity"),
    PushRule(
        calls.PositivelyHomogeneous, carries.unchanged, (scale_nonnegative, shift_zero), "f(a x) = a f(x), a >= 0"
    ),
    PushRule(calls.TaughtPassing, carries.unchanged, (passes_as_taught,), "as the user said, checked in float64"),
    PushRule(calls.Pad, carries.past_pad, (pads_with_a_fixed_point,), "padding copies values, or adds c = a c + b"),
    PushRule(calls.PixelShuffle, carries.past_pixel_shuffle, (), "r*r adjacent inputs become output channel c"),
    PushRule(calls.PixelUnshuffle, carries.past_pixel_unshuffle, (), "input channel c becomes r*r adjacent outputs"),
    PushRule(calls.ChannelShuffle, carries.past_channel_shuffle, (), "a permutation of the channels"),
    PushRule(calls.Reshape, carries.past_reshape, (), "the same numbers in row-major order"),
    PushRule(calls.Permute, carries.past_permute, (), "the same numbers, dimensions renumbered"),
    PushRule(calls.Concatenate, carries.past_concatenate, (), "each part brings the affine of its channels"),
    PushRule(calls.Add, carries.past_sum, (), "(a x + b) ± (a y + c) = a (x ± y) + (b ± c)"),
    PushRule(calls.Slice, carries.past_slice, (), "the channels taken bring their affine"),
    PushRule(calls.Select, carries.past_select, (), "the channels taken bring their affine, in the order taken"),
    PushRule(calls.Rearrange, carries.past_rearrange, (), "the same numbers in other places of the same channel"),
    PushRule(calls.ByNumber, carries.past_number, (), "f (a x + b) + o = a (f x + o) + (f b + o - a o)"),
    PushRule(calls.Item, carries.past_item, (), "the channels taken bring their affine"),
)

_PULL = {rule.op: rule for rule in PULL_RULES}
_PUSH = {rule.op: rule for rule in PUSH_RULES}


def pull_rule(call: calls.Call) -> PullRule | None:
    """Return the row for a call, or None where no affine passes it."""
    return _PULL.get(type(call))


def push_rule(call: calls.Call) -> PushRule | None:
    """Return the row for a call, or None where no affine passes it forward."""
    return _PUSH.get(type(call))
