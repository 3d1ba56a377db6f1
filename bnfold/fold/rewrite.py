"""Change what the plan says, in a copy of the graph; decide nothing.

The result is a new :class:`torch.fx.GraphModule` that holds new weights where something was absorbed, and shares the
memory of all others with the model. Layers and parameters are wrapped anew, so that ``.to()``, ``.half()`` or
``requires_grad_()`` on the result leaves the model alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from bnfold import ops
from bnfold.affine import ChannelAffine, affine_of_statistics, exact_terms
from bnfold.fold.explicit import ExplicitAffine
from bnfold.fold.merge.carrying_out import Merging
from bnfold.fold.module import FoldedModule
from bnfold.fold.plan import Absorption, Explicit, Plan
from bnfold.fold.rounded import FoldedWeights, absorbed_weights
from bnfold.graph.captured import NARROW, Capture
from bnfold.graph.facts import Facts
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.reading import put_arguments
from bnfold.graph.requires import require_rank
from bnfold.graph.runs import constant_value
from bnfold.graph.shells import fresh_shell, shell, wrapped

__all__ = ["folded_capture", "rewrite"]


def rewrite(capture: Capture, plan: Plan) -> GraphModule:
    """Return the folded model.

    Args:
        capture: the graph and the model; neither is changed.
        plan: made from this capture, or from one of the same model in another dtype.

    Raises:
        NotFiniteError: a weight overflowed when rounded; ``error.node`` names the call whose BatchNorm must not fold.
    """
    return _Rewriter(capture, plan).run()


def folded_capture(capture: Capture, plan: Plan, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> Capture:
    """Return the graph as the folds leave it, with the layers' weights still those of the model: to look at.

    Args:
        capture: the graph and the model; neither is changed.
        plan: made from this capture.
        shapes: of the values of the capture, by name, for each of two batch sizes: a fold changes none.
    """
    steps = replace(plan.steps, absorbed={}, merges=())
    module = _Rewriter(capture, replace(plan, steps=steps)).run()
    found = tuple({node: known[node.name] for node in module.graph.nodes if node.name in known} for known in shapes)
    return replace(capture, graph=module.graph, root=module, shapes=found, constants={}, _cache={})


class _Rewriter:
    def __init__(self, capture: Capture, plan: Plan) -> None:
        self.capture = capture
        self.plan = plan
        self.facts = Facts.of(capture)
        self.graph = Graph()
        self.by_name = {node.name: node for node in capture.graph.nodes}
        self.held: dict[str, Any] = {}  # what the new module holds, by name
        self.shells: dict[int, Any] = {}  # of layers and tensors of the model, by identity
        self.clones: dict[str, list[tuple[list[Absorption], str]]] = {}

    def run(self) -> GraphModule:
        by_name = self.by_name
        steps = self.plan.steps
        copies = self._copied()
        for name, rank in steps.guards.items():
            self._guard(by_name[name], copies, rank)
        merged = {name for step in steps.merges for part in step.parts for name in part.branch.members}
        for name, absorptions in steps.absorbed.items():
            if name in merged:
                continue
            self._absorb(by_name[name], copies[by_name[name]], absorptions)
        for name, explicit in steps.explicit.items():
            self._make_explicit(by_name[name], copies[by_name[name]], explicit)
        for name in steps.constant:
            self._make_constant(by_name[name], copies[by_name[name]])
        for name, (term, total) in steps.dropped.items():
            self._drop_term(copies[by_name[name]], copies[by_name[term]], copies[by_name[total]])
        for name in steps.removed:
            if copies[by_name[name]].name == name:
                self._remove(by_name[name], copies[by_name[name]])
        self._remove_identities()
        Merging(self.graph, FoldedWeights(self.facts, steps.absorbed), self._hold_layer).run(steps.merges)
        self._sweep()
        self._hold_the_rest()
        module = FoldedModule(self.held, self.graph, f"Folded{type(self.capture.root).__name__}")
        for part in module.modules():
            part.training = False
        return module

    # --- the graph ------------------------------------------------------------------------------------------------

    def _copied(self) -> dict[Node, Node]:
        """Copy the graph, and return each node's copy; that of a BatchNorm that is simply left out is its input's."""
        copies: dict[Node, Node] = {}
        removed = set(self.plan.steps.removed) - self.plan.steps.guards.keys()
        for old in self.capture.graph.nodes:
            if old.name in removed:
                call = self.facts.call(old)
                assert isinstance(call, ops.BatchNorm)
                if not self._may_need_order(old, call.input):
                    copies[old] = copies[call.input]
                    continue
            # arguments are given after the node is made: the way of `Graph.node_copy` looks through them twice
            new = copies[old] = self.graph.create_node(old.op, old.target, (), {}, old.name, old.type)
            new.args = map_arg(old.args, copies.__getitem__)
            if old.kwargs:
                new.kwargs = map_arg(old.kwargs, copies.__getitem__)
            new.meta.update(old.meta)
        self.graph.set_codegen(copy.copy(self.capture.graph._codegen))
        return copies

    def _remove(self, old: Node, new: Node) -> None:
        call = self.facts.call(old)
        assert isinstance(call, ops.BatchNorm)
        index = call.node.all_input_nodes.index(call.input)
        source = new.all_input_nodes[index]
        if self._may_need_order(old, call.input):
            with self.graph.inserting_before(new):
                source = self.graph.call_method("contiguous", (source,))
        new.replace_all_uses_with(source)
        self.graph.erase_node(new)

    def _may_need_order(self, old: Node, value: Node) -> bool:
        """Whether a view follows that a BatchNorm made possible: its output is dense where its input was a slice."""
        strided = False
        while (call := self.facts.call(value)) is not None and (
            call.memory == "view" or isinstance(call, ops.BatchNorm)
        ):
            strided = strided or call.strides
            value = call.inputs[0]
        return strided and any(self.facts.index[view] > self.facts.index[old] for view in self._strict_views)

    @cached_property
    def _strict_views(self) -> list[Node]:
        """Calls that raise for a value which is not dense in memory."""
        strict = {"view", torch.ops.aten.view.default}
        return [node for node in self.facts.index if node.target in strict]

    def _drop_term(self, batchnorm: Node, term: Node, total: Node) -> None:
        """Let a sum of two be its other term; remove the term and what passed the BatchNorm's value on to it."""
        rest = next(value for value in total.all_input_nodes if value is not term)
        total.replace_all_uses_with(rest)
        self.graph.erase_node(total)
        node = term
        while node is not batchnorm:
            before = node.all_input_nodes[0]
            self.graph.erase_node(node)
            node = before
        self.graph.erase_node(batchnorm)

    def _remove_identities(self) -> None:
        """Remove calls of ``nn.Identity``: each costs a Python call at run time, and computes nothing."""
        for node in list(self.graph.nodes):
            if node.op != "call_module" or str(node.target) in self.held or len(node.args) != 1:
                continue
            layer = self.capture.module(str(node.target))
            if type(layer) is nn.Identity and not carries_hooks(layer) and isinstance(node.args[0], Node):
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)

    def _guard(self, old: Node, copies: dict[Node, Node], rank: int) -> None:
        call = self.facts.call(old)
        value = old.all_input_nodes[0] if call is None else call.inputs[0]
        with self.graph.inserting_before(copies[old]):
            self.graph.call_function(require_rank, (copies[value], rank, self.facts.name(old)))

    def _sweep(self) -> None:
        """Remove what nobody needs any more: reads of parameters, and what was computed from them alone."""
        for node in reversed(list(self.graph.nodes)):
            if node.users or node.op in ("placeholder", "output"):
                continue
            old = self.by_name.get(node.name)
            if node.op == "get_attr" or (old is not None and old.op == node.op and self.facts.is_constant(old)):
                self.graph.erase_node(node)

    # --- weights --------------------------------------------------------------------------------------------------

    def _absorb(self, old: Node, new: Node, absorptions: list[Absorption]) -> None:
        call = self.facts.call(old)
        assert isinstance(call, ops.Absorber)
        if new.op == "call_module":
            self._absorb_in_layer(call, new, absorptions)
        else:
            weight, bias = self._absorbed(call, absorptions)
            stem = call.weight if isinstance(call.weight, str) else f"{old.name}.weight"
            values = {"weight": self._attribute(new, old, stem, weight)}
            if bias is not None:
                name = call.bias if isinstance(call.bias, str) else stem.removesuffix("weight").rstrip(".") + ".bias"
                values["bias"] = self._attribute(new, old, name.lstrip("."), bias)
            put_arguments(old, new, values)

    def _absorb_in_layer(self, call: ops.Absorber, new: Node, absorptions: list[Absorption]) -> None:
        target = str(new.target)
        for same, name in self.clones.get(target, []):
            if _equal(same, absorptions):
                new.target = name
                return
        weight, bias = self._absorbed(call, absorptions)
        names = call.held_as
        layer = fresh_shell(self.capture.module(target), self.shells, without=names)
        for name, value in zip(names, (weight, bias), strict=True):
            if value is not None:
                layer.__dict__.pop(name, None)  # a bias that was plainly None
                layer._parameters[name] = value
        if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
            layer.affine = True
        elif isinstance(layer, nn.LayerNorm):
            layer.elementwise_affine = True
        name = self._free_name(target, call.node)
        self.held[name] = layer
        new.target = name
        self.clones.setdefault(target, []).append((absorptions, name))

    def _absorbed(self, call: ops.Absorber, absorptions: list[Absorption]) -> tuple[nn.Parameter, nn.Parameter | None]:
        site = self.by_name[self.plan[absorptions[0].batchnorm].site]
        batchnorm = self.facts.call(site)
        assert isinstance(batchnorm, ops.BatchNorm)
        statistics = self._tensor(batchnorm.running_mean)
        assert statistics is not None
        weight, bias, name = self._tensor(call.weight), self._tensor(call.bias), self.facts.name(call.node)
        return absorbed_weights(call, weight, bias, absorptions, statistics, name)

    def _make_explicit(self, old: Node, new: Node, explicit: Explicit) -> None:
        call = self.facts.call(old)
        assert isinstance(call, ops.BatchNorm)
        if call.by_constants and not explicit.composed:
            return  # it is as it should be
        assert call.stays is None
        mean, variance = self._tensor(call.running_mean), self._tensor(call.running_var)
        weight, bias = self._tensor(call.weight), self._tensor(call.bias)
        assert mean is not None
        assert variance is not None
        if explicit.composed:
            affine = affine_of_statistics(mean, variance, weight, bias, call.eps)
            for later in explicit.composed:
                affine = ChannelAffine(later.scale.to(mean.device), later.shift.to(mean.device)).after(affine)
            dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
            alpha, beta = affine.scale.to(dtype), affine.shift.to(dtype)
        else:
            alpha, beta = exact_terms(mean, variance, weight, bias, call.eps)
        narrow = old.meta.get(NARROW)
        if narrow is not None:
            alpha, beta = alpha.to(narrow), beta.to(narrow)
        layer = ExplicitAffine(alpha, beta, requires_grad=weight is not None and weight.requires_grad, dim=call.dim)
        name = self._free_name(call.name or old.name, old)
        self.held[name] = layer
        if new.op == "call_module":
            new.target = name
            return
        index = call.node.all_input_nodes.index(call.input)
        source = new.all_input_nodes[index]
        with self.graph.inserting_before(new):
            affine_node = self.graph.call_module(name, (source,))
        affine_node.meta.update(old.meta)
        new.replace_all_uses_with(affine_node)
        self.graph.erase_node(new)
        affine_node._rename(old.name)

    def _make_constant(self, old: Node, new: Node) -> None:
        value = constant_value(self.capture, old)
        new.replace_all_uses_with(self._attribute(new, old, f"{old.name}.value", value))
        self.graph.erase_node(new)

    def _hold_layer(self, like: str, layer: nn.Module) -> str:
        """Hold a layer that stands for a call, and return its name."""
        old = self.by_name[like]
        call = self.facts.call(old)
        wanted = str(old.target) if old.op == "call_module" else old.name
        if old.op != "call_module" and isinstance(call, ops.Absorber) and isinstance(call.weight, str):
            wanted = call.weight.removesuffix(".weight") if call.weight.endswith(".weight") else old.name
        name = self._free_name(wanted, old)
        self.held[name] = layer
        return name

    def _attribute(self, before: Node, old: Node, wanted: str, value: Any) -> Node:
        """Hold a tensor and return a node, before another, that reads it."""
        name = self._free_name(wanted, old)
        self.held[name] = value
        with self.graph.inserting_before(before):
            return self.graph.get_attr(name)

    def _tensor(self, source: ops.Source) -> Tensor | None:
        return self.facts.constant(source)

    # --- names and shells -----------------------------------------------------------------------------------------

    def _free_name(self, wanted: str, old: Node) -> str:
        """Return ``wanted`` if only ``old`` uses what has that name in the model, else a name that is not taken."""
        if self._is_inside_a_layer(wanted):  # setting `conv.weight` would change the layer `conv` for its other calls
            wanted = wanted.replace(".", "_")
        alone = [node for node in self.names.get(wanted, ()) if node is not old] == []
        if alone and wanted not in self.held:
            return wanted
        count = 1
        while (name := f"{wanted}_folded{count}") in self.held or name in self.names:
            count += 1
        return name

    def _is_inside_a_layer(self, name: str) -> bool:
        """Whether the name is that of a part of something that is, or will be, called as a layer."""
        parts = name.split(".")
        outer = [".".join(parts[:length]) for length in range(1, len(parts))]
        return any(path in self.held or path in self.facts.module_calls for path in outer)

    def _is_written(self, name: str) -> bool:
        old = self.by_name.get(name)
        return old is not None and (self.facts.memory.written_in_place(old) or self.facts.memory.updated(old))

    @cached_property
    def names(self) -> dict[str, list[Node]]:
        """For each name that the old graph mentions, and for each beginning of it, the nodes that use it."""
        names: dict[str, list[Node]] = {}
        for node in self.capture.graph.nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            target, users = str(node.target), [node] if node.op == "call_module" else list(node.users)
            while target:
                names.setdefault(target, []).extend(users)
                target = target.rpartition(".")[0]
        return names

    def _hold_the_rest(self) -> None:
        """Hold what the graph reads unchanged, and rename what a GraphModule has no room for."""
        for node in self.graph.nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            target = str(node.target)
            held = self.held.get(target)
            if held is None:
                if node.op == "call_module":
                    held = shell(self.capture.module(target), self.shells)
                else:
                    held = _shell_of_attribute(self.capture, target, self.shells)
                    held = held.to(node.meta[NARROW]) if NARROW in node.meta else held
                    if isinstance(held, Tensor) and not isinstance(held, nn.Parameter) and self._is_written(node.name):
                        held = held.clone()  # the folded model keeps a state of its own
            if target.partition(".")[0] in _RESERVED:
                node.target = f"model_{target}"
                self.held.pop(target, None)
            self.held[str(node.target)] = held


# A layer of one of these names would hide what makes a GraphModule work, and a GraphModule would hide it.
_RESERVED = frozenset(name for name in dir(GraphModule) if not name.startswith("__"))


def _shell_of_attribute(capture: Capture, target: str, shells: dict[int, Any]) -> Any:
    constant = capture.constants.get(target)
    if constant is not None:
        return constant.detach()
    owner, _, attribute = target.rpartition(".")
    value = getattr(capture.module(owner) if owner else capture.root, attribute)
    return shell(value, shells) if isinstance(value, nn.Module) else wrapped(value, shells)


def _equal(first: list[Absorption], second: list[Absorption]) -> bool:
    return len(first) == len(second) and all(
        a.side == b.side and torch.equal(a.affine.scale, b.affine.scale) and torch.equal(a.affine.shift, b.affine.shift)
        for a, b in zip(first, second, strict=True)
    )
