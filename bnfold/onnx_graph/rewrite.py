"""Change what a plan says, in an ONNX graph that may be changed; decide nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bnfold import ops
from bnfold.affine import ChannelAffine, affine_of_statistics
from bnfold.errors import NotFiniteError
from bnfold.fold.plan import Absorption, Explicit, Plan
from bnfold.fold.rounded import absorbed_weights
from bnfold.onnx_graph.constants import array_of, is_standard, torch_type
from bnfold.onnx_graph.facts import OnnxFacts
from bnfold.onnx_graph.merging import Merging
from bnfold.onnx_graph.spellings.quantised import dequantised
from bnfold.onnx_graph.values import OnnxValue, free_name

__all__ = ["Names", "rewrite"]

_DEPTHWISE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""The types for which a convolution is the best form of an affine; ONNX Runtime has no kernel for the others."""


_LARGE = 1 << 26
"""From so many bytes in float32 on a new weight is computed where it is written, and not held."""


_PIECE = 1 << 20
"""Elements of such a weight that are computed at a time."""


@dataclass(frozen=True, eq=False)
class Later:
    """A weight that is computed each time that it is asked for, in pieces along its first dimension where that can be.

    Attributes:
        make: computes the whole, or some rows or some columns of it.
        shape: of it.
        in_pieces: whether it can be computed in pieces.
        turned: whether it is the transpose of what is computed.
    """

    make: Callable[[slice, slice], Tensor]
    shape: tuple[int, ...]
    in_pieces: bool
    turned: bool = False

    def t(self) -> Later:
        """Return its transpose."""
        return replace(self, shape=tuple(reversed(self.shape)), turned=not self.turned)

    def whole(self) -> Tensor:
        """Compute it at once."""
        made = self.make(_ALL, _ALL)
        return made.t() if self.turned else made

    def pieces(self) -> Iterator[Tensor]:
        """Compute it from its beginning to its end."""
        if not self.in_pieces:
            yield self.whole()
            return
        for part in _parts(self.shape):
            yield self.make(_ALL, part).t() if self.turned else self.make(part, _ALL)


_ALL = slice(None)


def _parts(shape: Sequence[int]) -> Iterator[slice]:
    """Cut a first dimension into parts of about ``_PIECE`` elements."""
    step = max(1, _PIECE * shape[0] // max(1, prod(shape)))
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


class _Streamed(ir.LazyTensor):
    """A weight that is computed while it is written, so that not all of it is in memory."""

    def __init__(self, later: Later, dtype: ir.DataType) -> None:
        super().__init__(lambda: array_of(later.whole(), dtype), dtype, ir.Shape(later.shape))
        self._later = later

    def tofile(self, file: Any) -> None:
        """Write its bytes."""
        for piece in self._later.pieces():
            array_of(piece, self.dtype).tofile(file)


def _is_separable(call: ops.Absorber) -> bool:
    """Whether each row of a weight absorbs what comes after it by itself, and each column what comes before."""
    return isinstance(call, ops.Linear) or (isinstance(call, ops.Convolution) and call.groups == 1)


def _part_of(affine: ChannelAffine, part: slice) -> ChannelAffine:
    return ChannelAffine(affine.scale[part], affine.shift[part])


class Names:
    """All names of values in a model, and those of nodes: ONNX Runtime refuses two nodes of one name."""

    def __init__(self, model: ir.Model) -> None:
        self.taken: set[str] = set()
        self.nodes: set[str] = set()
        for graph in model.graphs():
            self.taken.update(str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                self.taken.update(str(output.name) for output in node.outputs)
                self.nodes.add(str(node.name))

    def free(self, wanted: str) -> str:
        """Return a name that no value has yet, as near to a wanted one as can be."""
        return free_name(wanted, self.taken)

    def free_node(self, wanted: str) -> str:
        """Return a name that no node has yet, as near to a wanted one as can be."""
        return free_name(wanted, self.nodes)


def rewrite(facts: OnnxFacts, plan: Plan, names: Names, *, large: int | None = None) -> None:
    """Carry out a plan in the graph of ``facts``, which are not to be asked any more afterwards.

    Args:
        facts: of the graph that is changed; the plan was made of it, or of the same graph in another type.
        plan: what to do.
        names: of the whole model; new ones are added.
        large: from so many bytes in float32 on a new weight is computed each time that it is asked for.

    Raises:
        NotFiniteError: a weight overflowed when rounded; ``error.node`` names the value. Nothing is changed then.
    """
    Rewriter(facts, plan, names, large).run()


class Rewriter:
    def __init__(self, facts: OnnxFacts, plan: Plan, names: Names, large: int | None) -> None:
        self.large = _LARGE if large is None else large
        self.facts = facts
        self.graph = facts.graph
        self.plan = plan
        self.names = names
        self.by_name = {value.name: value for value in facts.index}
        self.live = [node for node in self.graph if any(facts.is_used(output) for output in node.outputs)]
        self.instead: dict[ir.Value, ir.Value] = {}  # of values that are another by now
        self.used = [value for value in self.graph.initializers.values() if facts.is_used(value)]

    def run(self) -> None:
        steps = self.plan.steps
        sites = [*steps.removed, *steps.explicit, *steps.constant]
        places = {name: self._place(name) for name in sites}
        merging = Merging(self, steps)
        merged = {name for step in steps.merges for part in step.parts for name in part.branch.members}
        weights = {name: self._absorbed(name, taken) for name, taken in steps.absorbed.items() if name not in merged}
        affines = {name: self._affine(name, explicit) for name, explicit in steps.explicit.items()}
        values = {name: self._constant(name) for name in steps.constant}
        for name, (weight, bias) in weights.items():
            self._absorb(self.by_name[name], weight, bias)
        for name, (affine, dim, rank) in affines.items():
            if affine is not None:
                self._make_explicit(self.by_name[name], affine, dim, rank, places[name])
        for name, value in values.items():
            node = self._node(name)
            self.put_through(node, self.held(f"{name}.value", value, self._dtype(node)))
        for term, total in steps.dropped.values():  # in order: the sum before it may be one that lost a term
            node = self._node(total)
            rest = node.inputs[1 - list(node.inputs).index(self.value(term))]
            assert rest is not None
            self.put_through(node, rest)
        for name in steps.removed:
            node = self._node(name)
            source = node.inputs[places[name]]
            assert source is not None
            self.put_through(node, source)
        merging.run()
        self._sweep()

    # --- what is known before anything changes --------------------------------------------------------------------

    def _node(self, name: str) -> ir.Node:
        node = self.by_name[name].maker
        assert node is not None
        return node

    def value(self, name: str) -> ir.Value:
        """Return the value of the graph, as it is by now, for a name of the planner's."""
        value = self.by_name[name].value
        assert value is not None
        while value in self.instead:
            value = self.instead[value]
        return value

    def _place(self, name: str) -> int:
        """Which input of its node a BatchNorm normalises."""
        call = self.facts.call(self.by_name[name])
        assert isinstance(call, ops.BatchNorm)
        return list(self._node(name).inputs).index(call.input.value)

    def _absorbed(self, name: str, absorptions: list[Absorption]) -> tuple[Tensor | Later, Tensor | None]:
        """Weight and bias with what they absorb; a large weight is only tried."""
        call = self.facts.call(self.by_name[name])
        assert isinstance(call, ops.Absorber)
        shape = self.facts.shape_of(call.weight) or ()
        if prod(shape) * 4 < self.large:
            return self._weights(name, absorptions)
        in_pieces = _is_separable(call) and all(absorption.side in ("after", "before") for absorption in absorptions)
        bias: Tensor | None = None
        for rows in _parts(shape) if in_pieces else (_ALL,):
            part = self._weights(name, absorptions, rows)[1]
            if part is not None and rows != _ALL:
                bias = part.new_empty(shape[0]) if bias is None else bias  # at once: small ones would break up memory
                bias[rows] = part
            else:
                bias = part
        self._forget(name)

        def make(rows: slice, columns: slice) -> Tensor:
            made = self._weights(name, absorptions, rows, columns)[0]
            last = (rows.stop or shape[0]) >= shape[0] and (columns.stop or shape[1]) >= shape[1]
            if last:
                self._forget(name)
            return made

        return Later(make, shape, in_pieces), bias

    def _forget(self, name: str) -> None:
        """Give back the memory into which a weight in another file is mapped."""
        call: Any = self.facts.call(self.by_name[name])
        value = self.facts.parameters[call.weight].value if isinstance(call.weight, str) else None
        self.facts.forget(call.weight)
        if value is not None and isinstance(value.const_value, ir.ExternalTensor):
            with contextlib.suppress(BufferError):  # somebody looks at it
                value.const_value.release()

    def _weights(
        self, name: str, absorptions: list[Absorption], rows: slice = _ALL, columns: slice = _ALL
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with what they absorb, or some rows or columns of the weight; of columns the bias is none."""
        call = self.facts.call(self.by_name[name])
        assert isinstance(call, ops.Absorber)
        site = self.facts.call(self.by_name[self.plan[absorptions[0].batchnorm].site])
        assert isinstance(site, ops.BatchNorm)
        statistics = self.facts.constant(site.running_mean)
        assert statistics is not None
        weight, bias = self.facts.constant(call.weight), self.facts.constant(call.bias)
        if (rows, columns) != (_ALL, _ALL):
            assert weight is not None
            weight, bias = weight[rows, columns], None if bias is None else bias[rows]
            absorptions = [
                replace(each, affine=_part_of(each.affine, rows if each.side == "after" else columns))
                for each in absorptions
            ]
        new = absorbed_weights(call, weight, bias, absorptions, statistics, self.facts.name(call.node))
        dtype = self.rounded_to(call)
        rounded = [None if part is None else part.detach().to(dtype) for part in new]
        narrowed = [
            part for part, before in zip(rounded, new, strict=True) if before is not None and before.dtype != dtype
        ]
        if not all(bool(torch.isfinite(part).all()) for part in narrowed if part is not None):
            error = NotFiniteError(
                f"A weight of `{self.facts.name(call.node)}` is not finite in {dtype} after folding.",
                fix="Keep the BatchNormalization that folds into it, or convert the model to a wider type first.",
            )
            error.node = name  # type: ignore[attr-defined]
            raise error
        assert rounded[0] is not None
        return rounded[0], rounded[1]

    def rounded_to(self, call: ops.Absorber) -> torch.dtype:
        """The type that a weight has in the graph: what is computed of constants is in float64 here."""
        assert isinstance(call.weight, str)
        value = self.facts.parameters[call.weight].value
        found = None if value is None else self.facts.constants.dtype(value)
        return torch.float32 if found is None else torch_type(found)

    def _affine(self, name: str, explicit: Explicit) -> tuple[ChannelAffine | None, int, int | None]:
        """The affine that a site becomes, its dimension, and the number of dimensions; None to leave the node alone."""
        call = self.facts.call(self.by_name[name])
        assert isinstance(call, ops.BatchNorm)
        rank = self.facts.graph_rank(self.by_name[name])
        if call.by_constants and not explicit.composed:
            return None, call.dim, rank
        mean, variance, weight, bias = (
            self.facts.constant(source) for source in (call.running_mean, call.running_var, call.weight, call.bias)
        )
        assert mean is not None
        assert variance is not None
        affine = affine_of_statistics(mean, variance, weight, bias, call.eps)
        for later in explicit.composed:
            affine = later.after(affine)
        if not affine.is_finite:
            return None, call.dim, rank
        return affine, call.dim, rank

    def _constant(self, name: str) -> Tensor:
        call = self.facts.call(self.by_name[name])
        assert isinstance(call, ops.BatchNorm)
        mean, variance, weight, bias = (
            self.facts.constant(source) for source in (call.running_mean, call.running_var, call.weight, call.bias)
        )
        x = self.facts.constant(call.input)
        assert x is not None
        assert mean is not None
        assert variance is not None
        return affine_of_statistics(mean, variance, weight, bias, call.eps)(x.double(), call.dim)

    # --- weights --------------------------------------------------------------------------------------------------

    def _absorb(self, value: OnnxValue, weight: Tensor | Later, bias: Tensor | None) -> None:
        node = value.maker
        assert node is not None
        product = self.facts.product_before(node)
        scales = dequantised(node.inputs[1])
        if scales is not None:
            assert isinstance(weight, Tensor)
            self._scale(node, scales, weight, bias)
        elif product is not None:  # a product, and the sum after it
            self.set(product, 1, weight.t())
            assert bias is not None
            self.set(node, 0 if node.inputs[1] is product.outputs[0] else 1, bias)
        elif node.op_type == "MatMul":
            dtype = self.set(node, 1, weight.t())
            if bias is not None and bool((bias != 0).any()):
                held = self.held(f"{node.name or value.name}.bias", bias, dtype)
                self._insert_after(node, "Add", held)
        elif node.op_type == "Gemm":
            turned = "transB" not in node.attributes or not node.attributes["transB"].as_int()
            for name in ("alpha", "beta"):
                node.attributes.pop(name, None)
            self.set(node, 1, weight.t() if turned else weight)
            self.set(node, 2, bias)
        else:
            self.set(node, 1, weight)
            self.set(node, 2, bias)

    def _scale(self, node: ir.Node, scales: ir.Node, scale: Tensor, bias: Tensor | None) -> None:
        """Give the weights of a convolution another scale, one for each output channel, in a node of its own."""
        (shared,) = scales.outputs
        if len(shared.uses()) != 1 or shared.is_graph_output() or scales.graph is not self.graph:
            old, attributes = scales, [*scales.attributes.values()]
            name = self.names.free_node(f"{old.name or shared.name}_folded")
            scales = ir.Node("", "DequantizeLinear", old.inputs, attributes, name=name)
            output = scales.outputs[0]
            output.name = self.names.free(f"{shared.name}_folded")
            output.type, output.shape = shared.type, shared.shape
            self.graph.insert_before(node, scales)
            node.replace_input_with(1, output)
        before = scales.inputs[1]
        assert before is not None
        dtype = self.dtype_of(before, scales)
        zero = scales.inputs[2] if len(scales.inputs) > 2 else None
        points = self.facts.constants.numbers(zero)
        if zero is not None and points is not None and points.size == 1:  # that of all channels, for each of them
            numbers = ir.Tensor(np.repeat(points.reshape(-1), scale.numel()), dtype=self.facts.constants.dtype(zero))
            scales.replace_input_with(2, self._registered(self.names.free(f"{zero.name}_folded"), numbers))
        scales.attributes["axis"] = ir.AttrInt64("axis", 1 if node.op_type == "ConvTranspose" else 0)
        self.set(scales, 1, scale)
        if bias is not None:
            old_bias = node.inputs[2] if len(node.inputs) > 2 else None
            held = self.held(f"{node.name or node.outputs[0].name}.bias", bias, dtype, instead=old_bias)
            node.resize_inputs(3)
            node.replace_input_with(2, held)

    def set(self, node: ir.Node, place: int, tensor: Tensor | Later | None) -> ir.DataType:
        """Give a node another constant, in the type that its weight has."""
        old = node.inputs[place] if place < len(node.inputs) else None
        weight = old if old is not None else node.inputs[1]
        assert weight is not None
        dtype = self.dtype_of(weight, node)
        if tensor is None:
            return dtype
        wanted = f"{node.name or node.outputs[0].name}.bias" if old is None else str(old.name)
        new = self.held(wanted, tensor, dtype, instead=old)
        if place >= len(node.inputs):
            node.resize_inputs(place + 1)
        node.replace_input_with(place, new)
        return dtype

    def dtype_of(self, value: ir.Value, node: ir.Node) -> ir.DataType:
        dtype = self.facts.constants.dtype(value)
        return dtype if dtype is not None else self._dtype(node)

    def _dtype(self, node: ir.Node) -> ir.DataType:
        """The type of a node's result, or of what it reads."""
        for value in (*node.outputs, *node.inputs):
            if value is not None and value.dtype is not None:
                return value.dtype
            if value is not None and value.const_value is not None:
                return value.const_value.dtype
        return ir.DataType.FLOAT

    def held(
        self, wanted: str, tensor: Tensor | Later, dtype: ir.DataType, instead: ir.Value | None = None
    ) -> ir.Value:
        """Return a new initializer; it has the name of the old one where nobody else reads that."""
        numbers: ir.TensorProtocol = _Streamed(tensor, dtype) if isinstance(tensor, Later) else array_of(tensor, dtype)
        if instead is not None and instead.is_initializer() and not instead.is_graph_input():
            alone = len(instead.uses()) == 1 and not instead.is_graph_output() and instead.graph is self.graph
            if alone:
                name = str(instead.name)
                del self.graph.initializers[name]  # and not renamed: its tensor may be the caller's
                return self._registered(name, numbers)
            wanted = f"{wanted}_folded"
        return self._registered(self.names.free(wanted), numbers)

    def _registered(self, name: str, numbers: ir.TensorProtocol) -> ir.Value:
        numbers.name = name
        value = ir.Value(
            name=name, shape=ir.Shape(numbers.shape.numpy()), type=ir.TensorType(numbers.dtype), const_value=numbers
        )
        self.graph.register_initializer(value)
        return value

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _make_explicit(self, value: OnnxValue, affine: ChannelAffine, dim: int, rank: int | None, place: int) -> None:
        """Turn a node into the form of an affine that is best where it will run."""
        node = value.maker
        assert node is not None
        dtype = self._dtype(node)
        stem = node.name or value.name
        rounded = [array_of(part, dtype).numpy() for part in (affine.scale, affine.shift)]
        if not all(bool(torch.isfinite(torch.from_numpy(part.astype("float64"))).all()) for part in rounded):
            return
        source = node.inputs[place]
        if rank is None:
            if node.op_type == "BatchNormalization":
                ones, zeros = torch.ones_like(affine.scale), torch.zeros_like(affine.scale)
                for position, part in enumerate((affine.scale, affine.shift, zeros, ones), start=1):
                    kind = self.dtype_of(node.inputs[position], node)  # type: ignore[arg-type]
                    node.replace_input_with(position, self.held(f"{stem}.{position}", part, kind))
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
            return
        channels = affine.channels
        if dim == 1 and 3 <= rank <= 5 and dtype in _DEPTHWISE:
            weight = self.held(f"{stem}.weight", affine.scale.reshape(channels, 1, *[1] * (rank - 2)), dtype)
            bias = self.held(f"{stem}.bias", affine.shift, dtype)
            self.become(node, "Conv", [source, weight, bias], [ir.AttrInt64("group", channels)])
            return
        shape = (channels, *[1] * (rank - 1 - dim))
        bias = self.held(f"{stem}.bias", affine.shift.reshape(shape), dtype)
        weight = self.held(f"{stem}.weight", affine.scale.reshape(shape), dtype)
        product = ir.Node("", "Mul", [source, weight], name=self.names.free_node(f"{stem}.product"))
        product.outputs[0].name = self.names.free(f"{value.name}.product")
        product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        self.graph.insert_before(node, product)
        self.become(node, "Add", [product.outputs[0], bias], [])

    def become(self, node: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: list[Any]) -> None:
        """Let a node compute something else; its name, its place and its result stay."""
        node.domain, node.op_type = "", op
        node.resize_outputs(1)
        node.resize_inputs(len(inputs))
        for place, value in enumerate(inputs):
            node.replace_input_with(place, value)
        node.attributes.clear()
        node.attributes.update({attribute.name: attribute for attribute in attributes})

    def put_through(self, node: ir.Node, source: ir.Value) -> None:
        """Let a value stand in the place of a node's result, and keep the names of what the graph returns."""
        (output, *_) = node.outputs
        if output.is_graph_output():
            maker = source.producer()
            returned = any(value is output for value in self.graph.outputs)
            free = maker is not None and maker.graph is self.graph and not source.is_graph_output()
            if not returned or not free or (len(output.uses()) and self._returned_inside(output)):
                self.become(node, "Identity", [source], [])
                return
            name = str(output.name)
            output.name = self.names.free(f"{name}_unfolded")
            source.name, source.type, source.shape = name, output.type, output.shape
            source.doc_string = output.doc_string or source.doc_string
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        self.instead[output] = source
        self.graph.remove(node, safe=True)

    def _returned_inside(self, output: ir.Value) -> bool:
        """Whether a graph inside of a node returns a value, which is captured there."""
        return any(
            value is output for graph in self.graph.subgraphs() if graph is not self.graph for value in graph.outputs
        )

    def _insert_after(self, node: ir.Node, op: str, second: ir.Value) -> None:
        """Let all readers of a node's result read that of another node, which reads it."""
        output = node.outputs[0]
        name = self.names.free_node(f"{node.name or output.name}.{op.lower()}")
        added = ir.Node("", op, [None, second], name=name)
        new = added.outputs[0]
        new.type, new.shape = output.type, output.shape
        name = str(output.name)
        output.name = self.names.free(f"{name}_unfolded")
        new.name = name
        output.replace_all_uses_with(new, replace_graph_outputs=True)
        self.instead[output] = new
        added.replace_input_with(0, output)
        self.graph.insert_after(node, added)

    def _sweep(self) -> None:
        """Remove what nobody needs any more, if somebody did."""
        for node in reversed(self.live):
            unused = node.graph is self.graph and not any(self.facts.is_used(output) for output in node.outputs)
            if unused and is_standard(node):
                self.graph.remove(node, safe=True)
        inputs = set(self.graph.inputs)
        for value in self.used:
            name = str(value.name)
            if self.graph.initializers.get(name) is value and not self.facts.is_used(value) and value not in inputs:
                del self.graph.initializers[name]
