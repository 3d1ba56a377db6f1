"""The error at each BatchNorm's place, of the original and of the folded model, against the float64 original.

The graphs run node by node, as in :mod:`bnfold.verify.locate`. The oracle's values are kept; those of the two others
are compared as they come, so that one set of values is in memory and not three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from bnfold.capture.nests import flatten
from bnfold.fold.whole import unfolded_model
from bnfold.report.details import SiteError
from bnfold.verify.locate import distance, twins, values_at
from bnfold.verify.reference import everything_in_float64, exact_arithmetic, fresh, fresh_in_float64

if TYPE_CHECKING:
    from bnfold.fold.api import Folding

__all__ = ["site_errors_of"]


def site_errors_of(folding: Folding, inputs: Sequence[Any]) -> tuple[tuple[SiteError, ...], tuple[str, ...]]:
    """Return the error at each site that can be compared, and sentences about what cannot.

    Args:
        folding: what ``bnfold.fold`` returned.
        inputs: positional; not changed.
    """
    oracle, folded = folding.in_float64()[0], folding.module
    original = unfolded_model(folding.captured)
    if not all(isinstance(graph, fx.GraphModule) for graph in (oracle, original, folded)):
        return (), ("Errors at each site are measured only where the model was captured as a whole.",)
    assert isinstance(oracle, fx.GraphModule)
    assert isinstance(original, fx.GraphModule)
    assert isinstance(folded, fx.GraphModule)
    theirs = [{node.name: node for node in graph.graph.nodes} for graph in (original, folded)]
    nodes = {node.name: node for node in oracle.graph.nodes}
    pairs: list[tuple[int, list[_Twins]]] = [
        (number, [twins(nodes[decision.site], decision.direction, names) for names in theirs])
        for number, decision in enumerate(folding.plan)
        if decision.site in nodes
    ]
    try:
        with exact_arithmetic():
            wanted = {one for _, sides in pairs for side in sides for one, _ in side}
            with everything_in_float64():
                kept = values_at(oracle, wanted, fresh_in_float64(inputs))
            floors = _errors(original, [sides[0] for _, sides in pairs], kept, inputs)
            errors = _errors(folded, [sides[1] for _, sides in pairs], kept, inputs)
    except Exception as error:
        return (), (f"Errors at each site could not be measured: {type(error).__name__}.",)
    found = zip((number for number, _ in pairs), floors, errors, strict=True)
    return tuple(SiteError(*site) for site in found if math.isfinite(site[1]) and math.isfinite(site[2])), ()


_Twins = list[tuple[fx.Node, fx.Node]]


def _errors(
    graph: fx.GraphModule, sites: Sequence[_Twins], kept: dict[fx.Node, list[Tensor]], inputs: Sequence[Any]
) -> list[float]:
    """Return for each site how far a graph's values are from those kept; NaN where there are none to compare."""
    sources: dict[fx.Node, list[fx.Node]] = {}
    for side in sites:
        for one, other in side:
            sources.setdefault(other, []).append(one)
    judge = _Judge(graph, sources, kept)
    judge.run(*fresh(inputs))
    return [max((judge.errors[pair] for pair in side), default=math.nan) for side in sites]


class _Judge(fx.Interpreter):
    """Runs a graph and compares the values of some nodes with kept ones."""

    def __init__(
        self, module: fx.GraphModule, sources: dict[fx.Node, list[fx.Node]], kept: dict[fx.Node, list[Tensor]]
    ) -> None:
        super().__init__(module)
        self.sources = sources
        self.kept = kept
        self.errors: dict[tuple[fx.Node, fx.Node], float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for source in self.sources.get(n, ()):
            found = [leaf.value.detach() for leaf in flatten(value) if leaf.is_tensor]
            self.errors[source, n] = distance(self.kept.get(source), [_wide(tensor) for tensor in found])
        return value


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor
