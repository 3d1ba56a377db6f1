"""The facts of one ONNX graph: what the planner asks of it. See :class:`bnfold.ops.interface.FrontEnd`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.constants import Constants, is_standard, tensor_of, torch_type
from bnfold.onnx_graph.inference import InferredShapes
from bnfold.onnx_graph.sizes import OnnxSizes
from bnfold.onnx_graph.spellings import READERS
from bnfold.onnx_graph.values import OnnxValue, free_name
from bnfold.ops.interface import FrontEnd, WeightType
from bnfold.ops.spelling import NotStaticError
from bnfold.ops.symbolic import Size

__all__ = ["OnnxFacts", "Parameter"]


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter as an operation sees it, made of a constant of the graph.

    Attributes:
        value: the constant.
        turned: whether the constant is its transpose.
        factor: the constant is multiplied by it.
        vector: how many entries it has, if the constant is to be stretched to a vector.
    """

    value: ir.Value
    turned: bool = False
    factor: float = 1.0
    vector: int | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the constant itself."""
        return not self.turned and self.factor == 1.0 and self.vector is None


class OnnxFacts(FrontEnd[OnnxValue]):
    """Questions about one graph: that of the model, or one inside of a node.

    Args:
        graph: the graph.
        constants: of the model, with all that was computed before this graph noted.
        shapes: of the model's values.
        version: of the operators.
        inside: whether the graph is the body of a node.
    """

    way = "onnx"

    def __init__(
        self, graph: ir.Graph, constants: Constants, shapes: InferredShapes, version: int, *, inside: bool = False
    ) -> None:
        super().__init__()
        self.inside = inside
        self.graph = graph
        self.constants = constants
        self.inferred = shapes
        self.version = version
        self.parameters: dict[str, Parameter] = {}
        self._names: set[str] = set()
        self._values: dict[ir.Value, OnnxValue] = {}
        self._nodes: dict[ir.Node, OnnxValue] = {}
        self._added: dict[OnnxValue, ir.Value] = {}
        self._calls: dict[OnnxValue, ops.Operation | None] = {}
        self._ranks: dict[OnnxValue, int | None] = {}
        self._users: dict[OnnxValue, list[OnnxValue]] = {}
        self._torch: dict[str, Tensor] = {}
        self.index = {value: place for place, value in enumerate(self._built())}

    # --- building -------------------------------------------------------------------------------------------------

    def _built(self) -> list[OnnxValue]:
        order: list[OnnxValue] = []
        outer: list[OnnxValue] = []
        joined = self._joined()
        order += [self._from_outside(value) for value in self.graph.inputs]
        for node in self.graph:
            read = [value for value in _read_by(node) if value not in joined]
            outer += [self._from_outside(value) for value in dict.fromkeys(read) if value not in self._values]
            if len(node.outputs) == 1 and node.outputs[0] in joined:
                continue  # it stands for one operation with the sum after it
            made = self._of_node(node)
            first, inputs = made[0], [self._values[value] for value in read]
            product = self._sums.get(node)
            if product is not None:
                inputs += [self.of(value) for value in product.inputs if value is not None]
                self._nodes[product] = first
            first.inputs = tuple(dict.fromkeys(inputs))
            order.extend(made)
        for place, value in enumerate(self.graph.outputs):
            if value not in self._values:
                outer.append(self._from_outside(value))
            end = OnnxValue(self._free(f"output of {value.name} {place}"), "output", None, None)
            end.inputs = (self._values[value],)
            order.append(end)
        order = outer + order
        for reader in order:
            for read_value in reader.inputs:
                self._users.setdefault(read_value, []).append(reader)
        return order

    def _from_outside(self, value: ir.Value) -> OnnxValue:
        """The value for an input, an initializer, or what is captured from the graph around this one."""
        return self._new("constant" if self.constants.holds(value) else "input", value, None)

    def _of_node(self, node: ir.Node) -> list[OnnxValue]:
        """The values of a node: one, or one for all of its results and one for each."""
        if len([output for output in node.outputs if self.is_used(output)]) <= 1 and (
            not node.outputs or self.is_used(node.outputs[0]) or len(node.outputs) == 1
        ):
            output = node.outputs[0] if node.outputs else None
            held = output is not None and self.constants.holds(output)
            value = self._new("constant" if held else "node", output, node)
            self._nodes[node] = value
            return [value]
        whole = OnnxValue(self._free(f"results of {node.name or node.op_type}"), "several", None, node)
        self._nodes[node] = whole
        items = [self._new("item", output, node) for output in node.outputs]
        for item in items:
            item.inputs = (whole,)
        return [whole, *items]

    def _new(self, kind: Any, value: ir.Value | None, node: ir.Node | None) -> OnnxValue:
        name = str(value.name) if value is not None and value.name else f"{node.op_type if node else 'value'}"
        made = OnnxValue(self._free(name), kind, value, node)
        if value is not None:
            self._values[value] = made
        return made

    def _free(self, wanted: str) -> str:
        return free_name(wanted, self._names)

    def _joined(self) -> dict[ir.Value, ir.Node]:
        """Products with a constant matrix that only a sum with a constant reads: by the product, the sum."""
        self._sums: dict[ir.Node, ir.Node] = {}
        found: dict[ir.Value, ir.Node] = {}
        for node in self.graph:
            if not is_standard(node) or node.op_type != "Add" or len(node.inputs) != 2:
                continue
            for product, added in (node.inputs, reversed(node.inputs)):
                if self._is_bias(product, added):
                    assert product is not None
                    maker = product.producer()
                    assert maker is not None
                    found[product] = node
                    self._sums[node] = maker
                    break
        return found

    def _is_bias(self, product: ir.Value | None, added: ir.Value | None) -> bool:
        maker = None if product is None else product.producer()
        if maker is None or product is None or added is None or maker.graph is not self.graph:
            return False
        if not is_standard(maker) or maker.op_type != "MatMul" or len(maker.inputs) != 2:
            return False
        if product.is_graph_output() or len(product.uses()) != 1:
            return False
        weight, bias = self.constants.shape(maker.inputs[1]), self.constants.shape(added)
        shape = self.inferred.symbolic.get(product)
        if weight is None or bias is None or len(weight) != 2 or shape is None or len(shape) < 2:
            return False
        return len(bias) <= len(shape) and bias[-1:] == (weight[1],) and set(bias[:-1]) <= {1}

    def product_before(self, node: ir.Node) -> ir.Node | None:
        """Return the MatMul that a sum is one operation with; None for any other node."""
        return self._sums.get(node)

    def added_to(self, value: OnnxValue) -> ir.Value | None:
        """Return the constant that is added to a product, where the two are one operation."""
        product = None if value.maker is None else self._sums.get(value.maker)
        if product is None:
            return None
        assert value.maker is not None
        left, right = value.maker.inputs
        return right if left is product.outputs[0] else left

    def is_used(self, value: ir.Value) -> bool:
        """Whether anybody takes a result."""
        return bool(value.uses()) or value.is_graph_output()

    def of(self, value: ir.Value) -> OnnxValue:
        """Return the value of the planner for one of the graph."""
        try:
            return self._values[value]
        except KeyError:
            raise NotStaticError("a value of another graph") from None

    # --- the graph ------------------------------------------------------------------------------------------------

    def call(self, value: OnnxValue) -> ops.Operation | None:
        """Return what computes a value."""
        try:
            return self._calls[value]
        except KeyError:
            pass
        found: ops.Operation | None = None
        if value.kind == "constant":
            found = ops.Constant(value)
        elif value.kind == "item":
            (whole,) = value.inputs
            if isinstance(self.call(whole), ops.Split):
                assert value.maker is not None
                found = ops.Item(value, whole, list(value.maker.outputs).index(value.value))  # type: ignore[arg-type]
        elif value.maker is not None and is_standard(value.maker):
            found = self._read(value)
        self._calls[value] = found
        return found

    def _read(self, value: OnnxValue) -> ops.Operation | None:
        node = value.maker
        assert node is not None
        node = self._sums.get(node, node)
        reader = READERS.get(node.op_type)
        if reader is None or (value.kind == "several") != (node.op_type == "Split"):
            return None
        try:
            return reader(value, NodeArguments(node, self))
        except (NotStaticError, LookupError, TypeError, ValueError, OverflowError):
            return None  # a node that is not what its operator says: ONNX Runtime will judge it

    def readers(self, value: OnnxValue) -> tuple[OnnxValue, ...]:
        """Return those who read the numbers of a value."""
        found: list[OnnxValue] = []
        for user in self._users.get(value, ()):
            call = self.call(user)
            if isinstance(call, ops.MetadataRead) or (user.kind == "constant" and value.kind != "constant"):
                continue  # a constant, CastLike say, asks for no more than the type
            if isinstance(call, ops.Split):
                found.extend(self._users.get(user, ()))
            else:
                found.append(user)
        return tuple(found)

    def users(self, value: OnnxValue) -> tuple[OnnxValue, ...]:
        """Return all that read a value in any way."""
        return tuple(self._users.get(value, ()))

    def inputs(self, value: OnnxValue) -> tuple[OnnxValue, ...]:
        """Return what a value is computed from."""
        return value.inputs

    def is_input(self, value: OnnxValue) -> bool:
        """Whether a value is an input of the graph, or captured from the graph around it."""
        return value.kind == "input"

    def is_output(self, value: OnnxValue) -> bool:
        """Whether a value stands for what the graph returns."""
        return value.kind == "output"

    # --- names ----------------------------------------------------------------------------------------------------

    def name(self, value: OnnxValue) -> str:
        """Return the name of the node, or of the value where it has none."""
        node = None if value.maker is None else self._sums.get(value.maker, value.maker)
        return node.name if node is not None and node.name and value.kind != "item" else value.name

    def described(self, value: OnnxValue) -> str:
        """Return a node that nothing is known of in words."""
        if value.kind == "input":
            if value.value not in self.graph.inputs:
                return f"the captured value `{value.name}`"
            return f"the {'body' if self.inside else 'model'}'s input `{value.name}`"
        if value.maker is None or value.kind == "item":
            return f"`{self.name(value)}`"
        domain = "" if is_standard(value.maker) else f"{value.maker.domain}."
        return f"{domain}{value.maker.op_type} `{self.name(value)}`"

    # --- sizes ----------------------------------------------------------------------------------------------------

    def shapes(self, value: OnnxValue) -> tuple[tuple[int, ...], ...]:
        """Return a value's shapes for two inputs."""
        if value.value is not None and value.kind == "constant":
            shape = self.constants.shape(value.value)
            return () if shape is None else (shape, shape)
        return () if value.value is None else self.inferred.seen(value.value)

    @cached_property
    def _sizes(self) -> OnnxSizes:
        return OnnxSizes(self)

    def sizes(self, value: OnnxValue) -> tuple[Size, ...] | None:
        """Return the sizes that hold for every input."""
        return self._sizes.of(value)

    def sizes_asked(self, node: ir.Node, place: int) -> tuple[Any, ...] | None:
        """Return the sizes that a node asks for by an input; None where they are not known."""
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            return None
        self._sizes.of(self.of(value))  # which follows the numbers up to there
        return self._sizes.numbers(value)

    def rank(self, value: OnnxValue) -> int | None:
        """Return the number of dimensions, if the graph tells it."""
        return self.graph_rank(value)

    def graph_rank(self, value: OnnxValue) -> int | None:
        """Return the number of dimensions, if the graph tells it: as inferred, or as the node demands it."""
        chain: list[OnnxValue] = []
        each, answer = value, self._own_rank(value)
        while answer is None:
            chain.append(each)
            call = self.call(each)
            dims = getattr(call, "spatial_dims", None)
            if dims is not None:
                answer = dims + 2
            elif call is None or not call.keeps_rank or not call.inputs:
                break
            else:
                each = call.inputs[0]
                answer = self._own_rank(each)
        self._ranks.update(dict.fromkeys(chain, answer))
        return answer

    def _own_rank(self, value: OnnxValue) -> int | None:
        """The number of dimensions as far as the shapes tell it, or it was asked for before."""
        if value.value is not None and value.value in self.inferred.symbolic:
            return len(self.inferred.symbolic[value.value])
        if value.kind == "constant":
            shape = self.constants.shape(value.value)
            return None if shape is None else len(shape)
        return self._ranks.get(value)

    def channels(self, value: OnnxValue, dim: int) -> int | None:
        """Return a size, if the graph tells it for every input."""
        sizes = self.sizes(value)
        found = sizes[dim].number if sizes is not None and dim < len(sizes) else None
        return found if found is not None or dim != 1 else self.channels_by_layers(value)

    # --- parameters -----------------------------------------------------------------------------------------------

    def parameter(
        self, value: ir.Value, *, turned: bool = False, factor: float = 1.0, vector: int | None = None
    ) -> str:
        """Return the name of a parameter that is made of a constant."""
        made = Parameter(value, turned, factor, None if self.constants.shape(value) == (vector,) else vector)
        name = str(value.name)
        if not made.plain:
            name = f"{name} {'turned' if turned else ''} {factor!r} {vector}"
        self.parameters.setdefault(name, made)
        return name

    def tensor(self, source: Any) -> Tensor | None:
        """Return the tensor of a parameter."""
        return self.constant(source) if isinstance(source, str) else None

    def constant(self, source: Any) -> Tensor | None:
        """Return the tensor of a parameter, or of a constant value; None for None."""
        if isinstance(source, OnnxValue):
            numbers = self.constants.numbers(source.value)
            return None if numbers is None else tensor_of(numbers)
        if source is None:
            return None
        known = self._made.get(source, self._torch.get(source))
        if known is None:
            known = self._tensor(self.parameters[source])
            if known is not None:
                self._torch[source] = known
        return known

    def weight_type(self, source: Any) -> WeightType | None:
        """Return the type that a parameter has in the graph: what is computed of constants is in float64 here."""
        if source in self._made:
            return None
        value = self.parameters[source].value if isinstance(source, str) else getattr(source, "value", None)
        if value is None:
            return None
        found = self.constants.dtype(value)
        return super().weight_type(source) if found is None else (torch_type(found), torch.device("cpu"))

    def forget(self, source: Any) -> None:
        """Let go of a parameter's tensor; it is read again if it is asked for."""
        self._torch.pop(source, None)

    def _tensor(self, made: Parameter) -> Tensor | None:
        numbers = self.constants.numbers(made.value)
        tensor = None if numbers is None else tensor_of(numbers)
        if tensor is None:
            return None
        if made.factor != 1.0:
            tensor = tensor.double() * made.factor
        if made.vector is not None:
            tensor = tensor.reshape(-1).expand(made.vector) if tensor.numel() in (1, made.vector) else None
        if tensor is not None and made.turned:
            tensor = tensor.t()
        return tensor

    def shape_of(self, source: Any) -> tuple[int, ...] | None:
        """Return the shape of a parameter."""
        if not isinstance(source, str):
            return None if source is None else self.constants.shape(source.value)
        if source in self._made:
            return tuple(self._made[source].shape)
        made = self.parameters[source]
        if made.vector is not None:
            return (made.vector,)
        shape = self.constants.shape(made.value)
        return tuple(reversed(shape)) if made.turned and shape is not None else shape

    def is_constant(self, value: OnnxValue) -> bool:
        """Whether a value is the same in each run."""
        return value.kind == "constant"

    def sharing(self, source: Any) -> Sequence[OnnxValue]:
        """Return all that read the constant that a parameter is made of."""
        made = self.parameters.get(source) if isinstance(source, str) else None
        if made is None:
            return ()
        return list(self._reading(made.value))

    def _reading(self, value: ir.Value) -> Iterator[OnnxValue]:
        for use in value.uses():
            if is_standard(use.node) and use.node.op_type == "DequantizeLinear":  # part of the layer that it is for
                yield from self._reading(use.node.outputs[0])
            elif use.node in self._nodes:
                yield self._nodes[use.node]


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, and what the graphs inside of it capture."""
    yield from (value for value in node.inputs if value is not None)
    inside: set[ir.Value] = set()
    captured: dict[ir.Value, None] = {}
    stack = [attribute.as_graph() for attribute in node.attributes.values() if _is_graph(attribute)]
    graphs: list[ir.Graph] = []
    while stack:
        graph = stack.pop()
        graphs.append(graph)
        inside.update(graph.inputs, graph.initializers.values())
        for inner in graph:
            inside.update(inner.outputs)
            captured.update(dict.fromkeys(value for value in inner.inputs if value is not None))
            stack.extend(attribute.as_graph() for attribute in inner.attributes.values() if _is_graph(attribute))
        captured.update(dict.fromkeys(graph.outputs))
    yield from (value for value in captured if value not in inside)


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref()
