"""Operations that join several values: sums and concatenations."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from bnfold.affine import ChannelAffine
from bnfold.ops.conditions import has_fixed_size, needs_shapes
from bnfold.ops.elementwise import arithmetic, identity, is_number
from bnfold.ops.form import ChannelForm
from bnfold.ops.inplace import IN_PLACE_ADD, IN_PLACE_SUBTRACT
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.operation import JoiningRule, Moved, Operation
from bnfold.ops.refusal import Refusal
from bnfold.ops.spelling import BINARY, Arguments, Signature, Spellings
from bnfold.ops.symbolic import Shape, Sight, broadcast, number, with_size

__all__ = ["SPELLINGS", "Add", "Concatenate"]


# --- concatenation -----------------------------------------------------------------------------------------------


def split_over_parts(call: Concatenate, form: ChannelForm, facts: GraphFacts) -> Moved:
    """Each part takes its channels; along another dimension, each part takes the whole affine."""
    rank = form.rank or facts.rank(call.node)
    dim = call.dim if call.dim >= 0 else (None if rank is None else call.dim + rank)
    if dim is None:
        return needs_shapes(call)
    if dim != form.dim:
        return tuple((part, form) for part in call.parts)
    sizes = _part_sizes(call, form.dim, facts)
    if isinstance(sizes, Refusal):
        return sizes
    fixed = _fixed_parts(call, form, facts)
    split = (replace(part, fixed=sure) for part, sure in zip(form.split(sizes), fixed, strict=True))
    return tuple(zip(call.parts, split, strict=True))


def joined_parts(call: Concatenate, held: Mapping[Value, ChannelForm], facts: GraphFacts) -> ChannelForm | Refusal:
    """Each part brings its own affine, or the identity; along another dimension all must bring the same."""
    held = {part: held[part] for part in call.parts if part in held}  # not what other values hold
    some = next(iter(held.values()))
    rank = some.rank or facts.rank(call.node)
    dim = call.dim if call.dim >= 0 else (None if rank is None else call.dim + rank)
    if dim is None:
        return needs_shapes(call)
    if any(part.dim != some.dim for part in held.values()):
        return Refusal("channel-dimension", "{op} joins affines along different dimensions", op=call)
    if dim != some.dim:
        same = len(set(call.parts)) == len(held) and all(part.agrees(some) for part in held.values())
        return some if same else Refusal("parts-disagree", "{op} joins parts that hold different affines", op=call)
    sizes = _part_sizes(call, dim, facts)
    if isinstance(sizes, Refusal):
        return sizes
    parts = [
        held[part].affine if part in held else ChannelAffine.identity(size)
        for part, size in zip(call.parts, sizes, strict=True)
    ]
    affine = ChannelAffine(torch.cat([part.scale for part in parts]), torch.cat([part.shift for part in parts]))
    unsure = any(part.unsure for part in held.values())
    loose = _fixed_parts(call, some, facts).count(False)  # one at most: what reads the sum tells how large it is
    if loose > 1:
        return Refusal("channel-dimension", "{op} joins parts whose sizes depend on the input's", op=call)
    return ChannelForm(affine, dim, rank, unsure=unsure, fixed=not loose and all(part.fixed for part in held.values()))


def _fixed_parts(call: Concatenate, form: ChannelForm, facts: GraphFacts) -> list[bool]:
    """For each part, whether its size is the same in every run: it tells itself, or all others and the sum do."""
    told = [has_fixed_size(part, form.dim, facts) for part in call.parts]
    return [sure or (form.fixed and sum(told) == len(told) - 1) for sure in told]


def _part_sizes(call: Concatenate, dim: int, facts: GraphFacts) -> list[int] | Refusal:
    """Return the number of channels of each part, from the shapes or else from the layers before."""
    sizes = [facts.channels(part, dim) for part in call.parts]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else needs_shapes(call)


@dataclass(frozen=True, eq=False)
class Concatenate(Operation):
    """A concatenation along ``dim``."""

    words = "concatenation"
    keeps_rank = False
    keeps_channels = False
    memory = "fresh"
    rule = JoiningRule(
        "each part takes, and brings, the affine of its channels", (), backward=split_over_parts, forward=joined_parts
    )

    parts: tuple[Value, ...]
    dim: int

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The parts."""
        return self.parts

    def own_channels(self, facts: GraphFacts) -> int | None:
        """Those of all parts together."""
        sizes = [facts.channels_by_layers(part) for part in self.parts] if self.dim == 1 else [None]
        return sum(size for size in sizes if size is not None) if None not in sizes else None

    def sizes(self, before: Shape, sight: Sight) -> Shape:  # noqa: ARG002
        """The parts' sizes are added along the one dimension, and agree along the others."""
        parts = [sight.known[part] for part in self.parts]
        fresh = sight.fresh
        dim = self.dim % len(fresh)
        joined = [part[dim].number for part in parts]
        total = fresh[dim] if None in joined else number(sum(size for size in joined if size is not None))
        others = [
            next((part[d] for part in parts if part[d].number is not None), parts[0][d]) for d in range(len(fresh))
        ]
        return with_size(tuple(others), dim, total)


def _concatenate(node: Value, a: Arguments) -> Operation | None:
    parts = a.get("tensors")
    if not isinstance(parts, (list, tuple)) or not all(map(a.is_value, parts)):
        return None
    return Concatenate(node, tuple(parts), a.static("dim"))


# --- sums --------------------------------------------------------------------------------------------------------


def scale_to_both(call: Add, form: ChannelForm, facts: GraphFacts) -> Moved:
    """``a (x ± y) + b = (a x + b) ± a y``; terms may be stretched, but not along the channels."""
    ranks = [facts.graph_rank(term) for term in call.inputs]
    rank = form.rank or ranks[0] or ranks[1]
    if rank is None:
        return needs_shapes(call)
    for term, known in zip(call.inputs, ranks, strict=True):
        channels = facts.channels(term, form.dim)
        if channels is None:
            return needs_shapes(call)
        seen = known or facts.rank(term)
        if channels != form.affine.channels or (seen is not None and seen != rank):
            return Refusal("broadcast", "{op} stretches one of its terms over the channels", op=call)
    form = replace(form, rank=rank)
    left, right = (replace(form, unsure=form.unsure or known is None) for known in ranks)
    if call.left is call.right:
        return Refusal("same-term-twice", "{op} adds a value to itself", op=call)
    scale_only = right.with_affine(form.affine.with_shift(torch.zeros_like(form.affine.shift)))
    return ((call.left, left), (call.right, scale_only))


def shifts_added(call: Add, held: Mapping[Value, ChannelForm], facts: GraphFacts) -> ChannelForm | Refusal:
    """``(a x + b) ± (a y + c) = a (x ± y) + (b ± c)``: both terms must hold the same scale."""
    left, right = held.get(call.left), held.get(call.right)
    if left is None or right is None:
        return Refusal("term-without-affine", "{op} adds a term that holds no affine", op=call)
    same = left.dim == right.dim and left.rank == right.rank and torch.equal(left.affine.scale, right.affine.scale)
    if not same or facts.channels(call.left, left.dim) != facts.channels(call.right, right.dim):
        return Refusal("terms-disagree", "{op} adds terms that hold different scales", op=call)
    return left.with_affine(left.affine.with_shift(left.affine.shift + call.sign * right.affine.shift))


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """``left + sign * right`` of two values; ``sign`` is 1 or -1."""

    words = "sum"
    keeps_rank = False
    keeps_channels = False
    memory = "in place"
    rule = JoiningRule("a (x ± y) + b = (a x + b) ± a y", (), backward=scale_to_both, forward=shifts_added)

    left: Value
    right: Value
    sign: int

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Both terms."""
        return (self.left, self.right)

    def sizes(self, before: Shape, sight: Sight) -> Shape | None:  # noqa: ARG002
        """Both are stretched to one another."""
        return broadcast([sight.known.get(term) for term in self.inputs], sight.fresh)


def _add(sign: int, node: Value, a: Arguments) -> Operation | None:
    left, right = a.get("input"), a.get("other")
    if a.is_value(left) and not a.is_value(right) and right == 0:
        return identity(node, left, adds_zero=type(right) is int)
    if a.is_value(right) and not a.is_value(left) and left == 0 and sign > 0:
        return identity(node, right, adds_zero=type(left) is int)
    alpha = a.static("alpha")
    if a.is_value(left) and a.is_value(right):
        return Add(node, left, right, sign) if alpha == 1 else None
    if a.is_value(left) and is_number(right) and is_number(alpha):
        return arithmetic(node, left, 1.0, float(sign * alpha * right))
    if a.is_value(right) and is_number(left) and is_number(alpha):
        return arithmetic(node, right, float(sign * alpha), float(left))
    return None


# --- spellings ---------------------------------------------------------------------------------------------------

aten = torch.ops.aten
SPELLINGS = Spellings()
_plus, _minus = partial(_add, 1), partial(_add, -1)
SPELLINGS.function(
    Signature("tensors, dim=0"),
    _concatenate,
    *(torch.cat, torch.concat, torch.concatenate),
    *(aten.cat.default, aten.concat.default, aten.concatenate.default),
)
SPELLINGS.function(BINARY, _plus, operator.add, IN_PLACE_ADD, torch.add, aten.add.Tensor, aten.add_.Tensor)
_differences = operator.sub, IN_PLACE_SUBTRACT, torch.sub, torch.subtract
SPELLINGS.function(BINARY, _minus, *_differences, aten.sub.Tensor, aten.sub_.Tensor)
SPELLINGS.method(BINARY, _plus, "add", "add_")
SPELLINGS.method(BINARY, _minus, "sub", "sub_")
