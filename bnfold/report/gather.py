"""Gather what the HTML page shows: the graph before and after, the ways of the affines, their numbers, site errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import GraphModule, Node

from bnfold import ops
from bnfold.fold.decision import Decision
from bnfold.graph.captured import Capture
from bnfold.graph.facts import Facts
from bnfold.report.chain import Link
from bnfold.report.details import Affine, Details, Picture, Vertex, files_read
from bnfold.report.sites import site_errors_of
from bnfold.report.vertices import Drawn

if TYPE_CHECKING:
    from bnfold.fold.api import Folding
    from bnfold.fold.plan import Plan

__all__ = ["chain_of", "details_of"]


def details_of(
    folding: Folding, inputs: Any, *, seed: int, files: Iterable[Path] = (), folded: bool = True, sites: bool = True
) -> Details:
    """Return what the page shows about a folding.

    Args:
        folding: what ``bnfold.fold`` returned.
        inputs: positional inputs to measure errors on, or None.
        seed: of those inputs, for the record.
        files: that were read, for their hashes.
        folded: whether to draw the folded graph too.
        sites: whether to measure the error at each BatchNorm; takes three runs of the model.
    """
    pictures: list[Picture] = []
    affines: list[Affine] = []
    for path, captured, first, plan in _parts(folding):
        graph = _Drawn(captured)
        after: tuple[Vertex, ...] = ()
        if folded:
            part = folding.module.get_submodule(path) if path else folding.module
            if isinstance(part, GraphModule):
                after = graph.twins_named(_Drawn(Capture(part.graph, part, {}, captured.way)).vertices, plan)
        pictures.append(Picture(path, graph.vertices, after, tuple(graph.ways(plan, first))))
        affines += graph.affines(plan, first)
    errors, remarks = site_errors_of(folding, inputs) if sites and inputs is not None else ((), ())
    return Details(seed, files_read(files), tuple(pictures), tuple(affines), errors, remarks)


def chain_of(folding: Folding, number: int) -> tuple[Link, ...]:
    """Return the calls on the way of one BatchNorm's affine, in the order in which they run, and those beside its ends.

    Args:
        folding: what ``bnfold.fold`` returned.
        number: of the decision in its plan.
    """
    for _, captured, first, plan in _parts(folding):
        if first <= number < first + len(plan):
            graph = _Drawn(captured)
            for way in graph.ways(plan, first):
                if way.decision == number:
                    return tuple(graph.chain(way, plan[number - first]))
    return ()


def _parts(folding: Folding) -> Iterator[tuple[str, Capture, int, Plan]]:
    """Yield each graph: the piece's name, its capture, the index of its first decision, its plan.

    The decisions of a whole are those of its pieces, in order, and then those outside of all pieces.
    """
    if folding.captured.way != "piecewise":
        yield "", folding.captured, 0, folding.plan
        return
    first = 0
    for path, piece in folding.captured.pieces.items():
        yield path, piece, first, folding.plan.pieces[path]
        first += len(folding.plan.pieces[path])


class _Drawn(Drawn[Node]):
    """One graph of torch as vertices."""

    def __init__(self, captured: Capture) -> None:
        self.captured = captured
        super().__init__(Facts(captured), captured.graph.nodes)

    def twins_named(self, after: tuple[Vertex, ...], decisions: Sequence[Decision]) -> tuple[Vertex, ...]:
        """Return the folded graph with its explicit affines named after the BatchNorms that they were."""
        known = {vertex.name for vertex in self.vertices}
        made = [index for index, vertex in enumerate(after) if vertex.role == "affine" and vertex.name not in known]
        sites = {decision.site for decision in decisions if decision.action == "affine"}
        ours = [vertex.name for vertex in self.vertices if vertex.name in sites]
        if len(made) != len(ours):  # some have kept their names, or the model had explicit affines before
            return after
        named = list(after)
        for index, name in zip(made, ours, strict=True):
            named[index] = replace(after[index], name=name)
        return tuple(named)

    def read(self, value: Node) -> tuple[Node, ...]:
        """The values whose numbers a call reads, without its parameters."""
        call = self.facts.call(value)
        found = value.all_input_nodes if call is None or not call.inputs else call.inputs
        return tuple(dict.fromkeys(each for each in found if not self._is_aside(each)))

    def _is_aside(self, value: Node) -> bool:
        return value.op == "get_attr" or isinstance(self.facts.call(value), ops.MetadataRead)

    def is_end(self, value: Node) -> bool:
        """Whether a value is an input, or what is returned."""
        return value.op in ("placeholder", "output")

    def label(self, value: Node) -> str:
        """Return the name of a call as the piece names it: the picture's title tells which piece it is."""
        call = self.facts.call(value)
        if isinstance(call, ops.BatchNorm) and call.name:
            return call.name
        return str(value.target) if value.op in ("call_module", "placeholder") else value.name

    def kind(self, value: Node) -> str:
        """Return what a call computes, in a few words."""
        if value.op == "call_module":
            return layer_in_words(self.captured.module(str(value.target)))
        if value.op == "placeholder":
            return "input"
        if value.op in ("output", "call_method"):
            return str(value.target)
        return str(getattr(value.target, "__name__", value.target))


def layer_in_words(layer: nn.Module) -> str:
    """Return a layer's class and the sizes that tell it apart.

    >>> layer_in_words(nn.Conv2d(1, 32, 3, stride=2))
    'Conv2d 1→32, 3×3, stride 2'
    >>> layer_in_words(nn.BatchNorm2d(32))
    'BatchNorm2d 32'
    """
    parts = []
    ends = [getattr(layer, name, None) for name in ("in_channels", "out_channels")]
    if None in ends:
        ends = [getattr(layer, name, None) for name in ("in_features", "out_features")]
    if None not in ends:
        parts.append(f"{ends[0]}→{ends[1]}")
    elif isinstance(features := getattr(layer, "num_features", None), int):
        parts.append(str(features))
    kernel = getattr(layer, "kernel_size", None)
    if kernel is not None:
        parts.append(_times(kernel))
    stride = getattr(layer, "stride", None)
    if stride is not None and _times(stride) not in ("1", "1×1", "1×1×1") and stride != kernel:
        parts.append(f"stride {_times(stride, short=True)}")
    groups = getattr(layer, "groups", 1)
    if isinstance(groups, int) and groups > 1:
        parts.append(f"{groups} groups")
    return " ".join(filter(None, (type(layer).__name__, ", ".join(parts))))


def _times(size: Any, *, short: bool = False) -> str:
    if not isinstance(size, tuple):
        return str(size)
    return str(size[0]) if short and len(set(size)) == 1 else "×".join(str(part) for part in size)
