"""Facts about a captured graph, asked of all of it: readers, call sites, owners, shapes, aliases.

Each answer is computed when first asked and kept; shapes above all, since they cost a run of the model on fake tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnfold import ops
from bnfold.graph.affines import affine_by_constants, affine_of_unknown_rank
from bnfold.graph.captured import Capture
from bnfold.graph.doubled import capture_in_double
from bnfold.graph.doubts import doubts
from bnfold.graph.effects import is_pure, mutated_inputs
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.memory import Memory
from bnfold.graph.ranks import asserted_rank, rank_after_reshape
from bnfold.graph.reading import read_function, read_module
from bnfold.graph.requires import require_batch, require_rank, require_shape, require_structure
from bnfold.graph.runs import constant_value
from bnfold.graph.shapes import Shapes, shapes_of
from bnfold.graph.sizes import Sizes
from bnfold.ops.interface import FrontEnd
from bnfold.ops.refusal import Refusal
from bnfold.ops.symbolic import Size

__all__ = ["Facts"]

_RANK_OF_LAYER: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


class Facts(FrontEnd[Node]):
    """Questions about one capture. See the module's docstring."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture
        self.index = {node: index for index, node in enumerate(capture.graph.nodes)}
        self.way = capture.way
        self._calls: dict[Node, ops.Operation | None] = {}
        self._read: dict[Node, ops.Operation | None] = {}
        self._ranks: dict[Node, int | None] = {}
        self._constants: dict[Node, bool] = {}

    @staticmethod
    def of(capture: Capture) -> Facts:
        """Return the facts about a capture; the same each time, since nobody changes it."""
        known: Facts | None = capture._cache.get(Facts)
        if known is None:
            known = capture._cache[Facts] = Facts(capture)
        return known

    def call(self, node: Node) -> ops.Operation | None:
        """Return what the node computes; None where the vocabulary has no word for it, or hooks may change it."""
        try:
            return self._calls[node]
        except KeyError:
            pass
        call = self.read(node)
        if self.capture.affines and isinstance(call, ops.OfTwo):
            call = affine_by_constants(self, call) or call
        self._calls[node] = call
        return call

    def read(self, node: Node) -> ops.Operation | None:
        """Return what the node computes as it is written; constants are not looked at."""
        try:
            return self._read[node]
        except KeyError:
            pass
        call: ops.Operation | None = None
        if node.op == "call_module":
            module = self.capture.module(str(node.target))
            call = None if "forward" in module.__dict__ else read_module(node, module)
        elif node.op == "get_attr":
            call = ops.Constant(node)
        elif node.op in ("call_function", "call_method"):
            call = read_function(node)
        self._read[node] = call
        return call

    def hooked(self, node: Node) -> bool:
        """Whether the node calls a module that carries hooks."""
        return node.op == "call_module" and carries_hooks(self.capture.module(str(node.target)))

    def readers(self, value: Node) -> tuple[Node, ...]:
        """Return the nodes that read the numbers of ``value``, once each.

        Reads of shape, dtype and the like do not count. A split or an indices-returning pool is no reader where all
        that is taken from it are items: then these are.
        """
        found: list[Node] = []
        for user in value.users:
            call = self.call(user)
            if isinstance(call, ops.MetadataRead) or _reads_metadata(user, value):
                continue
            if isinstance(call, ops.Split) and all(isinstance(self.call(item), ops.Item) for item in user.users):
                found.extend(user.users)
            else:
                found.append(user)
        return tuple(found)

    def users(self, value: Node) -> tuple[Node, ...]:
        """Return all that read a value in any way, its shape included."""
        return tuple(value.users)

    def inputs(self, value: Node) -> tuple[Node, ...]:
        """Return the nodes that a node reads."""
        return tuple(value.all_input_nodes)

    def is_input(self, value: Node) -> bool:
        """Whether a value is an input of the model."""
        return value.op == "placeholder"

    def is_output(self, value: Node) -> bool:
        """Whether the node returns what the model returns."""
        return value.op == "output"

    def reads_sizes(self, value: Node, but: Node) -> bool:
        """Whether more is read of a value, besides by ``but``, than what is the same for another number of channels."""
        for user in value.users:
            name = user.args[1] if user.target is getattr else user.target
            known = user is but or user.target is require_rank
            if not known and not (isinstance(self.call(user), ops.MetadataRead) and name in _OF_RANK):
                return True
        return False

    def sharing(self, source: ops.Source) -> Sequence[Node]:
        """Return the nodes that use the tensor that a source names, whatever the name."""
        tensor = self.tensor(source)
        return () if tensor is None else self.parameter_readers[id(tensor)]

    @cached_property
    def module_calls(self) -> dict[str, list[Node]]:
        """For each called module's name, its call sites."""
        sites: dict[str, list[Node]] = defaultdict(list)
        for node in self.index:
            if node.op == "call_module":
                sites[str(node.target)].append(node)
        return sites

    @cached_property
    def parameter_readers(self) -> dict[int, list[Node]]:
        """For each tensor, by identity, the nodes that use it: tied parameters meet here, whatever their names."""
        readers: dict[int, list[Node]] = defaultdict(list)
        for node in self.index:
            if node.op == "call_module":
                module = self.capture.module(str(node.target))
                held = module.modules() if module._modules else (module,)
                tensors = {tensor for part in held for tensor in (*part._parameters.values(), *part._buffers.values())}
                for tensor in tensors - {None}:
                    readers[id(tensor)].append(node)
            elif node.op == "get_attr" and isinstance(value := self._attribute(node), object):
                readers[id(value)].extend(node.users)
        return readers

    def tensor(self, source: ops.Source) -> Tensor | None:
        """Return the tensor that a source names; None for None or for a source that is computed."""
        return self.constant(source) if isinstance(source, str) else None

    def is_constant(self, value: Node) -> bool:
        """Whether a value depends on parameters and constants only, by pure operations."""
        known = self._constants
        stack = [value]  # no recursion: a chain of layers may be thousands long
        while stack:
            node = stack[-1]
            inputs = node.all_input_nodes
            if node.op == "get_attr":
                known[node] = True
            elif node.op not in ("call_function", "call_method", "call_module"):
                known[node] = False
            elif not inputs:  # torch.tensor([3, 0, 2]), say
                known[node] = node.op == "call_function" and is_pure(node, self.capture.module)
            elif node not in known:
                answers = [known.get(read) for read in inputs]
                if False in answers:
                    known[node] = False
                elif None in answers:
                    stack.append(inputs[answers.index(None)])
                    continue
                else:
                    known[node] = is_pure(node, self.capture.module)
            stack.pop()
        return known[value]

    def constant(self, source: ops.Source) -> Tensor | None:
        """Return the tensor that a source names, or computes from parameters only; None for None."""
        if isinstance(source, Node):
            return constant_value(self.capture, source)
        if source is None:
            return None
        made = self._made.get(source)
        return self.capture.tensor(source) if made is None else made

    @cached_property
    def in_double(self) -> Facts:
        """The facts of the same model in float64."""
        return Facts(capture_in_double(self.capture, {}))

    @cached_property
    def memory(self) -> Memory:
        """Which values share memory, and what is written into it."""
        return Memory(self.capture, self.index, self.read)

    def mutated(self, value: Node) -> bool:
        """Whether anything writes into the memory of a value after it was computed, or may do so."""
        return self.memory.mutated(value)

    def written_between(self, value: Node, first: int, last: int) -> bool:
        """Whether anything between two places, both exclusive, writes into the memory of a value, or may do so."""
        return self.memory.written_between(value, first, last)

    def may_be_written(self, constant: Node) -> bool:
        """Whether a constant value may be another when the model runs."""
        return self.memory.may_be_written(constant)

    def written_by(self, value: Node) -> tuple[Node, ...]:
        """Return the values into which a node writes."""
        return mutated_inputs(value, self.capture.module)

    def sharing_memory(self, value: Node) -> tuple[Node, ...]:
        """Return the values that may share memory with a value, itself included."""
        return self.memory.sharing_memory(value)

    def is_written(self, source: ops.Source) -> bool:
        """Whether a parameter that the model holds is written to when it runs."""
        return source in self.memory.written_names

    def doubts(self, call: ops.Operation, channels: int) -> Refusal | None:
        """Return why what a user said of a layer of theirs is not believed."""
        return doubts(self, call, channels)

    # --- names ----------------------------------------------------------------------------------------------------

    def name(self, value: Node) -> str:
        """Return the layer's qualified name, or the node's name for a bare function call."""
        return self._whole(str(value.target)) if value.op == "call_module" else value.name

    def label(self, value: Node) -> str:
        """Return what holds the numbers: the layer, the parameter, the BatchNorm that a function call is of."""
        call = self.call(value)
        if isinstance(call, ops.BatchNorm) and call.name:
            held = call.by_constants and call.name != value.name
            return self.capture.prefix + call.name if held else self._whole(call.name)
        return self._whole(str(value.target)) if value.op in ("call_module", "get_attr") else value.name

    def owner(self, source: ops.Source) -> str | None:
        """Return the name of what holds a parameter called ``weight``."""
        if not isinstance(source, str) or not source.endswith("weight"):
            return None
        name = source.removesuffix("weight").rstrip("._")
        return self._whole(name) if name else None

    def _whole(self, name: str) -> str:
        """Return a layer's name in the model that the graph is a piece of."""
        return self.capture.prefix + name if self.capture.prefix and name in self._layers else name

    @cached_property
    def _layers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.capture.root.named_modules() if name)

    def described(self, value: Node) -> str:
        """Return a call that no operation is known for in words, with its name."""
        if value.op == "call_module":
            return f"{type(self.capture.module(str(value.target))).__name__} `{self.name(value)}`"
        return f"the model's input `{value.name}`" if value.op == "placeholder" else f"`{value.name}`"

    def source(self, value: Node) -> str | None:
        """Return ``file:line`` of the code that makes the call, where the capture kept it."""
        return value.meta.get("source")

    def lines(self, value: Node) -> Sequence[str]:
        """Return the lines of the user's code that lead to a call, the innermost first."""
        lines: Sequence[str] = value.meta.get("lines", ())
        return lines

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the capture has to say; and why less is known of the shapes than was asked for, if somebody asked."""
        return (*self.capture.notes, *((self.stopped,) if self.stopped else ()))

    def hidden_batchnorms(self, value: Node) -> Iterator[ops.HiddenBatchNorm]:
        """Yield the BatchNorms inside a module that is called as a whole, or in a region that is kept apart."""
        if value.op == "get_attr":
            yield from self._in_region(value)
        call = self.call(value)
        if self.capture.affines and isinstance(call, ops.OfTwo) and (affine := affine_of_unknown_rank(self, call)):
            yield affine
        if value.op != "call_module" or self.call(value) is not None:
            return
        target = str(value.target)
        for name, inner in self.capture.module(target).named_modules():
            if isinstance(inner, nn.modules.batchnorm._BatchNorm):
                owner = "it" if not name else f"`{self.name(value)}`, which calls it,"
                hooked = self.hooked(value)
                because = "carries hooks" if hooked else "is of code that bnfold does not look into"
                reason = "hooks" if hooked else "unknown-code"
                whole = f"{target}.{name}" if name else target
                yield ops.HiddenBatchNorm(
                    self._whole(whole), value.name, reason, f"{owner} {because}", self.source(value)
                )

    def _in_region(self, value: Node) -> Iterator[ops.HiddenBatchNorm]:
        """Yield the BatchNorms in a region of the graph that is kept apart, such as one with autocast enabled."""
        region = getattr(self.capture.root, str(value.target), None)
        for inner in region.graph.nodes if isinstance(region, GraphModule) else ():
            if isinstance(read_function(inner) if inner.op == "call_function" else None, ops.BatchNorm):
                because = "it is computed in another precision, under autocast"
                yield ops.HiddenBatchNorm(inner.name, f"{value.name}.{inner.name}", "autocast", because)

    # --- shapes ---------------------------------------------------------------------------------------------------

    @cached_property
    def _run(self) -> Shapes:
        return shapes_of(self.capture)

    @property
    def stopped(self) -> str | None:
        """Why less is known of the shapes than was asked for: a sentence; None also where nobody has asked."""
        return self._run.stopped if "_run" in self.__dict__ else None

    def shapes_by_name(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Return all shapes by name of the node, for each batch size tried; empty without example inputs."""
        return tuple({node.name: shape for node, shape in shapes.items()} for shapes in self._run.found)

    def shapes(self, value: Node) -> tuple[tuple[int, ...], ...]:
        """Return the value's shape for each batch size that the model took, the example's first; empty without one."""
        found = [shapes.get(value) for shapes in self._run.found]
        return tuple(shape for shape in found if shape is not None) if found and found[0] is not None else ()

    def channels(self, value: Node, dim: int) -> int | None:
        """Return the size of dimension ``dim`` of a value: from the layers before (``dim`` 1), else from its shape."""
        found = self.channels_by_layers(value) if dim == 1 else None
        if found is None and (shapes := self.shapes(value)):
            found = shapes[0][dim] if dim < len(shapes[0]) else None
        return found

    def sizes(self, value: Node) -> tuple[Size, ...] | None:
        """Return the sizes of a value's dimensions as the graph tells them for every input; None where it does not.

        Other than :meth:`shapes` these hold for all heights and widths for which the model runs, not only for those of
        the example inputs. Where there are none, nothing is known.
        """
        return self._sizes.of(value)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes(self)

    def shape_of(self, source: ops.Source) -> tuple[int, ...] | None:
        """Return the shape of a parameter, or of a value computed from parameters only, if it is one."""
        if isinstance(source, Node):
            shapes = self.shapes(source) if self.is_constant(source) else ()
            return shapes[0] if shapes else None
        tensor = self.tensor(source)
        return None if tensor is None else tuple(tensor.shape)

    def rank(self, value: Node) -> int | None:
        """Return the number of dimensions of a value, if the graph or an example input tells it."""
        rank = self.graph_rank(value)
        if rank is None and (shapes := self.shapes(value)):
            return len(shapes[0])
        return rank

    def graph_rank(self, value: Node) -> int | None:
        """Return the number of dimensions that a value has whatever the input, if the graph tells it."""
        chain: list[Node] = []
        node: Node | None = value
        answer: int | None = None
        while node is not None:
            if node in self._ranks:
                answer = self._ranks[node]
                break
            chain.append(node)
            answer = self._own_rank(node)
            call = self.call(node)
            if answer is not None or call is None or not call.keeps_rank:
                break
            node = call.inputs[0]
        for seen in chain:
            self._ranks[seen] = answer
        return answer

    def _own_rank(self, node: Node) -> int | None:
        """The rank as far as the node itself tells."""
        if node.op == "call_module":
            known = _RANK_OF_LAYER.get(type(self.capture.module(str(node.target))))
            if known is not None:
                return known
        for user in node.users:
            asserted = asserted_rank(user)
            if asserted is None and user.op == "call_module" and user.args[:1] == (node,):
                asserted = _RANK_OF_LAYER.get(type(self.capture.module(str(user.target))))
            if asserted is not None:
                return asserted
        if isinstance(self.call(node), ops.Reshape):
            return rank_after_reshape(node)
        return None

    def _attribute(self, node: Node) -> Any:
        try:
            return self.capture.tensor(str(node.target))
        except (AttributeError, TypeError):
            return None


def _reads_metadata(user: Node, value: Node) -> bool:
    """Whether a reader takes only the shape or the dtype of ``value``: a guard, or the model of a reshape."""
    if user.target in (require_rank, require_shape, require_batch, require_structure):
        return True
    name = str(user.target) if user.op == "call_method" else getattr(user.target, "__name__", "")
    return name.partition(".")[0] in _LIKE and value in user.args[1:] and user.args[0] is not value


_OF_RANK = frozenset(("ndim", "dim", "ndimension", "dtype", "device", "is_cuda", "get_device"))
_LIKE = frozenset(("reshape_as", "view_as", "expand_as", "type_as"))
