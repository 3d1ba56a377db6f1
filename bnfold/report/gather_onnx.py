"""Gather what a page, and ``explain NAME``, show about an ONNX model, as :mod:`bnfold.report.gather` does of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bnfold import ops
from bnfold.onnx_graph.facts import OnnxFacts
from bnfold.onnx_graph.values import OnnxValue
from bnfold.report.chain import Link
from bnfold.report.details import Affine, Details, Picture, Vertex, files_read
from bnfold.report.vertices import Drawn

if TYPE_CHECKING:
    from bnfold.fold.plan import Plan
    from bnfold.onnx_graph.api import OnnxFolding

__all__ = ["chain_of_onnx", "details_of_onnx", "layer_of_onnx"]

_REMARK = "Errors at each site are not measured in ONNX models."


def details_of_onnx(folding: OnnxFolding, *, seed: int, files: Iterable[Path] = (), folded: bool = True) -> Details:
    """Return what the page shows about a folding.

    Args:
        folding: what ``bnfold.fold_onnx`` returned.
        seed: of the inputs of a proof, for the record.
        files: that were read, for their hashes.
        folded: whether to draw the folded graphs too.
    """
    after = folding.facts_after() if folded else ()
    pictures: list[Picture] = []
    affines: list[Affine] = []
    for number, (title, graph, first, plan) in enumerate(_parts(folding)):
        drawn = _renamed(_DrawnOnnx(after[number]).vertices, plan) if number < len(after) else ()
        pictures.append(Picture(title, graph.vertices, drawn, tuple(graph.ways(plan, first))))
        affines += graph.affines(plan, first)
    return Details(seed, files_read(files), tuple(pictures), tuple(affines), (), (_REMARK,))


def chain_of_onnx(folding: OnnxFolding, number: int) -> tuple[Link, ...]:
    """Return the nodes on the way of one affine, in the order in which they run, and those beside its ends.

    Args:
        folding: what ``bnfold.fold_onnx`` returned.
        number: of the decision in its plan.
    """
    for _, graph, first, plan in _parts(folding):
        if first <= number < first + len(plan):
            for way in graph.ways(plan, first):
                if way.decision == number:
                    return tuple(graph.chain(way, plan[number - first]))
    return ()


def layer_of_onnx(folding: OnnxFolding, number: int) -> Any | None:
    """Return the numbers of one BatchNormalization, named as those of a layer of torch; None where they are computed.

    Args:
        folding: what ``bnfold.fold_onnx`` returned.
        number: of the decision in its plan.
    """
    for _, graph, first, plan in _parts(folding):
        for found, _, site in graph.sites(plan, first):
            call = graph.facts.call(site)
            sources = (call.running_mean, call.running_var, call.weight, call.bias)
            if found != number or not all(graph.is_known(source) for source in sources):
                continue
            mean, variance, weight, bias = (graph.facts.constant(source) for source in sources)
            assert site.maker is not None
            momentum = site.maker.attributes.get("momentum")  # the share of the old value, as that of torch is not
            return SimpleNamespace(
                running_mean=mean,
                running_var=variance,
                weight=weight,
                bias=bias,
                eps=call.eps,
                momentum=1 - (0.9 if momentum is None else momentum.as_float()),
            )
    return None


def _parts(folding: OnnxFolding) -> Iterator[tuple[str, _DrawnOnnx, int, Plan]]:
    """Yield each graph as it was: its name, its vertices, the index of its first decision, its plan."""
    first = 0
    for number, (facts, plan) in enumerate(zip(folding.facts_before(), folding.plan.pieces.values(), strict=True)):
        title = "" if number == 0 else str(facts.graph.name or f"graph {number} inside of a node")
        yield title, _DrawnOnnx(facts), first, plan
        first += len(plan)


class _DrawnOnnx(Drawn[OnnxValue]):
    """One graph of ONNX as vertices."""

    def __init__(self, facts: OnnxFacts) -> None:
        super().__init__(facts, facts.index)

    def read(self, value: OnnxValue) -> tuple[OnnxValue, ...]:
        """The values whose numbers a node reads, without its weights."""
        call = self.facts.call(value)
        found = value.inputs if call is None or not call.inputs else call.inputs
        aside = (each for each in found if each.kind != "constant")
        return tuple(each for each in aside if not isinstance(self.facts.call(each), ops.MetadataRead))

    def is_end(self, value: OnnxValue) -> bool:
        """Whether a value is an input, or what is returned."""
        return value.kind in ("input", "output")

    def label(self, value: OnnxValue) -> str:
        """Return the name of the node."""
        return value.inputs[0].name if value.kind == "output" else str(self.facts.name(value))

    def kind(self, value: OnnxValue) -> str:
        """Return its operator, and the sizes of its weights."""
        if value.kind in ("input", "output") or value.maker is None:
            return value.kind
        call = self.facts.call(value)
        shape = self.facts.shape_of(call.weight) if isinstance(call, ops.Absorber) else None
        if shape is None or len(shape) < 2:
            return str(value.maker.op_type)
        groups = getattr(call, "groups", 1)
        inside, outside = shape[1] * groups, shape[0]
        if isinstance(call, ops.TransposedConvolution):
            inside, outside = shape[0], shape[1] * groups
        parts = [f"{inside}→{outside}", *(["×".join(map(str, shape[2:]))] if len(shape) > 2 else [])]
        parts += [f"{groups} groups"] if groups > 1 else []
        return f"{value.maker.op_type} {', '.join(parts)}"


def _renamed(vertices: tuple[Vertex, ...], plan: Plan) -> tuple[Vertex, ...]:
    """Return a folded graph's vertices, where explicit affines are told from other nodes: they keep their names."""
    made = {decision.site for decision in plan if decision.action == "affine"}
    return tuple(replace(each, role="affine") if each.name in made else each for each in vertices)
