"""New weights for old: absorb affines in float64, round once, keep dtype, device, memory format and requires_grad."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bnfold import ops
from bnfold.affine import ChannelAffine
from bnfold.errors import NotFiniteError
from bnfold.fold.merge.found import factor_of
from bnfold.fold.plan import Absorption
from bnfold.on_demand import OnDemand, made
from bnfold.ops.interface import GraphFacts
from bnfold.ops.weighted import Weights

__all__ = ["FoldedWeights", "absorbed_weights"]

# Rows are scaled in pieces: as float64 they stay in the cache, and in memory that the process has already, where a
# whole layer in float64 would be fresh memory. This many elements for each thread.
_PIECE = 65536


def absorbed_weights(
    call: ops.Absorber,
    weight: Tensor | None,
    bias: Tensor | None,
    absorptions: Sequence[Absorption],
    statistics: Tensor,
    name: str,
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return the weight and bias of a call that has absorbed affines.

    Args:
        call: tells the layout of the weight.
        weight: as it is now; None where the op has none, which means 1.
        bias: as it is now; None means 0.
        absorptions: in order.
        name: of the call, for people.
        statistics: of the BatchNorm; their dtype and device serve where the op has neither weight nor bias.

    Returns:
        New parameters. The bias is None only for an embedding. A weight is made on demand if the old one is.

    Raises:
        NotFiniteError: a rounded value is not finite; ``error.node`` is the name of the call's node.
    """
    if isinstance(weight, OnDemand):
        return _absorbed_on_demand(call, weight, bias, absorptions, statistics, name)
    like = weight if weight is not None else bias if bias is not None else statistics.new_empty(0)
    affines = [_on(absorption.affine, like.device) for absorption in absorptions]
    if weight is not None and _scales_rows(call, absorptions):
        whole = _as_one(affines)
        new_weight, finite = _scaled_rows(weight.detach(), whole.scale)
        new_bias: Tensor | None = whole.shift if bias is None else whole.scale * bias.detach().double() + whole.shift
    else:
        if weight is None:
            weight = like.new_ones((call.output_channels(weight),))
        exact, new_bias = _exact_weights(call, weight, bias, absorptions)
        new_weight = _laid_out_like(exact.to(like.dtype), like)
        finite = _all_finite(new_weight)
    rounded_bias = None if new_bias is None else new_bias.to(like.dtype if bias is None else bias.dtype)
    if not finite:
        raise _not_finite(call, name, new_weight)
    if rounded_bias is not None and not _all_finite(rounded_bias):
        raise _not_finite(call, name, rounded_bias)
    parameter = nn.Parameter(new_weight, requires_grad=like.requires_grad)
    if rounded_bias is None:
        return parameter, None
    return parameter, nn.Parameter(rounded_bias, requires_grad=(like if bias is None else bias).requires_grad)


def _scales_rows(call: ops.Absorber, absorptions: Sequence[Absorption]) -> bool:
    """Whether each row of the weight is multiplied by one number, and nothing more."""
    return call.scales_rows and all(absorption.side == "after" for absorption in absorptions)


def _as_one(affines: Sequence[ChannelAffine]) -> ChannelAffine:
    """Return the affine that is these, one after the other."""
    whole = affines[0]
    for affine in affines[1:]:
        whole = affine.after(whole)
    return whole


def _absorbed_on_demand(
    call: ops.Absorber,
    weight: OnDemand,
    bias: Tensor | None,
    absorptions: Sequence[Absorption],
    statistics: Tensor,
    name: str,
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return what :func:`absorbed_weights` does, the weight to be made when a call needs it."""

    def whole() -> tuple[nn.Parameter, nn.Parameter | None]:
        return absorbed_weights(call, made(weight), bias, absorptions, statistics, name)

    first, new_bias = whole()
    source = weight.source
    if source is not None and _scales_rows(call, absorptions):  # one pass over the memory, which casts on its way
        scale = _as_one([_on(absorption.affine, weight.device) for absorption in absorptions]).scale
        column = scale.reshape(-1, *[1] * (weight.ndim - 1))
        later = OnDemand(first, first.dtype, lambda: torch.mul(source, column))
    else:
        later = OnDemand(first, first.dtype, lambda: whole()[0].detach())  # noqa: PLW0108 - anew for each call
    return cast(nn.Parameter, later.requires_grad_(weight.requires_grad)), new_bias


def _exact_weights(
    call: ops.Absorber, weight: Tensor, bias: Tensor | None, absorptions: Sequence[Absorption]
) -> Weights:
    """Return weight and bias with all that they absorb, in float64 and not rounded."""
    exact, new_bias = weight.detach().double(), None if bias is None else bias.detach().double()
    for absorption in absorptions:
        exact, new_bias = _absorb(call, (exact, new_bias), _on(absorption.affine, weight.device), absorption.side)
    return exact, new_bias


class FoldedWeights:
    """The weights of a graph's calls in float64, after what they absorb, before any rounding.

    Args:
        facts: the graph before the folds.
        absorbed: the affines that each call takes, by name of its node.
    """

    def __init__(self, facts: GraphFacts, absorbed: Mapping[str, Sequence[Absorption]]) -> None:
        self.facts = facts
        self.absorbed = absorbed
        self.nodes = {node.name: node for node in facts.index}

    def weights(self, node: str) -> Weights:
        """Return weight and bias of a call; the bias may be None, which means 0."""
        call = self.facts.call(self.nodes[node])
        assert isinstance(call, ops.Absorber)
        return _exact_weights(call, *self.own(node), self.absorbed.get(node, ()))

    def own(self, node: str) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of a call as the model has them."""
        call = self.facts.call(self.nodes[node])
        assert isinstance(call, ops.Absorber)
        weight = self.facts.constant(call.weight)
        assert weight is not None
        return weight, self.facts.constant(call.bias)

    def factor(self, node: str) -> Tensor:
        """Return the constants that a node multiplies by."""
        factor = factor_of(self.facts, self.nodes[node])
        assert factor is not None
        value = self.facts.constant(factor.by)
        assert value is not None
        return value


def _absorb(call: ops.Absorber, weights: Weights, affine: ChannelAffine, side: str) -> Weights:
    absorb = {"after": call.absorb_after, "before": call.absorb_before, "beside": call.absorb_beside}[side]
    return absorb(weights, affine)


def _scaled_rows(weight: Tensor, scale: Tensor) -> tuple[Tensor, bool]:
    """Return ``weight[c] * scale[c]``, each product formed in float64 and rounded once to weight's dtype.

    Also returns whether all of them are finite, which is cheapest to see while they are in the cache.
    """
    new = torch.empty_like(weight)  # keeps the memory format
    count = weight.shape[0]
    size = weight.numel() // max(1, count)  # of a row
    source, target = _as_rows(weight, size), _as_rows(new, size)
    rows = max(1, _PIECE * torch.get_num_threads() // max(1, size))
    if source is None or target is None:
        factors = scale.reshape(-1, *[1] * (weight.ndim - 1))
        for start in range(0, count, rows):
            end = min(start + rows, count)
            new[start:end].copy_(weight[start:end].double() * factors[start:end])
        return new, _all_finite(new)
    column = scale.reshape(-1, 1)
    product = torch.empty((min(rows, count), size), dtype=torch.float64, device=weight.device)
    finite = True
    for start in range(0, count, rows):
        if rows < count:
            end = min(start + rows, count)
            piece, factor, rounded = source[start:end], column[start:end], target[start:end]
            wide = product if end - start == rows else product[: end - start]
        else:
            piece, factor, rounded, wide = source, column, target, product
        wide.copy_(piece)
        wide.mul_(factor)
        rounded.copy_(wide)
        finite = _all_finite(rounded) and finite
    return new, finite


def _as_rows(weight: Tensor, size: int) -> Tensor | None:
    """Return the memory of a weight as a matrix with one row for each output channel, if its rows lie one by one."""
    if weight.is_contiguous():
        return weight.view(-1, size) if size else None
    if weight.stride(0) != size or not weight.is_contiguous(memory_format=_CHANNELS_LAST.get(weight.ndim, _DENSE)):
        return None
    return weight.as_strided((weight.shape[0], size), (size, 1))


_DENSE = torch.contiguous_format
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: a sum of finite numbers that is finite says so in one pass."""
    total = float(tensor.sum(dtype=torch.float32 if tensor.itemsize <= 4 else None))
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def _not_finite(call: ops.Absorber, name: str, tensor: Tensor) -> NotFiniteError:
    error = NotFiniteError(
        f"A weight of `{name}` is not finite in {tensor.dtype} after folding.",
        fix="Keep the BatchNorm that folds into it, or convert the model to a wider dtype first.",
    )
    error.node = call.node.name  # type: ignore[attr-defined]
    return error


def _on(affine: ChannelAffine, device: torch.device) -> ChannelAffine:
    if affine.scale.device == device:
        return affine
    return ChannelAffine(affine.scale.to(device), affine.shift.to(device))


def _laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor in the memory format of another of the same shape."""
    if tensor.shape != like.shape or tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)
