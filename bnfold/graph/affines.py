"""Affines by constants in a torch.fx graph: layer scales, and frozen BatchNorms written by hand.

What a sum, a product or a quotient with a constant is, stands in :mod:`bnfold.ops.by_constants`. Here stands what torch
adds to that: constants of a wider type than the value's, constants that are trained and used elsewhere, constants and
values that are written to.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from bnfold import ops
from bnfold.graph.captured import DTYPE
from bnfold.ops.refusal import Refusal

if TYPE_CHECKING:
    from bnfold.graph.facts import Facts

__all__ = ["affine_by_constants", "affine_of_unknown_rank"]

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

_STEPS = 256
"""How many units of rounding, of the largest, constants may be off that are never cast to a narrower type."""


def affine_by_constants(facts: Facts, call: ops.OfTwo) -> ops.Operation | None:
    """Return the affine that a call is, or arithmetic with one number; None where it is neither.

    An affine that must stay says why (``BatchNorm.stays``).
    """
    site = _site(facts, call)
    rank = None if site is None else facts.rank(site.value)
    if site is None or rank is None:
        return None
    tensor = site.tensor
    found = ops.by_constants(
        call,
        site.place,
        tuple(tensor.shape),
        site.numbers,
        facts,
        name=site.name,
        rank=rank,
        fixed=False,
        dtype=tensor.dtype,
    )
    if found is None:
        return None
    why = site.refusal
    if not isinstance(found, ops.BatchNorm):
        return found if why is None else None
    return replace(found, rank=rank, stays=why)


def affine_of_unknown_rank(facts: Facts, call: ops.OfTwo) -> ops.HiddenBatchNorm | None:
    """Return what may be an affine by constants; an example would tell in which of its dimensions the channels are."""
    site = _site(facts, call)
    if site is None or facts.rank(site.value) is not None:
        return None
    if ops.channel_dim((1, *site.tensor.shape), site.tensor.ndim + 1) is None:
        return None
    because = "the number of dimensions of its input is not known without example inputs"
    name = site.name if site.name == site.node.name else facts.capture.prefix + site.name
    return ops.HiddenBatchNorm(name, site.node.name, "shapes-unknown", because, facts.source(site.node), kind="affine")


def _site(facts: Facts, call: ops.OfTwo) -> _Site | None:
    """Return a call of a value and a constant of finite numbers; None for any other."""
    held = [facts.is_constant(value) for value in call.inputs]
    if held not in ([True, False], [False, True]):
        return None
    place = held.index(True)
    constant = call.inputs[place]
    tensor = None if constant in facts.written_by(call.node) else facts.constant(constant)
    if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS or not bool(torch.isfinite(tensor).all()):
        return None
    return _Site(facts, call, place, tensor)


class _Site:
    """A call of a value and a constant."""

    def __init__(self, facts: Facts, call: ops.OfTwo, place: int, tensor: Tensor) -> None:
        self.facts = facts
        self.node: Node = call.node
        self.place = place
        self.value: Node = call.inputs[1 - place]
        self.constant: Node = call.inputs[place]
        self.tensor = tensor

    @cached_property
    def made_of(self) -> dict[Node, None]:
        """The constant, and all that it is computed from."""
        found: dict[Node, None] = {}
        stack = [self.constant]
        while stack:
            node = stack.pop()
            if node not in found:
                found[node] = None
                stack.extend(node.all_input_nodes)
        return found

    @property
    def held(self) -> list[str]:
        """Names of the tensors of the model that the constant is computed from."""
        constants = self.facts.capture.constants
        return [str(node.target) for node in self.made_of if node.op == "get_attr" and node.target not in constants]

    @cached_property
    def name(self) -> str:
        """The name of the tensor that the constant is, or of the part of the model that holds all it is made of."""
        owners = {name.rpartition(".")[0] for name in self.held}
        if len(self.held) == 1:
            return self.held[0]
        return owners.pop() if len(owners) == 1 and owners != {""} else self.node.name

    def numbers(self) -> Tensor | None:
        """The numbers of the constant; in float64 where they are computed."""
        return self._numbers

    @cached_property
    def _numbers(self) -> Tensor | None:
        if self.constant.op == "get_attr" or self.tensor.dtype == torch.float64:
            return self.tensor
        exact = self.facts.in_double
        try:
            return exact.constant(next(node for node in exact.index if node.name == self.constant.name))
        except Exception:  # code of the user's that takes the type of its tensors for granted
            return None

    # --- why it stays ---------------------------------------------------------------------------------------------

    @property
    def refusal(self) -> Refusal | None:
        """Why the call must stay as it is; None where it need not."""
        facts, tensor = self.facts, self.tensor
        dtype = self.value.meta.get(DTYPE)
        if dtype is None and tensor.ndim:
            return Refusal("shapes-unknown", "the type of its input is not known without example inputs")
        if tensor.ndim and (dtype not in _FLOATS or torch.promote_types(dtype, tensor.dtype) != dtype):
            text = "its constants are {one} and its input {other}, so the result is of another type"
            return Refusal("wider-constants", text, one=tensor.dtype, other=dtype)
        if self._is_rounded(dtype or tensor.dtype):
            return Refusal(
                "rounded-constants", "its constants are rounded to a narrower type, and the fold would not be"
            )
        if facts.may_be_written(self.constant):
            return Refusal("mutated", "its constants are written to when the model runs")
        if facts.written_by(self.node) and self._is_seen_elsewhere():
            return Refusal("mutated", "it writes into a value that is read elsewhere")
        trained = next((name for name in self.held if self._is_trained_elsewhere(name)), None)
        if trained is not None:
            return Refusal("shared", "`{name}` needs a gradient and is used elsewhere too", name=trained)
        return None

    def _is_rounded(self, dtype: torch.dtype) -> bool:
        """Whether the constants are further from what they are in float64 than computing them in a type explains."""
        exact = self._numbers
        if exact is None or exact.numel() == 0:
            return False
        off, peak = (exact.double() - self.tensor.double()).abs().max(), exact.double().abs().max()
        return bool(off > _STEPS * torch.finfo(dtype).eps * peak)

    def _is_seen_elsewhere(self) -> bool:
        """Whether anybody sees what the call writes into its input, besides those who read its result."""
        facts, place = self.facts, self.facts.index[self.node]
        for other in facts.sharing_memory(self.value):
            if facts.is_input(other) or other.op == "get_attr":
                return True
            if facts.index[other] < place and any(facts.index[user] > place for user in other.users):
                return True
        return False

    def _is_trained_elsewhere(self, name: str) -> bool:
        tensor = self.facts.capture.tensor(name)
        inside = (*self.made_of, self.node)
        return tensor.requires_grad and any(user not in inside for user in self.facts.parameter_readers[id(tensor)])
