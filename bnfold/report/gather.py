"""Gather what the HTML page shows: the graph before and after, the ways of the affines, their numbers, site errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from bnfold import ops
from bnfold.affine import affine_of_statistics
from bnfold.fold.decision import Decision
from bnfold.graph.captured import Capture
from bnfold.graph.facts import Facts
from bnfold.report.chain import Link
from bnfold.report.details import Affine, Details, Picture, Role, Vertex, Way, files_read
from bnfold.report.sites import site_errors_of

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


class _Drawn:
    """One graph as vertices."""

    def __init__(self, captured: Capture) -> None:
        self.captured = captured
        self.facts = Facts(captured)
        self.reads = {node: self._read(node) for node in captured.graph.nodes}
        wanted = self._wanted()
        self.nodes = [node for node in self.reads if node in wanted]
        self.index = {node: index for index, node in enumerate(self.nodes)}
        self.vertices = tuple(self._vertex(node) for node in self.nodes)

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

    def _read(self, node: Node) -> tuple[Node, ...]:
        """The values whose numbers a call reads, without its parameters."""
        call = self.facts.call(node)
        found = node.all_input_nodes if call is None or not call.inputs else call.inputs
        return tuple(dict.fromkeys(value for value in found if not self._is_aside(value)))

    def _is_aside(self, value: Node) -> bool:
        return value.op == "get_attr" or isinstance(self.facts.call(value), ops.MetadataRead)

    def _wanted(self) -> set[Node]:
        """What the outputs depend on, and all BatchNorms."""
        waiting = [n for n in self.reads if n.op == "output" or isinstance(self.facts.call(n), ops.BatchNorm)]
        wanted: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node not in wanted:
                wanted.add(node)
                waiting += self.reads[node]
        return wanted

    def _vertex(self, node: Node) -> Vertex:
        call = self.facts.call(node)
        role: Role = "other"
        if node.op in ("placeholder", "output"):
            role = "end"
        elif isinstance(call, ops.BatchNorm):
            role = "batchnorm"
        elif isinstance(call, ops.ExplicitAffine):
            role = "affine"
        elif isinstance(call, ops.Absorber):
            role = "weights"
        read = tuple(self.index[value] for value in self.reads[node])
        return Vertex(node.name, self._label(node), self._kind(node), role, read)

    def _label(self, node: Node) -> str:
        call = self.facts.call(node)  # as the piece names it: the picture's title tells which piece it is
        if isinstance(call, ops.BatchNorm) and call.name:
            return call.name
        return str(node.target) if node.op in ("call_module", "placeholder") else node.name

    def _kind(self, node: Node) -> str:
        if node.op == "call_module":
            return layer_in_words(self.captured.module(str(node.target)))
        if node.op == "placeholder":
            return "input"
        if node.op in ("output", "call_method"):
            return str(node.target)
        return str(getattr(node.target, "__name__", node.target))

    # --- what the decisions did -----------------------------------------------------------------------------------

    def _sites(self, decisions: Iterable[Decision], first: int) -> Iterator[tuple[int, Decision, Node]]:
        by_name = {node.name: node for node in self.nodes}
        for number, decision in enumerate(decisions):
            node = by_name.get(decision.site)
            if node is not None and isinstance(self.facts.call(node), ops.BatchNorm):
                yield first + number, decision, node

    def ways(self, plan: Plan, first: int) -> Iterator[Way]:
        """Yield the way of each affine."""
        by_name = {node.name: node for node in self.nodes}
        for number, decision, site in self._sites(plan, first):
            route = plan.steps.routes.get(decision.site)
            hops = () if route is None else route.hops
            edges = [edge for reader, read in hops for edge in self._joined(by_name[reader], by_name[read])]
            ends = () if route is None else dict.fromkeys(by_name[end] for end in route.ends)
            pairs = tuple((self.index[reader], self.index[read]) for reader, read in dict.fromkeys(edges))
            yield Way(number, self.index[site], tuple(self.index[end] for end in ends), pairs)

    def _joined(self, reader: Node, read: Node) -> list[tuple[Node, Node]]:
        """Return the edges from a reader to what it reads, through what only passes it on between the two."""
        before: dict[Node, Node] = {}
        waiting = [reader]
        while waiting and read not in before:
            node = waiting.pop(0)
            for value in self.reads[node]:
                if value not in before:
                    before[value] = node
                    waiting.append(value)
        path = []
        while read is not reader and read in before:
            path.append((before[read], read))
            read = before[read]
        return path

    def chain(self, way: Way, decision: Decision) -> Iterator[Link]:
        """Yield the calls on a way, with the rule that lets each pass, and the calls beside its ends."""
        on_way = {way.site, *(vertex for edge in way.edges for vertex in edge)}
        readers = [number for number, vertex in enumerate(self.vertices) if on_way & set(vertex.inputs)]
        near = {read for number in on_way for read in self.vertices[number].inputs} | set(readers)
        if len(near - on_way) > 6:
            near = set(self.vertices[way.site].inputs[:2])
        for number in sorted(on_way | near):
            vertex = self.vertices[number]
            if number == way.site:
                words = {"fold": "is gone", "affine": "becomes an explicit affine", "keep": "stays as it is"}
                yield Link(vertex.label, vertex.kind, "site", words[decision.action])
            elif number in way.into:
                yield Link(vertex.label, vertex.kind, "takes", f"takes {decision.batchnorm} into its weights")
            elif number in on_way:
                yield Link(vertex.label, vertex.kind, "passes", self._rule(number, decision))
            else:
                yield Link(vertex.label, vertex.kind, "near")

    def _rule(self, number: int, decision: Decision) -> str:
        """Why an affine may pass a call: the line of mathematics of its rule."""
        call = self.facts.call(self.nodes[number])
        if call is None:
            return ""
        if isinstance(call, ops.BatchNorm):
            return "folded before, now the identity"
        if decision.direction == "sideways" and isinstance(call, ops.Add):
            return "conv(x) + (a x + b) is one convolution of x"
        return call.rule.mathematics if call.rule is not None else ""

    def affines(self, decisions: Sequence[Decision], first: int) -> Iterator[Affine]:
        """Yield the affine of each BatchNorm that has one."""
        for number, _, site in self._sites(decisions, first):
            call = self.facts.call(site)
            assert isinstance(call, ops.BatchNorm)
            sources = (call.running_mean, call.running_var, call.weight, call.bias)
            if any(isinstance(source, Node) and not self.facts.is_constant(source) for source in sources):
                continue
            mean, variance, weight, bias = (self.facts.constant(source) for source in sources)
            if mean is None or variance is None:
                continue
            affine = affine_of_statistics(mean.cpu(), variance.cpu(), _cpu(weight), _cpu(bias), call.eps)
            yield Affine(number, tuple(affine.scale.tolist()), tuple(affine.shift.tolist()))


def _cpu(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()


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
