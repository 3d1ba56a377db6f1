"""Decide, for each BatchNorm call, what becomes of it; change nothing.

The planner looks at the whole graph. It first tries to pull each BatchNorm's affine backward, in the order in which
they run, then pushes forward what stayed. What one decision settled, later ones see: a folded BatchNorm is the identity
where it stands, and an explicit affine absorbs an affine that reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from bnfold import ops
from bnfold.affine import ChannelAffine, Statistics, affine_of_statistics, affines_of_statistics, is_sound
from bnfold.fold.called_at import called_at
from bnfold.fold.decision import Decision, Decisions, fold_sentence
from bnfold.fold.merge.steps import MergeStep
from bnfold.fold.pull import Way, pull
from bnfold.fold.push import push
from bnfold.fold.sideways import sideways
from bnfold.ops.form import ChannelForm
from bnfold.ops.interface import GraphFacts, Value
from bnfold.ops.refusal import Refusal, rendered

__all__ = ["Absorption", "Explicit", "Plan", "Route", "Steps", "make_plan"]


@dataclass(frozen=True, eq=False)
class Absorption:
    """One affine that goes into the weights of one call.

    Attributes:
        side: ``"after"``: the call's output is the affine of what it was. ``"before"``: its input is. ``"beside"``: the
            affine of its input is added to its output.
        affine: over the channels of that side.
        batchnorm: which decision it belongs to, by index.
    """

    side: Literal["after", "before", "beside"]
    affine: ChannelAffine
    batchnorm: int


@dataclass(frozen=True, eq=False)
class Explicit:
    """A BatchNorm call that becomes an explicit affine.

    Attributes:
        composed: affines of later BatchNorms that it absorbed, in order.
    """

    composed: tuple[ChannelAffine, ...] = ()


@dataclass(frozen=True)
class Route:
    """The way of an affine through the graph, by names of values.

    Attributes:
        hops: pairs (reader, what it reads): neighbours on the way, or with nothing between them but what passes it on.
        ends: what absorbed it.
    """

    hops: tuple[tuple[str, str], ...]
    ends: tuple[str, ...]

    @staticmethod
    def of(hops: Iterable[tuple[Value, Value]], ends: Iterable[Value]) -> Route:
        """Return the route along some values."""
        return Route(tuple((reader.name, read.name) for reader, read in hops), tuple(end.name for end in ends))


@dataclass(eq=False)
class Steps:
    """What a rewrite does, by node name.

    Attributes:
        absorbed: for each call whose weights change, the affines in order.
        removed: BatchNorm calls whose value is now that of their input.
        dropped: BatchNorm calls that are no term of their sum any more: ``{name: (name of the term, of the sum)}``, in
            order; the term is the call or what passes its value on.
        explicit: BatchNorm calls that become explicit affines.
        constant: BatchNorm calls on constants, which are computed once.
        guards: calls whose input's number of dimensions must be checked when run: ``{name: rank}``.
        merges: convolutions that become one after all that, in order.
        routes: of the affines that moved, by name of the BatchNorm call: for those who tell of it.
    """

    absorbed: dict[str, list[Absorption]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)
    explicit: dict[str, Explicit] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    guards: dict[str, int] = field(default_factory=dict)
    merges: tuple[MergeStep, ...] = ()
    routes: dict[str, Route] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan(Decisions):
    """One :class:`Decision` per BatchNorm call, in the order in which they run; and the steps that a rewrite takes."""

    steps: Steps = field(default_factory=Steps, repr=False, compare=False)
    pieces: Mapping[str, Plan] = field(default_factory=dict, repr=False, compare=False)


def make_plan(
    facts: GraphFacts,
    *,
    keep: Iterable[str] = (),
    share: Literal["clone", "keep"] = "clone",
    refused: Mapping[str, Refusal] | None = None,
) -> Plan:
    """Return the plan for a model.

    Args:
        facts: the graph, as a front end reads it.
        keep: names of BatchNorms to leave, qualified or of a call's node.
        share: what to do with a layer that is called at several sites, where a fold needs one site's weights changed:
            ``"clone"`` it for that site, or ``"keep"`` it and refuse.
        refused: folds that a rewrite found impossible, by the name of the BatchNorm call's node.
    """
    return _Planner(facts, frozenset(keep), share, refused or {}).plan()


class _Planner:
    def __init__(
        self, facts: GraphFacts, keep: frozenset[str], share: Literal["clone", "keep"], refused: Mapping[str, Refusal]
    ) -> None:
        self.facts = facts
        self.keep = keep
        self.share = share
        self.refused = refused
        self.decisions: list[Decision] = []
        self.affines: list[ChannelAffine | None] = []
        self.absorbed: dict[Value, list[Absorption]] = {}
        self.settled: dict[Value, ops.BatchNorm] = {}  # folded: the identity where they stand
        self.explicit: dict[Value, Explicit] = {}
        self.sound: dict[Value, ChannelAffine] = {}  # affines that need no second look
        self.dropped: dict[Value, Value] = {}  # sums that lost a term, and what is left of them
        self.steps = Steps()

    def plan(self) -> Plan:
        sites = [node for node in self.facts.index if self._is_batch_norm(node)]
        self.sound = self._sound_affines(sites)
        for node in sites:
            self._decide(node)
        for index, node in enumerate(sites):
            if node in self.explicit:
                self._try_forward(index, node)
        for index, node in enumerate(sites):
            if node in self.explicit:
                self._try_sideways(index, node)
        for node in self.facts.index:
            for hidden in self.facts.hidden_batchnorms(node):
                stays = Decision(
                    hidden.name, "keep", None, (), (), hidden.reason, "", hidden.site, hidden.source, kind=hidden.kind
                )
                self.decisions.append(stays.staying(hidden.because))
        for node, absorptions in self.absorbed.items():
            self.steps.absorbed[node.name] = absorptions
        for node, explicit in self.explicit.items():
            self.steps.explicit[node.name] = explicit
            if self._by_constants(node) and not explicit.composed:
                self.steps.guards.pop(node.name, None)  # it is left as it is
        self.steps.removed = [node.name for node in self.settled]
        lines = {node.name: self.facts.lines(node) for node in self.facts.index}
        decisions = called_at(self._with_added_bytes(), lines)
        return Plan(tuple(decisions), self.facts.way, self.facts.notes, steps=self.steps)

    # --- one BatchNorm --------------------------------------------------------------------------------------------

    def _is_batch_norm(self, node: Value) -> bool:
        return isinstance(self.facts.call(node), ops.BatchNorm)

    def _decide(self, node: Value) -> None:
        call = self.facts.call(node)
        assert isinstance(call, ops.BatchNorm)
        name = self.facts.label(node)
        self.affines.append(None)
        if self.facts.hooked(node):
            self._stay(node, name, Refusal("hooks", "it carries hooks, which expect a BatchNorm to be called"))
        elif name in self.keep or node.name in self.keep:
            self._stay(node, name, Refusal("kept-by-request", "the caller asked to keep it"))
        elif call.stays is not None:
            self._stay(node, name, call.stays)
        elif self.facts.is_constant(call.input) and not self.facts.mutated(node):
            self._settle_constant(node, name)
        elif call.uses_batch_statistics:
            text = "it uses the mean and variance of each batch, in eval mode too"
            self._stay(node, name, Refusal("batch-statistics", text))
        else:
            self._place(node, call, name)

    def _place(self, node: Value, call: ops.BatchNorm, name: str) -> None:
        affine = self._affine(call)
        if isinstance(affine, Refusal):
            if affine.reason == "computed-statistics":
                self._stay(node, name, affine)
            else:
                self._become_explicit(node, name, affine)
            return
        self.affines[-1] = affine
        refusal = self.refused.get(node.name)
        if refusal is None:
            rank = self.facts.rank(node)
            if call.rank is not None and self.facts.graph_rank(node) is None:
                # taken for granted by the layer, checked by nobody: so check
                self.steps.guards[node.name] = call.rank
                rank = rank or call.rank
            if rank is not None and call.rank is not None and rank != call.rank:
                text = "its input has {rank} dimensions, and its channels are then not in dimension 1"
                self._stay(node, name, Refusal("channel-dimension", text, rank=rank))
                return
            way = pull(self, node, self._form(node, call, affine))
            if isinstance(way, Way):
                self._fold(node, name, way)
                return
            refusal = way
        self._become_explicit(node, name, refusal)

    def _composed(self, index: int, node: Value) -> ChannelAffine | None:
        """The affine of an explicit one with what it has absorbed by now; None where it may not move."""
        affine = self.affines[index]
        if affine is None or node.name in self.refused:
            return None
        for later in self.explicit[node].composed:
            affine = later.after(affine)
        return affine

    def _try_sideways(self, index: int, node: Value) -> None:
        """Add what could move neither way to a convolution beside it."""
        affine = self._composed(index, node)
        old = self.decisions[index]
        if affine is None:
            return
        way = sideways(self, node, affine)
        if isinstance(way, Refusal):
            if way.reason not in ("not-a-term", "no-convolution-beside"):
                self.decisions[index] = old.staying(f"{old.because}; and sideways, {rendered(way, self.facts)}")
            return
        self.absorbed.setdefault(way.convolution, []).append(Absorption("beside", way.affine, index))
        if way.rank is not None:
            self.steps.guards[way.convolution.name] = way.rank
        del self.explicit[node]
        self.dropped[way.sum] = way.rest
        self.steps.dropped[node.name] = (way.term.name, way.sum.name)
        self.steps.routes[node.name] = Route.of(way.hops, (way.convolution,))
        into, through = (
            (self.facts.label(way.convolution),),
            tuple(dict.fromkeys(self.facts.name(passed) for passed in way.through)),
        )
        words = fold_sentence(old.batchnorm, "sideways", into, through)
        self.decisions[index] = replace(
            old, action="fold", direction="sideways", into=into, through=through, reason=None, detail=words, because=""
        )

    def _try_forward(self, index: int, node: Value) -> None:
        """Push forward what could not be pulled backward, with what it has absorbed by now."""
        affine = self._composed(index, node)
        if affine is None:
            return
        call = self.facts.call(node)
        assert isinstance(call, ops.BatchNorm)
        old = self.decisions[index]
        way = push(self, node, self._form(node, call, affine))
        if isinstance(way, Refusal):
            self.decisions[index] = old.staying(f"{old.because}; and forward, {rendered(way, self.facts)}")
            return
        for absorber, taken in way.absorbed:
            self.absorbed.setdefault(absorber, []).append(Absorption("before", taken, index))
        for guarded, rank in way.guards:
            self.steps.guards[guarded.name] = rank
        del self.explicit[node]
        self.settled[node] = call
        self.steps.routes[node.name] = Route.of(way.hops, (target for target, _ in way.absorbed))
        into = tuple(dict.fromkeys(self.facts.label(target) for target, _ in way.absorbed))
        through = tuple(dict.fromkeys(self.facts.name(passed) for passed in way.through))
        words = fold_sentence(old.batchnorm, "forward", into, through)
        self.decisions[index] = replace(
            old, action="fold", direction="forward", into=into, through=through, reason=None, detail=words, because=""
        )

    def _form(self, node: Value, call: ops.BatchNorm, affine: ChannelAffine) -> ChannelForm:
        """The affine as a form, with what is known of the number of dimensions."""
        sure = self.facts.graph_rank(node) or call.rank
        return ChannelForm(affine, call.dim, sure or self.facts.rank(node), unsure=sure is None, fixed=call.fixed)

    def _sound_affines(self, sites: Iterable[Value]) -> dict[Value, ChannelAffine]:
        """The affines of all layers whose statistics the model holds and are as they should be, computed at once."""
        layers: dict[Value, Statistics] = {}
        for node in sites:
            call = self.facts.call(node)
            assert isinstance(call, ops.BatchNorm)
            sources = (call.running_mean, call.running_var, call.weight, call.bias)
            if call.uses_batch_statistics or not all(source is None or isinstance(source, str) for source in sources):
                continue
            mean, variance, weight, bias = map(self.facts.constant, sources)
            if mean is not None and variance is not None:
                layers[node] = (mean, variance, weight, bias, call.eps)
        affines = affines_of_statistics([*layers.values()])
        return {node: affine for node, affine in zip(layers, affines, strict=True) if affine is not None}

    def _affine(self, call: ops.BatchNorm) -> ChannelAffine | Refusal:
        """The layer's affine, or why it has none that could be folded."""
        known = self.sound.get(call.node)
        if known is not None:
            return known
        tensors = []
        for source in (call.running_mean, call.running_var, call.weight, call.bias):
            if source is not None and not isinstance(source, str) and not self.facts.is_constant(source):
                text = "its statistics or parameters are computed from the input, at `{value}`"
                return Refusal("computed-statistics", text, value=source)
            tensors.append(self.facts.constant(source))
        mean, variance, weight, bias = tensors
        assert mean is not None
        assert variance is not None
        affine = affine_of_statistics(mean, variance, weight, bias, call.eps)
        if is_sound(affine, variance):
            return affine
        if bool((variance < 0).any()):
            count = int((variance < 0).sum())
            text = "its running_var is negative in {part} of {whole} channels"
            return Refusal("not-finite", text, part=count, whole=variance.numel())
        if not affine.is_finite or not bool(torch.isfinite(variance).all()):
            bad = ~(torch.isfinite(affine.scale) & torch.isfinite(affine.shift) & torch.isfinite(variance))
            text = "its affine is not finite in {part} of {whole} channels (look at running_var, eps and weight)"
            return Refusal("not-finite", text, part=int(bad.sum()), whole=variance.numel())
        return affine

    # --- outcomes -------------------------------------------------------------------------------------------------

    def _fold(self, node: Value, name: str, way: Way) -> None:
        index = len(self.decisions)
        for absorber, affine in way.absorbed:
            self.absorbed.setdefault(absorber, []).append(Absorption("after", affine, index))
        for absorber, affine in way.beside:
            self.absorbed[absorber].append(Absorption("beside", affine, index))
        for target, affine in way.composed:
            self.explicit[target] = replace(self.explicit[target], composed=(*self.explicit[target].composed, affine))
        for guarded, rank in way.guards:
            self.steps.guards[guarded.name] = rank
        call = self.facts.call(node)
        assert isinstance(call, ops.BatchNorm)
        self.settled[node] = call
        ends = (*way.absorbers, *way.compositions)
        self.steps.routes[node.name] = Route.of(way.hops, ends)
        into = tuple(dict.fromkeys(map(self.facts.label, ends)))
        through = tuple(dict.fromkeys(self.facts.name(passed) for passed in way.through))
        words = fold_sentence(name, "backward", into, through)
        self._note(node, name, "fold", "backward", into, through, None, words)

    def _become_explicit(self, node: Value, name: str, refusal: Refusal) -> None:
        self.explicit[node] = Explicit()
        self._note(node, name, "affine", None, (), (), refusal.reason, "")
        self.decisions[-1] = self.decisions[-1].staying(rendered(refusal, self.facts))

    def _stay(self, node: Value, name: str, refusal: Refusal) -> None:
        self._note(node, name, "keep", None, (), (), refusal.reason, "")
        self.decisions[-1] = self.decisions[-1].staying(rendered(refusal, self.facts))

    def _settle_constant(self, node: Value, name: str) -> None:
        self.steps.constant.append(node.name)
        words = f"{name} normalises constants only, so its value was computed once."
        call = self.facts.call(node)
        assert isinstance(call, ops.BatchNorm)
        self.steps.routes[node.name] = Route.of(((node, call.input),), (call.input,))
        self._note(node, name, "fold", "backward", (self.facts.label(call.input),), (), None, words)

    def _note(
        self,
        node: Value,
        name: str,
        action: Literal["fold", "affine", "keep"],
        direction: Literal["backward", "forward", "sideways"] | None,
        into: tuple[str, ...],
        through: tuple[str, ...],
        reason: str | None,
        detail: str,
    ) -> None:
        source = self.facts.source(node)
        kind: Literal["batchnorm", "affine"] = "affine" if self._by_constants(node) else "batchnorm"
        self.decisions.append(
            Decision(name, action, direction, into, through, reason, detail, site=node.name, source=source, kind=kind)
        )

    def _by_constants(self, node: Value) -> bool:
        call = self.facts.call(node)
        return isinstance(call, ops.BatchNorm) and call.by_constants

    def _with_added_bytes(self) -> list[Decision]:
        """Fill in what the folds add in memory, where weights are shared with a call that keeps them."""
        decisions = list(self.decisions)
        seen: set[int] = set()
        for node, absorptions in self.absorbed.items():
            call = self.facts.call(node)
            if not isinstance(call, ops.Absorber):
                continue
            added = 0
            for source in (call.weight, call.bias):
                tensor = self.facts.tensor(source)
                if tensor is None:
                    continue
                others = [reader for reader in self.facts.sharing(source) if reader is not node]
                if others and (id(tensor) in seen or any(other not in self.absorbed for other in others)):
                    added += tensor.numel() * tensor.element_size()
                seen.add(id(tensor))
            if added:
                index = absorptions[0].batchnorm
                decisions[index] = replace(decisions[index], added_bytes=decisions[index].added_bytes + added)
        return decisions
