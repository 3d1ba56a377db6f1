"""Affines by constants in a torch.fx graph: layer scales, and frozen BatchNorms written by hand.

What a sum, a product or a quotient with a constant is, stands in :mod:`bnfold.ops.by_constants`. Here stands what torch
adds to that: constants of a wider type than the value's, constants that are trained and used elsewhere, constants and
values that are written to.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from bnfold import ops
from bnfold.graph.captured import DTYPE
from bnfold.ops.refusal import Refusal

if TYPE_CHECKING:
    from bnfold.graph.facts import Facts

__all__ = ["affine_by_constants"]

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def affine_by_constants(facts: Facts, call: ops.OfTwo) -> ops.Operation | None:
    """Return the affine that a call is, or arithmetic with one number; None where it is neither.

    An affine that must stay says why (``BatchNorm.stays``).
    """
    held = [facts.is_constant(value) for value in call.inputs]
    if held not in ([True, False], [False, True]):
        return None
    site = _Site(facts, call, held.index(True))
    if site.constant in facts.written_by(call.node):
        return None
    tensor = facts.constant(site.constant)
    if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS or not bool(torch.isfinite(tensor).all()):
        return None
    rank, shape = facts.rank(site.value), tuple(tensor.shape)
    if rank is None:  # an example would tell which of its dimensions the channels are in
        return site.of_unknown_rank(tensor) if ops.channel_dim((1, *shape), tensor.ndim + 1) is not None else None
    numbers = partial(site.numbers, tensor)
    dtype = tensor.dtype
    found = ops.by_constants(
        call, site.place, shape, numbers, facts, name=site.name, rank=rank, fixed=False, dtype=dtype
    )
    if found is None:
        return None
    why = site.refusal(tensor)
    if not isinstance(found, ops.BatchNorm):
        return found if why is None else None
    return replace(found, rank=rank, stays=why)


class _Site:
    """A call of a value and a constant."""

    def __init__(self, facts: Facts, call: ops.OfTwo, place: int) -> None:
        self.facts = facts
        self.node: Node = call.node
        self.place = place
        self.value: Node = call.inputs[1 - place]
        self.constant: Node = call.inputs[place]

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

    def numbers(self, tensor: Tensor) -> Tensor | None:
        """The numbers of the constant; in float64 where they are computed."""
        if self.constant.op == "get_attr" or tensor.dtype == torch.float64:
            return tensor
        exact = self.facts.in_double
        try:
            return exact.constant(next(node for node in exact.index if node.name == self.constant.name))
        except Exception:  # code of the user's that takes the type of its tensors for granted
            return None

    def of_unknown_rank(self, tensor: Tensor) -> ops.BatchNorm:
        """Return an affine of which nothing is known but that it stays."""
        ones = torch.ones(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        made = [self.facts.made(self.node, part, ones) for part in ("mean", "variance")]
        why = Refusal("shapes-unknown", "the number of dimensions of its input is not known without example inputs")
        return ops.BatchNorm(
            self.node, self.value, made[0], made[1], None, None, 0.0, False, self.name, by_constants=True, stays=why
        )

    # --- why it stays ---------------------------------------------------------------------------------------------

    def refusal(self, tensor: Tensor) -> Refusal | None:
        """Why the call must stay as it is; None where it need not."""
        facts = self.facts
        dtype = self.value.meta.get(DTYPE)
        if dtype is None and tensor.ndim:
            return Refusal("shapes-unknown", "the type of its input is not known without example inputs")
        if tensor.ndim and (dtype not in _FLOATS or torch.promote_types(dtype, tensor.dtype) != dtype):
            text = "its constants are {one} and its input {other}, so the result is of another type"
            return Refusal("wider-constants", text, one=tensor.dtype, other=dtype)
        if facts.may_be_written(self.constant):
            return Refusal("mutated", "its constants are written to when the model runs")
        if facts.written_by(self.node) and self._is_seen_elsewhere():
            return Refusal("mutated", "it writes into a value that is read elsewhere")
        trained = next((name for name in self.held if self._is_trained_elsewhere(name)), None)
        if trained is not None:
            return Refusal("shared", "`{name}` needs a gradient and is used elsewhere too", name=trained)
        return None

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
