"""Which terms of a sum become one convolution."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, TypeGuard

from bnfold import ops
from bnfold.fold.merge.branches import Branch, Sum, Term
from bnfold.fold.merge.found import factor_of
from bnfold.fold.merge.geometry import Geometry, Place, placed
from bnfold.fold.merge.steps import Knot, Part
from bnfold.ops.interface import Value
from bnfold.ops.refusal import Refusal

if TYPE_CHECKING:
    from bnfold.fold.merge.planner import Merger

__all__ = ["SumOfBranches", "more_multiplications"]


@dataclass(frozen=True, eq=False)
class _Found:
    """A term of the sum: its value and sign."""

    value: Value
    sign: int


@dataclass(eq=False)
class _Group:
    """Terms that become one convolution, the first of which gives the kernel."""

    geometry: Geometry
    source: str
    cost: int
    terms: list[tuple[_Found, Branch, Place]] = field(default_factory=list)

    @property
    def seed(self) -> Branch:
        return self.terms[0][1]


class SumOfBranches:
    """One sum, as a whole, seen from its root."""

    def __init__(self, merger: Merger, root: Value) -> None:
        self.merger = merger
        self.facts = merger.facts
        self.root = root
        self.tree: list[Value] = []
        self.found: list[_Found] = []
        self.groups: list[_Group] = []
        self.left: list[tuple[_Found, Refusal]] = []

    def decide(self) -> None:
        """Merge what can be merged, and note what cannot."""
        if self._is_inside_another():
            return
        self._collect(self.root, 1)
        for found in sorted(self.found, key=self._by_size):
            branch = self._branch(found)
            if branch is not None and branch.layer is not None:
                self._place(found, branch)
        for found in self.found:
            branch = self._branch(found)
            if branch is None or branch.layer is None:
                self._place_identity_or_pool(found, branch)
        self._commit()

    # --- the terms ------------------------------------------------------------------------------------------------

    def _is_inside_another(self) -> bool:
        value = self.root
        while len(readers := self.facts.readers(value)) == 1:
            (reader,) = readers
            call = self.facts.call(reader)
            if isinstance(call, ops.Add):
                return call.left is not call.right
            if call is None or not call.passes_on or self.facts.hooked(reader):
                return False
            value = reader
        return False

    def _collect(self, value: Value, sign: int) -> None:
        call = self.facts.call(value)
        once = value is self.root or len(self.facts.readers(value)) == 1
        if isinstance(call, ops.Add) and call.left is not call.right and once:
            self.tree.append(value)
            self._collect(call.left, sign)
            self._collect(call.right, sign * call.sign)
        elif once and value not in self.merger.branches and self._passes(call):
            self.tree.append(value)
            self._collect(call.inputs[0], sign)
        else:
            self.found.append(_Found(value, sign))

    def _passes(self, call: ops.Operation | None) -> TypeGuard[ops.Operation]:
        if call is None or not call.passes_on or self.facts.hooked(call.node):
            return False
        return len(self.facts.readers(call.inputs[0])) == 1

    def _branch(self, found: _Found) -> Branch | None:
        readers = self.facts.readers(found.value)
        return self.merger.branches.get(found.value) if len(readers) == 1 else None

    def _by_size(self, found: _Found) -> tuple[int, int]:
        branch = self.merger.branches.get(found.value)
        return (-prod(branch.geometry.kernel), branch.geometry.groups) if branch is not None else (0, 0)

    # --- groups ---------------------------------------------------------------------------------------------------

    def _place(self, found: _Found, branch: Branch) -> None:
        """Put a convolution into the first group that takes it, else make it a group of its own."""
        options = [(branch, self.merger.cost_now(branch))]
        longer = self.merger.longer.get(found.value)
        if longer is not None and longer[0] is not branch and self.merger.bias_allows(longer[0]):
            options.append(longer)
        refusal: Refusal | None = None
        for group in self.groups:
            for option, cost in options:
                why = self._joined(group, found, option, cost)
                if why is None:
                    return
                refusal = refusal or why
        if refusal is not None:
            self.left.append((found, refusal))
        group = _Group(branch.geometry, branch.source, options[0][1])
        group.terms.append((found, branch, _whole(branch.geometry)))
        self.groups.append(group)

    def _joined(self, group: _Group, found: _Found, branch: Branch, cost: int) -> Refusal | None:
        if branch.source != group.source:
            return Refusal("different-inputs", "they read `{one}` and `{other}`", one=group.source, other=branch.source)
        if self.root.name in self.merger.refused:
            return self.merger.refused[self.root.name]
        fits = placed(group.geometry, branch.geometry)
        if isinstance(fits, Refusal):
            return fits
        place, geometry = fits
        after = geometry.macs * self.merger.positions(group.seed)
        if after > group.cost + cost:
            return more_multiplications(after / max(1, group.cost + cost))
        if not self.merger.same_type(group.seed, branch):
            return Refusal("weight-type", "their weights are of different dtypes or devices")
        if self.merger.written(branch, (*group.seed.members, *branch.members), self.root):
            return Refusal("mutated", "their input is written to in between")
        group.geometry, group.cost = geometry, after
        group.terms.append((found, branch, place))
        return None

    def _place_identity_or_pool(self, found: _Found, branch: Branch | None) -> None:
        """Put what has no weights beside a convolution of the same value."""
        for group in self.groups:
            option = branch if branch is not None else self._identity(found.value, group)
            if option is None or option.source != group.source:
                continue
            why = self._joined(group, found, option, 0)
            if why is None:
                return
            if not self.facts.call(found.value) or branch is not None:
                self.left.append((found, why))

    def _identity(self, value: Value, group: _Group) -> Branch | None:
        """Return a value as the identity of the group's source, times constants, if it is that."""
        steps: list[Value] = []
        node = value
        while node.name != group.source:
            before = self._before(node)
            if before is None:
                return None
            steps.append(node)
            node = before
        if group.geometry.inputs != group.geometry.outputs:
            return None
        branch: Branch | None = self.merger.identity(node, group.seed)
        for step in reversed(steps):
            assert branch is not None
            passing = self.facts.call(step)
            if passing is not None and passing.passes_on:
                branch = replace(branch, members=(*branch.members, step.name))
            else:
                branch = self.merger.scaled(branch, step)
            if branch is None:
                return None
        return branch

    def _before(self, node: Value) -> Value | None:
        """The value that a node passes on or multiplies by constants, for nobody but the sum."""
        if len(self.facts.readers(node)) != 1 or self.facts.hooked(node):
            return None
        call = self.facts.call(node)
        if call is not None and call.passes_on:
            return call.inputs[0]
        factor = factor_of(self.facts, node)
        if factor is None or self.facts.written_by(node):
            return None
        return factor.value

    # --- outcome --------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        merging = [group for group in self.groups if len(group.terms) > 1]
        whole = len(merging) == 1 and len(merging[0].terms) == len(self.found)
        if merging:
            refusal = self._tree_refusal(whole=whole)
            if refusal is not None:
                self.left = [(term[0], refusal) for group in merging for term in group.terms[1:]]
                merging = []
        if merging:
            parts = [
                Part(self._sum(group, whole=whole), tuple(found.value.name for found, _, _ in group.terms))
                for group in merging
            ]
            self.merger.commit(self.root, parts, "sum", tuple(self._knot(node) for node in self.tree))
            if whole:
                self.merger.branches[self.root] = parts[0].branch
        self._refuse({found for group in merging for found, _, _ in group.terms})

    def _knot(self, node: Value) -> Knot:
        call = self.facts.call(node)
        if isinstance(call, ops.Add):
            return Knot(node.name, ((call.left.name, 1), (call.right.name, call.sign)))
        assert call is not None
        return Knot(node.name, ((call.inputs[0].name, 1),))

    def _sum(self, group: _Group, *, whole: bool) -> Sum:
        branches = [branch for _, branch, _ in group.terms]
        members = [name for branch in branches for name in branch.members]
        if whole:
            members += [node.name for node in reversed(self.tree)]
        return Sum(
            group.source,
            group.geometry,
            tuple(dict.fromkeys(members)),
            group.seed.layer,
            sum(branch.cost for branch in branches),
            tuple(dict.fromkeys(name for branch in branches for name in branch.names)),
            terms=tuple(Term(branch, found.sign, place) for found, branch, place in group.terms),
        )

    def _tree_refusal(self, *, whole: bool) -> Refusal | None:
        """Why the sum must stay as it is."""
        for node in self.tree:
            if self.facts.hooked(node):
                return Refusal("hooks", "`{value}` carries hooks", value=node)
            readers = self.facts.readers(node)
            if not whole and node is not self.root and any(user not in readers for user in self.facts.users(node)):
                return Refusal("shape-read", "the shape of `{value}` is read", value=node)
            for target in self.facts.written_by(node):
                if self._is_observed(target, node):
                    return Refusal("mutated", "`{value}` writes to a value that is read elsewhere", value=node)
        return None

    def _is_observed(self, target: Value, writer: Value) -> bool:
        """Whether anything besides this sum sees what an in-place sum writes to ``target``."""
        inside = {*self.tree, *(found.value for found in self.found)}
        for node in self.facts.sharing_memory(target):
            if self.facts.is_input(node) or isinstance(self.facts.call(node), ops.Constant):
                return True
            after = self.facts.index[writer]
            for reader in self.facts.readers(node):
                late = after < self.facts.index[reader]
                if late and reader not in inside and node not in self._after_root:
                    return True
        return False

    @cached_property
    def _after_root(self) -> set[Value]:
        """The root and all that is computed from it."""
        seen = {self.root}
        waiting = [self.root]
        while waiting:
            for user in self.facts.users(waiting.pop()):
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return seen

    def _refuse(self, done: set[_Found]) -> None:
        """Note the convolutions of this sum that stay beside another."""
        layers = [found for found in self.found if self._convolution(found.value) is not None]
        for found in layers:
            if found in done:
                continue
            others = [other for other in layers if other is not found]
            source = self._source(found)
            identity = any(other.value is source for other in self.found)
            if not others and not identity:
                continue
            why = self._why(found, others, identity=identity)
            if why is None:
                continue
            into = self._label(others[0]) if others else self._label(found)
            merged = (self._label(found),) if others else ()
            self.merger.refuse(self.root, merged, into, why)

    def _why(self, found: _Found, others: list[_Found], *, identity: bool) -> Refusal | None:
        for left, refusal in self.left:
            if left is found:
                return refusal
        node = self._convolution(found.value)
        assert node is not None
        call = self.facts.call(found.value)
        if isinstance(call, ops.BatchNorm):
            return Refusal("kept-batchnorm", "the {op} stays between", op=call)
        if isinstance(call, ops.ExplicitAffine):
            return Refusal("explicit-affine", "the explicit {op} stays between", op=call)
        if node in self.merger.opaque:
            refusal = self.merger.opaque[node]
            return None if refusal.reason == "kept-by-request" else refusal
        if len(self.facts.readers(found.value)) > 1:
            return Refusal("several-readers", "the output of `{value}` is also read elsewhere", value=node)
        if any(left in others for left, _ in self.left):  # the other one could not join this one
            return None
        return Refusal("no-place", "the identity has no place in its kernel") if identity and not others else None

    def _convolution(self, value: Value) -> Value | None:
        """The convolution call that a term is the value of, also through a BatchNorm that stays."""
        node = value
        while True:
            call = self.facts.call(node)
            if isinstance(call, ops.Convolution):
                return node
            if call is None or not (call.passes_on or isinstance(call, (ops.BatchNorm, ops.ExplicitAffine))):
                return None
            node = call.inputs[0]

    def _source(self, found: _Found) -> Value | None:
        node = self._convolution(found.value)
        call = None if node is None else self.facts.call(node)
        return call.input if isinstance(call, ops.Convolution) else None

    def _label(self, found: _Found) -> str:
        node = self._convolution(found.value)
        assert node is not None
        return self.merger.label(node)


def _whole(geometry: Geometry) -> Place:
    dims = len(geometry.kernel)
    return Place((0,) * dims, (1,) * dims)


def more_multiplications(times: float) -> Refusal:
    """The refusal of a merge that would cost more than it saves."""
    text = "as one they would need {times} times the multiplications"
    return Refusal("more-multiplications", text, times=f"{times:.3g}")
