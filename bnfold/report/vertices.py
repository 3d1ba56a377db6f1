"""One graph as a page draws it: its calls as vertices, the ways of the affines, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from bnfold import ops
from bnfold.affine import affine_of_statistics
from bnfold.fold.decision import Decision
from bnfold.ops.interface import FrontEnd, Value
from bnfold.report.chain import Link
from bnfold.report.details import Affine, Role, Vertex, Way

if TYPE_CHECKING:
    from bnfold.fold.plan import Plan

__all__ = ["Drawn"]

V = TypeVar("V", bound=Value)


class Drawn(Generic[V]):
    """One graph as vertices; each front end says what its values are called.

    Args:
        facts: of the graph.
        values: in order.
    """

    def __init__(self, facts: FrontEnd[V], values: Iterable[V]) -> None:
        self.facts: Any = facts
        self.reads = {value: self.read(value) for value in values}
        wanted = self._wanted()
        self.values = [value for value in self.reads if value in wanted]
        self.index = {value: index for index, value in enumerate(self.values)}
        self.vertices = tuple(self._vertex(value) for value in self.values)

    def read(self, value: V) -> tuple[V, ...]:
        """The values whose numbers a call reads, without its parameters."""
        raise NotImplementedError

    def is_end(self, value: V) -> bool:
        """Whether a value is an input, or what is returned."""
        raise NotImplementedError

    def label(self, value: V) -> str:
        """Return the name of a call."""
        raise NotImplementedError

    def kind(self, value: V) -> str:
        """Return what a call computes, in a few words."""
        raise NotImplementedError

    def _wanted(self) -> set[V]:
        """What the outputs depend on, and all BatchNorms."""
        waiting = [v for v in self.reads if self.facts.is_output(v) or isinstance(self.facts.call(v), ops.BatchNorm)]
        wanted: set[V] = set()
        while waiting:
            value = waiting.pop()
            if value not in wanted:
                wanted.add(value)
                waiting += self.reads[value]
        return wanted

    def _vertex(self, value: V) -> Vertex:
        call = self.facts.call(value)
        role: Role = "other"
        if self.is_end(value):
            role = "end"
        elif isinstance(call, ops.BatchNorm):
            role = "batchnorm"
        elif isinstance(call, ops.ExplicitAffine):
            role = "affine"
        elif isinstance(call, ops.Absorber):
            role = "weights"
        read = tuple(self.index[each] for each in self.reads[value])
        return Vertex(value.name, self.label(value), self.kind(value), role, read)

    # --- what the decisions did -----------------------------------------------------------------------------------

    def sites(self, decisions: Iterable[Decision], first: int) -> Iterator[tuple[int, Decision, V]]:
        """Yield each BatchNorm that is drawn, with its decision and the number of that."""
        by_name = {node.name: node for node in self.values}
        for number, decision in enumerate(decisions):
            node = by_name.get(decision.site)
            if node is not None and isinstance(self.facts.call(node), ops.BatchNorm):
                yield first + number, decision, node

    def ways(self, plan: Plan, first: int) -> Iterator[Way]:
        """Yield the way of each affine."""
        by_name = {node.name: node for node in self.values}
        for number, decision, site in self.sites(plan, first):
            route = plan.steps.routes.get(decision.site)
            hops = () if route is None else route.hops
            edges = [edge for reader, read in hops for edge in self._joined(by_name[reader], by_name[read])]
            ends = () if route is None else dict.fromkeys(by_name[end] for end in route.ends)
            pairs = tuple((self.index[reader], self.index[read]) for reader, read in dict.fromkeys(edges))
            yield Way(number, self.index[site], tuple(self.index[end] for end in ends), pairs)

    def _joined(self, reader: V, read: V) -> list[tuple[V, V]]:
        """Return the edges from a reader to what it reads, through what only passes it on between the two."""
        before: dict[V, V] = {}
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
        call = self.facts.call(self.values[number])
        if call is None:
            return ""
        if isinstance(call, ops.BatchNorm):
            return "folded before, now the identity"
        if decision.direction == "sideways" and isinstance(call, ops.Add):
            return "conv(x) + (a x + b) is one convolution of x"
        return call.rule.mathematics if call.rule is not None else ""

    def affines(self, decisions: Sequence[Decision], first: int) -> Iterator[Affine]:
        """Yield the affine of each BatchNorm that has one."""
        for number, _, site in self.sites(decisions, first):
            call = self.facts.call(site)
            assert isinstance(call, ops.BatchNorm)
            sources = (call.running_mean, call.running_var, call.weight, call.bias)
            if any(
                not (source is None or isinstance(source, str) or self.facts.is_constant(source)) for source in sources
            ):
                continue
            mean, variance, weight, bias = (self.facts.constant(source) for source in sources)
            if mean is None or variance is None:
                continue
            affine = affine_of_statistics(mean.cpu(), variance.cpu(), _cpu(weight), _cpu(bias), call.eps)
            yield Affine(number, tuple(affine.scale.tolist()), tuple(affine.shift.tolist()))

    def is_known(self, source: Any) -> bool:
        """Whether the numbers of a parameter are the same in each run."""
        return source is None or isinstance(source, (str, torch.Tensor)) or bool(self.facts.is_constant(source))


def _cpu(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()
