"""The rule tables: which op an affine may pass, how it is rewritten, and what must hold.

Each row is one op, one move (:mod:`bnfold.fold.moves`), its conditions (:mod:`bnfold.fold.conditions`) and one line of
mathematics. An affine is ``a x + b`` per channel. No row, no passage: an op that is not here stops the affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bnfold.fold import moves
from bnfold.fold.conditions import (
    indices_unused,
    pads_with_a_fixed_point,
    scale_nonnegative,
    shift_zero,
    window_weights_sum_to_one,
)
from bnfold.fold.demand import Demand, Refusal
from bnfold.graph import calls
from bnfold.graph.facts import Facts

__all__ = ["PULL_RULES", "PullRule", "pull_rule"]

Condition: TypeAlias = Callable[[Any, Demand, Facts], "Refusal | None"]
Move: TypeAlias = Callable[[Any, Demand, Facts], moves.Moved]


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
        (scale_nonnegative, indices_unused),
        "max(a x + b) = a max(x) + b for a >= 0; padding is -inf and never wins",
    ),
    PullRule(
        calls.AveragePool,
        moves.through_average,
        (window_weights_sum_to_one,),
        "mean(a x + b) = a mean(x) + w b, w the sum of the window's weights",
    ),
    PullRule(calls.AdaptiveAveragePool, moves.unchanged, (), "mean(a x + b) = a mean(x) + b; windows lie inside"),
    PullRule(calls.Mean, moves.through_mean, (), "mean(a x + b) = a mean(x) + b"),
    PullRule(calls.Interpolate, moves.unchanged, (), "weights sum to 1: sum w (a x + b) = a sum w x + b"),
    PullRule(calls.Passing, moves.unchanged, (), "the identity"),
    PullRule(
        calls.PositivelyHomogeneous,
        moves.unchanged,
        (scale_nonnegative, shift_zero),
        "f(a x) = a f(x) for a >= 0",
    ),
    PullRule(calls.Pad, moves.unchanged, (pads_with_a_fixed_point,), "padding copies values, or adds c = a c + b"),
    PullRule(calls.PixelShuffle, moves.before_pixel_shuffle, (), "output channel c reads r*r adjacent inputs"),
    PullRule(calls.PixelUnshuffle, moves.before_pixel_unshuffle, (), "r*r adjacent outputs read input channel c"),
    PullRule(calls.ChannelShuffle, moves.before_channel_shuffle, (), "a permutation of the channels"),
    PullRule(calls.Reshape, moves.reshaped, (), "the same numbers in row-major order"),
    PullRule(calls.Permute, moves.permuted, (), "the same numbers, dimensions renumbered"),
    PullRule(calls.Concatenate, moves.split_over_parts, (), "each part takes the affine of its channels"),
    PullRule(calls.Add, moves.scale_to_both, (), "a (x ± y) + b = (a x + b) ± a y"),
    PullRule(calls.Slice, moves.slice_of, (), "only the channels read take the affine"),
    PullRule(calls.Item, moves.item_of_pool, (), "only the channels read take the affine"),
)

_BY_OP = {rule.op: rule for rule in PULL_RULES}


def pull_rule(call: calls.Call) -> PullRule | None:
    """Return the row for a call, or None where no affine passes it."""
    return _BY_OP.get(type(call))
