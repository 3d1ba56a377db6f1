"""Decide, for each BatchNorm call, what becomes of it; change nothing.

The planner looks at the whole graph. It first tries to pull each BatchNorm's affine backward, in the order in which
they run, then pushes forward what stayed. What one decision settled, later ones see: a folded BatchNorm is the identity
where it stands, and an explicit affine absorbs an affine that reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn
from torch.fx import GraphModule, Node

from bnfold.affine import ChannelAffine, affine_of_statistics
from bnfold.fold.called_at import called_at
from bnfold.fold.conditions import name_of
from bnfold.fold.decision import Decision, Decisions, fold_sentence
from bnfold.fold.demand import Demand, Refusal
from bnfold.fold.merge.steps import MergeStep
from bnfold.fold.pull import Way, pull
from bnfold.fold.push import push
from bnfold.fold.sideways import sideways
from bnfold.graph import calls
from bnfold.graph.captured import Capture
from bnfold.graph.facts import Facts
from bnfold.graph.vocabulary import read_function

__all__ = ["Absorption", "Explicit", "Plan", "Steps", "make_plan"]


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
    """

    absorbed: dict[str, list[Absorption]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)
    explicit: dict[str, Explicit] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    guards: dict[str, int] = field(default_factory=dict)
    merges: tuple[MergeStep, ...] = ()


@dataclass(frozen=True)
class Plan(Decisions):
    """One :class:`Decision` per BatchNorm call, in the order in which they run; and the steps that a rewrite takes."""

    steps: Steps = field(default_factory=Steps, repr=False, compare=False)
    pieces: Mapping[str, Plan] = field(default_factory=dict, repr=False, compare=False)


def make_plan(
    capture: Capture,
    *,
    keep: Iterable[str] = (),
    share: Literal["clone", "keep"] = "clone",
    refused: Mapping[str, Refusal] | None = None,
) -> Plan:
    """Return the plan for a captured model.

    Args:
        capture: the graph and the model.
        keep: names of BatchNorms to leave, qualified or of a call's node.
        share: what to do with a layer that is called at several sites, where a fold needs one site's weights changed:
            ``"clone"`` it for that site, or ``"keep"`` it and refuse.
        refused: folds that a rewrite found impossible, by the name of the BatchNorm call's node.
    """
    return _Planner(Facts.of(capture), frozenset(keep), share, refused or {}).plan()


class _Planner:
    def __init__(
        self, facts: Facts, keep: frozenset[str], share: Literal["clone", "keep"], refused: Mapping[str, Refusal]
    ) -> None:
        self.facts = facts
        self.keep = keep
        self.share = share
        self.refused = refused
        self.decisions: list[Decision] = []
        self.affines: list[ChannelAffine | None] = []
        self.absorbed: dict[Node, list[Absorption]] = {}
        self.settled: dict[Node, calls.BatchNorm] = {}  # folded: the identity where they stand
        self.explicit: dict[Node, Explicit] = {}
        self.dropped: dict[Node, Node] = {}  # sums that lost a term, and what is left of them
        self.steps = Steps()

    def plan(self) -> Plan:
        sites = [node for node in self.facts.index if self._is_batch_norm(node)]
        for node in sites:
            self._decide(node)
        for index, node in enumerate(sites):
            if node in self.explicit:
                self._try_forward(index, node)
        for index, node in enumerate(sites):
            if node in self.explicit:
                self._try_sideways(index, node)
        for node in self.facts.index:
            self.decisions.extend(self._inside(node))
        capture = self.facts.capture
        for node, absorptions in self.absorbed.items():
            self.steps.absorbed[node.name] = absorptions
        for node, explicit in self.explicit.items():
            self.steps.explicit[node.name] = explicit
        self.steps.removed = [node.name for node in self.settled]
        lines = {node.name: node.meta["lines"] for node in capture.graph.nodes if "lines" in node.meta}
        decisions = called_at(self._with_added_bytes(), lines)
        stopped = (self.facts.stopped,) if self.facts.stopped else ()
        return Plan(tuple(decisions), capture.way, (*capture.notes, *stopped), steps=self.steps)

    # --- one BatchNorm --------------------------------------------------------------------------------------------

    def _is_batch_norm(self, node: Node) -> bool:
        return isinstance(self.facts.call(node), calls.BatchNorm)

    def _decide(self, node: Node) -> None:
        call = self.facts.call(node)
        assert isinstance(call, calls.BatchNorm)
        name = call.name or node.name
        self.affines.append(None)
        if self.facts.hooked(node):
            self._stay(node, name, "hooks", "it carries hooks, which expect a BatchNorm to be called")
        elif name in self.keep or node.name in self.keep:
            self._stay(node, name, "kept-by-request", "the caller asked to keep it")
        elif self.facts.is_constant(call.input) and not self.facts.memory.mutated(node):
            self._settle_constant(node, name)
        elif call.uses_batch_statistics:
            text = "it uses the mean and variance of each batch, in eval mode too"
            self._stay(node, name, "batch-statistics", text)
        else:
            self._place(node, call, name)

    def _place(self, node: Node, call: calls.BatchNorm, name: str) -> None:
        affine = self._affine(call)
        if isinstance(affine, Refusal):
            if affine.reason == "computed-statistics":
                self._stay(node, name, affine.reason, affine.detail)
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
                text = f"its input has {rank} dimensions, and its channels are then not in dimension 1"
                self._stay(node, name, "channel-dimension", text)
                return
            way = pull(self, node, self._demand(node, call, affine))
            if isinstance(way, Way):
                self._fold(node, name, way)
                return
            refusal = way
        self._become_explicit(node, name, refusal)

    def _composed(self, index: int, node: Node) -> ChannelAffine | None:
        """The affine of an explicit one with what it has absorbed by now; None where it may not move."""
        affine = self.affines[index]
        if affine is None or node.name in self.refused:
            return None
        for later in self.explicit[node].composed:
            affine = later.after(affine)
        return affine

    def _try_sideways(self, index: int, node: Node) -> None:
        """Add what could move neither way to a convolution beside it."""
        affine = self._composed(index, node)
        old = self.decisions[index]
        if affine is None:
            return
        way = sideways(self, node, affine)
        if isinstance(way, Refusal):
            if way.reason not in ("not-a-term", "no-convolution-beside"):
                detail = f"{old.detail.removesuffix('.')}; and sideways, {way.detail}."
                self.decisions[index] = replace(old, detail=detail)
            return
        self.absorbed.setdefault(way.convolution, []).append(Absorption("beside", way.affine, index))
        del self.explicit[node]
        self.dropped[way.sum] = way.rest
        self.steps.dropped[node.name] = (way.term.name, way.sum.name)
        into, through = (self._label(way.convolution),), tuple(dict.fromkeys(name_of(passed) for passed in way.through))
        words = fold_sentence(old.batchnorm, "sideways", into, through)
        self.decisions[index] = replace(
            old, action="fold", direction="sideways", into=into, through=through, reason=None, detail=words
        )

    def _try_forward(self, index: int, node: Node) -> None:
        """Push forward what could not be pulled backward, with what it has absorbed by now."""
        affine = self._composed(index, node)
        if affine is None:
            return
        call = self.facts.call(node)
        assert isinstance(call, calls.BatchNorm)
        old = self.decisions[index]
        way = push(self, node, self._demand(node, call, affine))
        if isinstance(way, Refusal):
            detail = f"{old.detail.removesuffix('.')}; and forward, {way.detail}."
            self.decisions[index] = replace(old, detail=detail)
            return
        for absorber, taken in way.absorbed:
            self.absorbed.setdefault(absorber, []).append(Absorption("before", taken, index))
        for guarded, rank in way.guards:
            self.steps.guards[guarded.name] = rank
        del self.explicit[node]
        self.settled[node] = call
        into = tuple(dict.fromkeys(self._label(target) for target, _ in way.absorbed))
        through = tuple(dict.fromkeys(name_of(passed) for passed in way.through))
        words = fold_sentence(old.batchnorm, "forward", into, through)
        self.decisions[index] = replace(
            old, action="fold", direction="forward", into=into, through=through, reason=None, detail=words
        )

    def _demand(self, node: Node, call: calls.BatchNorm, affine: ChannelAffine) -> Demand:
        """The affine as a demand, with what is known of the number of dimensions."""
        sure = self.facts.graph_rank(node) or call.rank
        fixed = True  # a BatchNorm takes so many channels and no others; arithmetic of the user's own stretches one
        if node.op == "call_module":
            fixed = isinstance(self.facts.capture.module(str(node.target)), nn.modules.batchnorm._NormBase)
        return Demand(affine, 1, sure or self.facts.rank(node), unsure=sure is None, fixed=fixed)

    def _affine(self, call: calls.BatchNorm) -> ChannelAffine | Refusal:
        """The layer's affine, or why it has none that could be folded."""
        tensors = []
        for source in (call.running_mean, call.running_var, call.weight, call.bias):
            if isinstance(source, Node) and not self.facts.is_constant(source):
                text = f"its statistics or parameters are computed from the input, at `{source.name}`"
                return Refusal("computed-statistics", text)
            tensors.append(self.facts.constant(source))
        mean, variance, weight, bias = tensors
        assert mean is not None
        assert variance is not None
        affine = affine_of_statistics(mean, variance, weight, bias, call.eps)
        # a finite sum has finite terms: in most cases two small reductions are all that is to be asked
        total = affine.scale.sum() + affine.shift.sum() + variance.sum(dtype=torch.float64)
        if math.isfinite(float(total)) and variance.numel() and float(variance.min()) >= 0:
            return affine
        if bool((variance < 0).any()):
            count = int((variance < 0).sum())
            return Refusal("not-finite", f"its running_var is negative in {count} of {variance.numel()} channels")
        if not affine.is_finite or not bool(torch.isfinite(variance).all()):
            bad = ~(torch.isfinite(affine.scale) & torch.isfinite(affine.shift) & torch.isfinite(variance))
            text = f"its affine is not finite in {int(bad.sum())} of {variance.numel()} channels"
            return Refusal("not-finite", text + " (look at running_var, eps and weight)")
        return affine

    # --- outcomes -------------------------------------------------------------------------------------------------

    def _fold(self, node: Node, name: str, way: Way) -> None:
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
        assert isinstance(call, calls.BatchNorm)
        self.settled[node] = call
        into = tuple(dict.fromkeys(self._label(target) for target in (*way.absorbers, *way.compositions)))
        through = tuple(dict.fromkeys(name_of(passed) for passed in way.through))
        words = fold_sentence(name, "backward", into, through)
        self._note(node, name, "fold", "backward", into, through, None, words)

    def _become_explicit(self, node: Node, name: str, refusal: Refusal) -> None:
        self.explicit[node] = Explicit()
        words = f"{name} became an explicit affine: {refusal.detail}."
        self._note(node, name, "affine", None, (), (), refusal.reason, words)

    def _stay(self, node: Node, name: str, reason: str, text: str) -> None:
        self._note(node, name, "keep", None, (), (), reason, f"{name} stays a BatchNorm: {text}.")

    def _settle_constant(self, node: Node, name: str) -> None:
        self.steps.constant.append(node.name)
        words = f"{name} normalises constants only, so its value was computed once."
        call = self.facts.call(node)
        assert isinstance(call, calls.BatchNorm)
        self._note(node, name, "fold", "backward", (self._label(call.input),), (), None, words)

    def _note(
        self,
        node: Node,
        name: str,
        action: Literal["fold", "affine", "keep"],
        direction: Literal["backward", "forward", "sideways"] | None,
        into: tuple[str, ...],
        through: tuple[str, ...],
        reason: str | None,
        detail: str,
    ) -> None:
        source = node.meta.get("source")
        self.decisions.append(
            Decision(name, action, direction, into, through, reason, detail, site=node.name, source=source)
        )

    def _label(self, node: Node) -> str:
        call = self.facts.call(node)
        if isinstance(call, calls.BatchNorm) and call.name:
            return call.name
        return str(node.target) if node.op in ("call_module", "get_attr") else node.name

    def _inside(self, node: Node) -> list[Decision]:
        """BatchNorms inside a module that is called as a whole, because of hooks or of code that was not recorded."""
        if node.op == "get_attr":
            return self._inside_region(node)
        if node.op != "call_module" or self.facts.call(node) is not None:
            return []
        module = self.facts.capture.module(str(node.target))
        found = []
        for name, inner in module.named_modules():
            if isinstance(inner, nn.modules.batchnorm._BatchNorm):
                whole = f"{node.target}.{name}" if name else str(node.target)
                hooked = self.facts.hooked(node)
                reason = "hooks" if hooked else "unknown-code"
                because = "carries hooks" if hooked else "is of code that bnfold does not look into"
                owner = "it" if not name else f"`{node.target}`, which calls it,"
                words = f"{whole} stays a BatchNorm: {owner} {because}."
                found.append(Decision(whole, "keep", None, (), (), reason, words, node.name, node.meta.get("source")))
        return found

    def _inside_region(self, node: Node) -> list[Decision]:
        """BatchNorms in a region of the graph that is kept apart, such as one with autocast enabled."""
        region = getattr(self.facts.capture.root, str(node.target), None)
        if not isinstance(region, GraphModule):
            return []
        found = []
        for inner in region.graph.nodes:
            if isinstance(read_function(inner) if inner.op == "call_function" else None, calls.BatchNorm):
                words = f"{inner.name} stays a BatchNorm: it is computed in another precision, under autocast."
                found.append(Decision(inner.name, "keep", None, (), (), "autocast", words, f"{node.name}.{inner.name}"))
        return found

    def _with_added_bytes(self) -> list[Decision]:
        """Fill in what the folds add in memory, where weights are shared with a call that keeps them."""
        decisions = list(self.decisions)
        seen: set[int] = set()
        for node, absorptions in self.absorbed.items():
            call = self.facts.call(node)
            if not isinstance(call, calls.Absorber):
                continue
            tensors = [self.facts.tensor(source) for source in (call.weight, call.bias)]
            added = 0
            for tensor in tensors:
                if tensor is None:
                    continue
                others = [reader for reader in self.facts.parameter_readers[id(tensor)] if reader is not node]
                if others and (id(tensor) in seen or any(other not in self.absorbed for other in others)):
                    added += tensor.numel() * tensor.element_size()
                seen.add(id(tensor))
            if added:
                index = absorptions[0].batchnorm
                decisions[index] = replace(decisions[index], added_bytes=decisions[index].added_bytes + added)
        return decisions
