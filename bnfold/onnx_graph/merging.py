"""Put one convolution in the place of several, in an ONNX graph that may be changed; decide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from torch import Tensor

from bnfold import ops
from bnfold.fold.merge.branches import Branch
from bnfold.fold.merge.geometry import Geometry
from bnfold.fold.merge.merged import Rest, merged_weights
from bnfold.fold.merge.steps import MergeStep, Part
from bnfold.fold.plan import Steps
from bnfold.fold.rounded import FoldedWeights
from bnfold.onnx_graph.constants import is_standard

if TYPE_CHECKING:
    from bnfold.onnx_graph.rewrite import Rewriter

__all__ = ["Merging"]


class Merging:
    """Carries out the merges of a plan, after its folds.

    Args:
        rewriter: of the graph; its facts are asked here and not any more.
        steps: the plan's.

    Raises:
        NotFiniteError: a weight overflowed when rounded; ``error.node`` is the root of the step.
    """

    def __init__(self, rewriter: Rewriter, steps: Steps) -> None:
        self.rewriter = rewriter
        self.graph = rewriter.graph
        self.steps = steps.merges
        self.reader = FoldedWeights(rewriter.facts, steps.absorbed)
        self.weights = {step.root: [self._weights(part.branch, step) for part in step.parts] for step in self.steps}

    def run(self) -> None:
        """Do all of them, in order."""
        for step in self.steps:
            self._merge(step)

    def _merge(self, step: MergeStep) -> None:
        root = self._node(step.root)
        layers = [self._layer(part, root) for part in step.parts]
        total = Rest(step, self.rewriter.value, lambda *terms: self._sum(root, *terms)).of(step.root)
        for layer in layers:
            value = layer.outputs[0]
            total = (value if total is None else self._sum(root, value, *total)), 1
        assert total is not None
        self.rewriter.put_through(root, total[0])
        for knot in step.tree:  # from the root inwards
            self._remove(self._node(knot.node))
        for part, layer in zip(step.parts, layers, strict=True):
            self._let_go(part, layer)
        for layer, weights in zip(layers, self.weights[step.root], strict=True):
            for place, tensor in enumerate(weights, start=1):
                self.rewriter.set(layer, place, tensor)

    def _weights(self, branch: Branch, step: MergeStep) -> tuple[Tensor, Tensor]:
        assert branch.layer is not None
        call = self.rewriter.facts.call(self.rewriter.by_name[branch.layer])
        assert isinstance(call, ops.Convolution)
        dtype = self.rewriter.rounded_to(call)  # ONNX has weight and bias in one type
        return merged_weights(branch, step, self.reader, self.reader.own(branch.layer)[0], (dtype, dtype))

    def _node(self, name: str) -> ir.Node:
        node = self.rewriter.by_name[name].maker
        assert node is not None
        return node

    def _layer(self, part: Part, root: ir.Node) -> ir.Node:
        """Put a convolution before the first of the nodes that it stands for; its weights are still the old ones."""
        branch = part.branch
        assert branch.layer is not None
        old = self._node(branch.layer)
        source = self.rewriter.value(branch.source)
        layer = ir.Node("", "Conv", [source, *old.inputs[1:]], _attributes(branch.geometry), name=old.name)
        output, like = layer.outputs[0], self.rewriter.value(part.terms[0])
        output.name = self.rewriter.names.free(f"{old.name or root.outputs[0].name}_merged")
        output.type, output.shape = like.type, like.shape
        members = {self._node(member) for member in branch.members}
        self.graph.insert_before(next(node for node in self.graph if node in members), layer)
        return layer

    def _sum(self, root: ir.Node, left: ir.Value, right: ir.Value, sign: int) -> ir.Value:
        op = "Add" if sign > 0 else "Sub"
        name = self.rewriter.names.free_node(f"{root.name}_{op.lower()}") if root.name else None
        node = ir.Node("", op, [left, right], name=name)
        output = node.outputs[0]
        output.name = self.rewriter.names.free(f"{root.outputs[0].name}_rest")
        output.type, output.shape = root.outputs[0].type, root.outputs[0].shape
        self.graph.insert_before(root, node)
        return output

    def _let_go(self, part: Part, layer: ir.Node) -> None:
        """Remove the nodes that a convolution stands for; who asks for the shape of a term asks for that of its own."""
        members = [self._node(name) for name in part.branch.members]
        for name in part.terms:
            value = self.rewriter.value(name)
            if value.producer() in members:
                for use in list(value.uses()):
                    if use.node.op_type in ("Shape", "Size") and is_standard(use.node):
                        use.node.replace_input_with(use.idx, layer.outputs[0])
        order = {node: place for place, node in enumerate(self.graph)}
        for node in sorted((node for node in members if node in order), key=order.__getitem__, reverse=True):
            self._remove(node)
            if node.graph is self.graph and node.name and node.name == layer.name:  # its shape is still asked for
                node.name = self.rewriter.names.free_node(f"{node.name}_unmerged")

    def _remove(self, node: ir.Node) -> None:
        if node.graph is self.graph and not any(self.rewriter.facts.is_used(output) for output in node.outputs):
            self.graph.remove(node, safe=True)


def _attributes(geometry: Geometry) -> list[ir.Attr]:
    before, after = zip(*geometry.padding, strict=True)
    return [
        ir.AttrInt64s("dilations", geometry.dilation),
        ir.AttrInt64("group", geometry.groups),
        ir.AttrInt64s("kernel_shape", geometry.kernel),
        ir.AttrInt64s("pads", (*before, *after)),
        ir.AttrInt64s("strides", geometry.stride),
    ]
