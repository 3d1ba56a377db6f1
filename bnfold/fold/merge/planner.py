"""Decide which convolutions become one; change nothing.

The planner looks at the graph as the folds leave it. It goes through the calls in the order in which they run and
knows, for each value, the :class:`Branch` that it is, if it is one. A convolution of a branch's value, a multiplication
by constants and a sum of branches of one value are branches again, so that what is nested merges as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch

from bnfold import ops
from bnfold.fold.decision import MergeDecision, fold_sentence, listed
from bnfold.fold.merge.branches import Branch, Chain, Identity, Reader, Scaled
from bnfold.fold.merge.found import adds_zero, factor_of, leaf_of, pool_of, positions
from bnfold.fold.merge.geometry import composed
from bnfold.fold.merge.steps import Knot, MergeStep, Part
from bnfold.fold.merge.sums import SumOfBranches, more_multiplications
from bnfold.fold.plan import Plan
from bnfold.fold.rounded import FoldedWeights
from bnfold.ops.interface import GraphFacts, Value, WeightType
from bnfold.ops.refusal import Refusal, rendered

__all__ = ["Merger", "with_merges"]


def with_merges(
    plan: Plan,
    folded: GraphFacts,
    original: GraphFacts,
    *,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
    refused: Mapping[str, Refusal],
) -> Plan:
    """Return a plan that also says which convolutions become one, after its folds.

    Args:
        plan: of the folds.
        folded: the graph as the folds leave it, its weights still those of the model.
        original: the graph before, which knows more of the number of dimensions.
        keep: names of convolutions to leave.
        share: as for a fold: what to do with a layer that is called at several sites.
        refused: merges that a rewrite found impossible, by the name of the node that they stand for.
    """
    reader = FoldedWeights(original, plan.steps.absorbed)
    merger = Merger(folded, original, reader, keep, share, refused)
    merges = merger.plan()
    into = {name: step.root for step in merger.steps.values() for part in step.parts for name in part.branch.members}
    decisions = list(plan.decisions)
    for place, decision in enumerate(decisions):  # an affine by constants that nothing absorbed, and a merge takes
        if decision.action == "affine" and decision.kind == "affine" and decision.site in into:
            layers = tuple(merge.into for merge in merger.merged[into[decision.site]])
            words = fold_sentence(decision.batchnorm, "sideways", layers, ())
            decisions[place] = replace(
                decision, action="fold", direction="sideways", into=layers, reason=None, detail=words, because=""
            )
    explicit = {name: what for name, what in plan.steps.explicit.items() if name not in into}
    steps = replace(plan.steps, explicit=explicit, merges=tuple(merger.steps.values()))
    return replace(plan, decisions=tuple(decisions), merges=merges, steps=steps)


class Merger:
    """The state of the planner: branches found so far, merges and refusals."""

    def __init__(
        self,
        facts: GraphFacts,
        original: GraphFacts,
        reader: Reader,
        keep: frozenset[str],
        share: Literal["clone", "keep"],
        refused: Mapping[str, Refusal],
    ) -> None:
        self.facts = facts
        self.reader = reader
        self.keep = keep
        self.share = share
        self.refused = refused
        self.by_name = {node.name: node for node in facts.index}
        self.original = original
        self.original_by_name = {node.name: node for node in original.index}
        self.branches: dict[Value, Branch] = {}
        self.longer: dict[Value, tuple[Branch, int]] = {}  # chains that pay only inside a sum, and what they cost now
        self.opaque: dict[Value, Refusal] = {}  # convolutions that must stay
        self.steps: dict[str, MergeStep] = {}
        self.merged: dict[str, list[MergeDecision]] = {}
        self.refusals: list[MergeDecision] = []

    def plan(self) -> tuple[MergeDecision, ...]:
        """Go through the graph once; the steps are then in ``steps``."""
        for node in self.facts.index:
            call = self.facts.call(node)
            if isinstance(call, ops.Convolution):
                self._convolution(node, call)
            elif isinstance(call, ops.AveragePool):
                pool = pool_of(self.facts, call, self.facts.name(node), self.keep)
                if isinstance(pool, Branch):
                    self.branches[node] = pool
            elif call is not None and call.passes_on:
                before = self.read_once_by(call.inputs[0], node)
                if before is not None and not self.facts.hooked(node):
                    self._passing(node, call, before)
            elif isinstance(call, ops.Add):
                SumOfBranches(self, node).decide()
            else:
                self._factor(node)
        decisions = [decision for found in self.merged.values() for decision in found] + self.refusals
        order = {node.name: index for node, index in self.facts.index.items()}
        decisions.sort(key=lambda decision: order[decision.site])
        return tuple(decisions)

    def _passing(self, node: Value, call: ops.Operation, before: Branch) -> None:
        branch = self.branches[node] = replace(before, members=(*before.members, node.name))
        if branch.layer is None or not adds_zero(self.facts, node) or node.name in self.refused:
            return
        known = self.merged.get(call.inputs[0].name)  # the sum is computed for nothing
        self.commit(node, [Part(branch, (node.name,))], known[0].kind if known else "factor")

    # --- sequences ------------------------------------------------------------------------------------------------

    def _convolution(self, node: Value, call: ops.Convolution) -> None:
        leaf = leaf_of(self.facts, call, self.label(node), self.keep, self.share)
        if isinstance(leaf, Refusal):
            self.opaque[node] = leaf
            if leaf.reason == "kept-by-request":
                self.refuse(node, (), self.label(node), leaf)
            return
        self.branches[node] = leaf
        before = self.branches.get(call.input)
        if before is None:
            return
        geometry = composed(before.geometry, leaf.geometry)
        if isinstance(geometry, Refusal):
            return  # neither reads single positions: nobody expects these two to be one
        refusal = self._chain_refusal(call, before, leaf)
        where = positions(self.facts, node) or 1
        cost = self.cost_now(before) + self.cost_now(leaf)
        chain = Chain(
            before.source,
            geometry,
            (*before.members, node.name),
            leaf.layer if before.layer is None or not leaf.geometry.is_point else before.layer,
            before.cost + leaf.cost,
            (*before.names, *leaf.names),
            first=before,
            second=leaf,
        )
        if refusal is None:
            self.longer[node] = (chain, cost)
            if geometry.macs * where >= cost:
                refusal = more_multiplications(geometry.macs / max(1, cost / where))
            elif not self._bias_is_zero(before, leaf):
                text = "the bias of `{name}` is not zero and {op} pads with zeros after it"
                refusal = Refusal("zero-padding", text, name=before.names[0], op=call)
        if before.layer is None:
            return
        if refusal is not None:
            self.refuse(node, before.names, self.label(node), refusal)
            return
        self.commit(node, [Part(chain, (node.name,))], "sequence")
        self.branches[node] = chain

    def _chain_refusal(self, call: ops.Convolution, before: Branch, leaf: Branch) -> Refusal | None:
        node, facts = call.node, self.facts
        if node.name in self.refused:
            return self.refused[node.name]
        if self.read_once_by(call.input, node) is None:
            return Refusal("several-readers", "the output of `{value}` is also read elsewhere", value=call.input)
        if facts.reads_sizes(call.input, node):
            return Refusal("shape-read", "the shape of the output of `{value}` is read", value=call.input)
        if not self.same_type(before, leaf):
            return Refusal("weight-type", "the weights of {op} are of another dtype or device", op=call)
        if self.written(before, before.members, node):
            return Refusal("mutated", "its input is written to in between")
        return None

    def _bias_is_zero(self, before: Branch, leaf: Branch) -> bool:
        """Whether zero padding between the two is what the first makes of zero padding before it."""
        if leaf.geometry.is_point or not leaf.geometry.pads_with_zeros:
            return True
        assert before.layer is not None
        _, bias = before.weights(self.reader, self.weight(before.layer))
        return not bool((bias != 0).any())

    def bias_allows(self, branch: Branch) -> bool:
        """Whether a chain that was left is exact at the borders."""
        if not isinstance(branch, Chain) or branch.first.layer is None:
            return True
        return self._bias_is_zero(branch.first, branch.second)

    # --- multiplications by constants -----------------------------------------------------------------------------

    def _factor(self, node: Value) -> None:
        factor = factor_of(self.facts, node)
        if factor is None:
            return
        before = self.read_once_by(factor.value, node)
        if before is None or node.name in self.refused:
            return
        scaled = self.scaled(before, node)
        if scaled is None:
            return
        self.branches[node] = scaled
        if before.layer is not None:
            self.commit(node, [Part(scaled, (node.name,))], "factor")

    def scaled(self, before: Branch, node: Value) -> Branch | None:
        """Return a branch times the constants of a node, where these are one for each of its channels."""
        factor = factor_of(self.facts, node)
        assert factor is not None
        call = self.facts.call(node)
        stays = isinstance(call, ops.BatchNorm) and call.stays is not None
        if stays or self.facts.label(node) in self.keep or node.name in self.keep:
            return None  # an affine by constants that must stay, or that the caller asked to keep
        geometry = before.geometry
        by = factor.by
        if not isinstance(by, float):
            kind = None if before.layer is None else self.weight_type(before.layer)
            dims, rank = len(geometry.kernel), self.rank(factor.value)
            if not factor.fits(self.facts, dims, geometry.outputs, kind, rank):
                return None
        return Scaled(
            before.source,
            geometry,
            (*before.members, node.name),
            before.layer,
            before.cost,
            before.names,
            of=before,
            by=by if isinstance(by, float) else node.name,
        )

    # --- what the sums ask too ------------------------------------------------------------------------------------

    def read_once_by(self, value: Value, reader: Value) -> Branch | None:
        """Return the branch that a value is, if nobody else reads it."""
        return self.branches.get(value) if self.facts.readers(value) == (reader,) else None

    def identity(self, value: Value, geometry: Branch) -> Identity:
        """Return a value as a branch of itself."""
        from bnfold.fold.merge.geometry import identity_geometry

        shape = geometry.geometry
        return Identity(value.name, identity_geometry(len(shape.kernel), shape.outputs), (), None, 0, ())

    def cost_now(self, branch: Branch) -> int:
        """Return the multiply-accumulates of a branch as far as it is merged by now."""
        if branch.layer is None:
            return 0
        return branch.geometry.macs * self.positions(branch)

    def positions(self, branch: Branch) -> int:
        """Return how many positions the branch's output has; 1 where unknown."""
        return positions(self.facts, self.by_name[branch.members[-1]]) or 1

    def weight(self, layer: str) -> torch.Tensor:
        """Return the weight of a convolution call as the model has it."""
        call = self.facts.call(self.by_name[layer])
        assert isinstance(call, ops.Convolution)
        weight = self.facts.constant(call.weight)
        assert weight is not None
        return weight

    def weight_type(self, layer: str) -> WeightType | None:
        """Return the type in which the model holds the weight of a convolution call."""
        call = self.facts.call(self.by_name[layer])
        assert isinstance(call, ops.Convolution)
        return self.facts.weight_type(call.weight)

    def same_type(self, *branches: Branch) -> bool:
        """Whether all weights, and all constants of branches without, have the same dtype and device."""
        return len({kind for branch in branches for kind in self._types(branch)}) <= 1

    def _types(self, branch: Branch) -> Iterator[WeightType | None]:
        if branch.layer is not None:
            yield self.weight_type(branch.layer)
            return
        for name in branch.members:
            factor = factor_of(self.facts, self.by_name[name])
            by = None if factor is None or isinstance(factor.by, float) else factor.by
            tensor, kind = self.facts.constant(by), self.facts.weight_type(by)
            if tensor is not None and tensor.ndim and kind is not None:  # a single number takes the type of a value
                yield kind

    def written(self, branch: Branch, members: tuple[str, ...], last: Value) -> bool:
        """Whether the value that a branch reads is written to while the branch runs."""
        first = min(self.facts.index[self.by_name[name]] for name in (*members, last.name))
        return self.facts.written_between(self.by_name[branch.source], first - 1, self.facts.index[last])

    def rank(self, value: Value) -> int | None:
        """Return the number of dimensions of a value, from the graph before the folds where that tells it."""
        old = self.original_by_name.get(value.name)
        return self.facts.rank(value) or (None if old is None else self.original.rank(old))

    def label(self, node: Value) -> str:
        """Return what a convolution is called: its layer, or the owner of its weight."""
        call = self.facts.call(node)
        name = self.facts.name(node)
        owner = self.facts.owner(call.weight) if isinstance(call, ops.Convolution) and name == node.name else None
        return owner or name

    # --- outcomes -------------------------------------------------------------------------------------------------

    def commit(self, root: Value, parts: list[Part], kind: str, tree: tuple[Knot, ...] = ()) -> None:
        """Note a merge; what it is made of is no merge of its own any more."""
        members = {name for part in parts for name in part.branch.members} | {root.name}
        for name in members & self.steps.keys():
            del self.steps[name], self.merged[name]
        self.refusals = [refusal for refusal in self.refusals if refusal.site not in members]
        self.steps[root.name] = MergeStep(root.name, tuple(parts), tree)
        self.merged[root.name] = [self._decision(root, part, kind) for part in parts]

    def _decision(self, root: Value, part: Part, kind: str) -> MergeDecision:
        branch = part.branch
        assert branch.layer is not None
        into = self.label(self.by_name[branch.layer])
        others = tuple(name for name in branch.names if name != into)
        known = bool(self.facts.shapes(root))
        what = list(others)
        if part.has_identity:
            what.append("the identity")
        if not what:
            what_else = "an addition of zero" if adds_zero(self.facts, root) else "a multiplication by constants"
            detail = f"{what_else} merged into {into}."
        else:
            detail = f"{listed(tuple(what))} merged into {into}."
        return MergeDecision(
            into=into,
            merged=others,
            action="merge",
            kind=kind if kind != "factor" or not what else "sum",
            reason=None,
            detail=detail,
            macs_before=branch.cost if known else None,
            macs_after=self.cost_now(branch) if known else None,
            site=root.name,
            identity=part.has_identity,
        )

    def refuse(self, site: Value, merged: tuple[str, ...], into: str, refusal: Refusal) -> None:
        """Note what does not merge, and why."""
        names = " and ".join(f"`{name}`" for name in (*merged[:2], into)) if merged else f"`{into}`"
        why = rendered(refusal, self.facts)
        self.refusals.append(
            MergeDecision(
                into=into,
                merged=merged,
                action="refuse",
                kind="",
                reason=refusal.reason,
                detail=f"{names} {'stay apart' if merged else 'stays'}: {why}.",
                because=why,
                macs_before=None,
                macs_after=None,
                site=site.name,
            )
        )
