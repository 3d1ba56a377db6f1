"""Find the first BatchNorm whose site went wrong, in one run of each of two graphs.

A *site* is a BatchNorm call in the graph of the original. Both graphs run once, in float64, node by node. Where the
BatchNorm folded backward, or became an explicit affine, its own value stands in the candidate too: it is what the
reader of the BatchNorm reads now, at the same place among its arguments. Where the BatchNorm moved forward or
sideways, or where its reader is gone as well, the values compared are those of the first nodes after it that both
graphs have, by name. The first site, in the order in which they run, whose value differs is the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnfold.capture.nests import flatten

__all__ = ["Located", "distance", "locate", "locate_by_name", "site_errors", "twins"]

JUMP = 10.0  # how many times the largest error before it a site's error must be, where rounding blurs all of them


@dataclass(frozen=True)
class Located:
    """The first site that differs.

    Attributes:
        batchnorm: name of the BatchNorm.
        site: name of its node in the captured graph.
        error: largest absolute difference there, relative to the largest value.
    """

    batchnorm: str
    site: str
    error: float


def locate(
    original: fx.GraphModule, candidate: fx.GraphModule, decisions: Iterable[Any], inputs: Sequence[Any], *, exact: bool
) -> Located | None:
    """Return the first decision whose site differs, or None if none does or none can be compared.

    Args:
        original: the captured graph, with parameters and computation in float64; runs under the caller's modes.
        candidate: the folded graph, likewise. Its nodes bear the names that they have in the original.
        decisions: a plan's, in the order in which the sites run; read are ``batchnorm``, ``site`` and ``direction``.
        inputs: one set of positional inputs.
        exact: whether the candidate's weights are in float64 too, so that nothing but float64 rounding is between the
            two; otherwise the weights' rounding blurs every site, and the first that stands out is meant.
    """
    limit, before = (1e-10 if exact else 1e-6), 0.0
    for decision, error in site_errors(original, candidate, decisions, inputs):
        if error > max(limit, 0.0 if exact else JUMP * before):
            return Located(decision.batchnorm, decision.site, error)
        before = max(before, error)
    return None


def site_errors(
    original: fx.GraphModule, candidate: fx.GraphModule, decisions: Iterable[Any], inputs: Sequence[Any]
) -> list[tuple[Any, float]]:
    """Return ``(decision, error)`` for each site that can be compared; arguments as for :func:`locate`.

    They stand in the order in which the compared values are computed: where branches meet, one that is compared only
    after the meeting does not take the blame of one that is compared before it.
    """
    ours = {node.name: node for node in original.graph.nodes}
    order = {node: position for position, node in enumerate(original.graph.nodes)}
    theirs = {node.name: node for node in candidate.graph.nodes}
    pairs = [(d, twins(ours[d.site], d.direction, theirs)) for d in decisions if d.site in ours]
    pairs.sort(key=lambda pair: max((order[one] for one, _ in pair[1]), default=0))
    left = values_at(original, {one for _, twins in pairs for one, _ in twins}, inputs)
    right = values_at(candidate, {other for _, twins in pairs for _, other in twins}, inputs)
    return [
        (decision, max(distance(left.get(one), right.get(other)) for one, other in twins))
        for decision, twins in pairs
        if twins
    ]


def locate_by_name(
    original: nn.Module, candidate: nn.Module, inputs: Sequence[Any], *, names: Sequence[str]
) -> Located | None:
    """Return the first of the layers ``names`` after which the two models' values differ; None if none does.

    For two models of which no plan is known: a layer counts if the candidate has one of the same name, as where an
    ``nn.Identity`` stands in a BatchNorm's place.

    Args:
        original: a copy in float64; runs under the caller's modes.
        candidate: likewise.
        inputs: one set of positional inputs.
        names: of layers of the original.
    """
    both = dict(candidate.named_modules())
    shared = [name for name in names if name in both]
    left, right = _outputs_of(original, shared, inputs), _outputs_of(candidate, shared, inputs)
    before = 0.0
    for name, value in left.items():
        error = distance(value, right.get(name))
        if error > max(1e-6, JUMP * before):
            return Located(name, name, error)
        before = max(before, error)
    return None


def _outputs_of(module: nn.Module, names: Sequence[str], inputs: Sequence[Any]) -> dict[str, list[Tensor]]:
    """Return what the layers ``names`` put out when the module runs, in the order in which they first run."""
    found: dict[str, list[Tensor]] = {}
    layers = dict(module.named_modules())

    def keeper(name: str) -> Any:
        def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            found.setdefault(name, []).extend(leaf.value.detach().clone() for leaf in flatten(output) if leaf.is_tensor)

        return keep

    handles = [layers[name].register_forward_hook(keeper(name)) for name in names]
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def twins(site: fx.Node, direction: str | None, theirs: dict[str, fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """Return pairs of nodes, one of each graph, whose values are equal if the site's fold is right."""
    same = theirs.get(site.name)
    if same is not None and direction is None:
        return [(site, same)]
    if direction in (None, "backward"):
        for reader in site.users:
            found = theirs.get(reader.name)
            if found is None:
                continue
            mine, other = _arguments(reader), _arguments(found)
            if len(mine) == len(other) and reader.target == found.target:
                return [(site, other[mine.index(site)])]
    return _frontier(site, theirs)


def _frontier(site: fx.Node, theirs: dict[str, fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """Return the first nodes after the site that both graphs have."""
    found: list[tuple[fx.Node, fx.Node]] = []
    seen: set[fx.Node] = {site}
    waiting = list(site.users)
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        other = theirs.get(node.name)
        if other is not None and (node.op, node.op == "call_module" or node.target) == (
            other.op,
            other.op == "call_module" or other.target,
        ):
            found.append((node, other))
        else:
            waiting += node.users
    return found


def _arguments(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among a node's arguments, in order, each as often as it stands there."""
    found: list[fx.Node] = []

    def note(argument: fx.Node) -> fx.Node:
        found.append(argument)
        return argument

    fx.map_arg((node.args, node.kwargs), note)
    return found


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.kept: dict[fx.Node, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            # a later node may write in place
            self.kept[n] = [leaf.value.detach().clone() for leaf in flatten(value) if leaf.is_tensor]
        return value


def values_at(module: fx.GraphModule, wanted: set[fx.Node], inputs: Sequence[Any]) -> dict[fx.Node, list[Tensor]]:
    """Return copies of the tensors at some nodes of a graph, in one run on ``inputs``."""
    keeper = _Keeper(module, wanted)
    keeper.run(*inputs)
    return keeper.kept


def distance(left: list[Tensor] | None, right: list[Tensor] | None) -> float:
    """Return the largest difference relative to the largest value; infinity where the shapes differ, or NaN is new."""
    if left is None or right is None:
        return 0.0
    if [value.shape for value in left] != [value.shape for value in right]:
        return float("inf")
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        if one.numel() == 0 or not one.is_floating_point():
            continue
        both = torch.isfinite(one) & torch.isfinite(other)
        if not torch.equal(torch.isfinite(one), torch.isfinite(other)):
            return float("inf")
        peak = float(torch.where(both, one, 0).abs().max())
        difference = float(torch.where(both, one - other, 0).abs().max())
        worst = max(worst, difference / peak if peak > 0 else (float("inf") if difference > 0 else 0.0))
    return worst
