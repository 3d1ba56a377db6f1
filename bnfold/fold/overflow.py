"""Ask, before anything is built, whether a planned fold would round a weight to infinity.

A rewrite finds that out by the way. A plan alone asks here: by a bound that reads each weight once, and in full only
where the bound is not enough.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnfold import ops
from bnfold.fold.merge.carrying_out import built
from bnfold.fold.plan import Absorption, Plan
from bnfold.fold.rounded import FoldedWeights, absorbed_weights
from bnfold.graph.captured import Capture
from bnfold.graph.facts import Facts

__all__ = ["require_finite"]


def require_finite(captured: Capture, plan: Plan) -> None:
    """Raise what the rewrite would raise, where a planned fold overflows.

    Raises:
        NotFiniteError: a rounded weight is not finite; ``error.node`` names the call.
    """
    for path, piece in captured.pieces.items():
        require_finite(piece, plan.pieces.get(path, Plan((), "")))
    if not plan.steps.absorbed and not plan.steps.merges:
        return
    facts = Facts.of(captured)
    nodes = {node.name: node for node in facts.index}
    merged = {name for step in plan.steps.merges for part in step.parts for name in part.branch.members}
    reader = FoldedWeights(facts, plan.steps.absorbed)
    for step in plan.steps.merges:
        for part in step.parts:
            built(part.branch, step, reader)
    for name, absorptions in plan.steps.absorbed.items():
        if name in merged:
            continue
        call = facts.call(nodes[name])
        assert isinstance(call, ops.Absorber)
        weight, bias = facts.constant(call.weight), facts.constant(call.bias)
        if weight is None or not _surely_finite(weight, bias, absorptions):
            site = facts.call(nodes[plan[absorptions[0].batchnorm].site])
            statistics = facts.constant(site.running_mean) if isinstance(site, ops.BatchNorm) else None
            if statistics is not None:
                absorbed_weights(call, weight, bias, absorptions, statistics, facts.name(call.node))


def _surely_finite(weight: Tensor, bias: Tensor | None, absorptions: list[Absorption]) -> bool:
    """Whether no weight and no bias can be infinite, by the largest of each."""
    if weight.is_meta or not weight.numel():
        return True
    window = max(1, weight.numel() // min(weight.shape[0], weight.shape[-1]))  # at most so many weights meet one shift
    bound = _largest(weight) * window + (0.0 if bias is None else _largest(bias)) + 1.0
    for absorption in absorptions:
        bound *= 1.0 + _largest(absorption.affine.scale) + _largest(absorption.affine.shift)
    return bound < torch.finfo(weight.dtype).max / 2


def _largest(tensor: Tensor) -> float:
    """Return a bound on all magnitudes of a tensor; NaN or infinite where one of them is, or where its square is.

    The sum of all squares is no tight bound, and takes half the time of finding the largest. It is no less than the
    largest square but for its rounding: to add what is not negative never makes a partial sum smaller.
    """
    values = tensor.detach()
    if not values.numel():
        return 0.0
    if values.dtype in (torch.float32, torch.float64) and not values.is_cuda and values.is_contiguous():
        flat = values.view(-1)
        return 1.001 * math.sqrt(float(torch.dot(flat, flat))) + 1e-18  # what is smaller may have a square of 0
    least, most = torch.aminmax(values)
    return max(-float(least), float(most))
