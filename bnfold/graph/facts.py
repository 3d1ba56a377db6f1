"""Facts about a captured graph, asked of all of it: readers, call sites, owners, shapes, aliases.

Each answer is computed when first asked and kept; shapes above all, since they cost a run of the model on fake tensors.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.captured import Capture
from bnfold.graph.constants import evaluate
from bnfold.graph.effects import is_pure
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.memory import Memory
from bnfold.graph.ranks import asserted_rank, rank_after_reshape
from bnfold.graph.requires import require_batch, require_rank, require_shape, require_structure
from bnfold.graph.shapes import Shapes, shapes_of
from bnfold.graph.sizes import Size, Sizes
from bnfold.graph.vocabulary import read_function, read_module

__all__ = ["Facts"]

_RANK_OF_LAYER: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
_SAME_RANK = (
    calls.Passing,
    calls.PositivelyHomogeneous,
    calls.MaxPool,
    calls.AveragePool,
    calls.AdaptiveAveragePool,
    calls.BatchNorm,
    calls.ExplicitAffine,
    calls.AffineNormalization,
    calls.Convolution,
    calls.TransposedConvolution,
    calls.Linear,
    calls.Interpolate,
    calls.Pad,
    calls.PixelShuffle,
    calls.PixelUnshuffle,
    calls.ChannelShuffle,
    calls.Slice,
    calls.Rearrange,
    calls.ByNumber,
)  # operations whose output has as many dimensions as their input
_SAME_CHANNELS = (
    calls.Passing,
    calls.PositivelyHomogeneous,
    calls.MaxPool,
    calls.AveragePool,
    calls.AdaptiveAveragePool,
    calls.BatchNorm,
    calls.AffineNormalization,
    calls.Interpolate,
    calls.ByNumber,
)  # operations whose output has as many channels as their input


class Facts:
    """Questions about one capture. See the module's docstring."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.index: dict[Node, int] = {node: index for index, node in enumerate(capture.graph.nodes)}
        self._calls: dict[Node, calls.Call | None] = {}
        self._ranks: dict[Node, int | None] = {}
        self._channels: dict[Node, int] = {}
        self._constants: dict[Node, bool] = {}

    @staticmethod
    def of(capture: Capture) -> Facts:
        """Return the facts about a capture; the same each time, since nobody changes it."""
        known: Facts | None = capture._cache.get(Facts)
        if known is None:
            known = capture._cache[Facts] = Facts(capture)
        return known

    def call(self, node: Node) -> calls.Call | None:
        """Return what the node computes; None where the vocabulary has no word for it, or hooks may change it."""
        try:
            return self._calls[node]
        except KeyError:
            pass
        call: calls.Call | None = None
        if node.op == "call_module":
            module = self.capture.module(str(node.target))
            call = None if "forward" in module.__dict__ else read_module(node, module)
        elif node.op == "get_attr":
            call = calls.Constant(node)
        elif node.op in ("call_function", "call_method"):
            call = read_function(node)
        self._calls[node] = call
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
            if isinstance(call, calls.MetadataRead) or _reads_metadata(user, value):
                continue
            if isinstance(call, calls.Split) and all(isinstance(self.call(item), calls.Item) for item in user.users):
                found.extend(user.users)
            else:
                found.append(user)
        return tuple(found)

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

    def tensor(self, source: calls.Source) -> Any:
        """Return the tensor that a source names; None for None or for a source that is computed."""
        return self.capture.tensor(source) if isinstance(source, str) else None

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

    def constant(self, source: calls.Source) -> Tensor | None:
        """Return the tensor that a source names, or computes from parameters only; None for None."""
        if isinstance(source, Node):
            return evaluate(source, self.capture.tensor, self.capture.module)
        return None if source is None else self.capture.tensor(source)

    @cached_property
    def memory(self) -> Memory:
        """Which values share memory, and what is written into it."""
        return Memory(self.capture, self.index, self.call)

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
        found = self._channels_by_layers(value) if dim == 1 else None
        if found is None and (shapes := self.shapes(value)):
            found = shapes[0][dim] if dim < len(shapes[0]) else None
        return found

    def _channels_by_layers(self, value: Node) -> int | None:
        chain: list[Node] = []
        node, count = value, self._channels.get(value)
        while count is None:
            chain.append(node)
            call = self.call(node)
            count = self.told_channels(call)
            if count is not None or not isinstance(call, _SAME_CHANNELS):
                break
            node = call.inputs[0]
            count = self._channels.get(node)
        if count is not None:
            self._channels.update(dict.fromkeys(chain, count))
        return count

    def told_channels(self, call: calls.Call | None) -> int | None:
        """Return the number of channels as far as the call itself tells, whatever its input."""
        if isinstance(call, (calls.Convolution, calls.TransposedConvolution)):
            shape = self.shape_of_source(call.weight)
            if shape is None:
                return None
            return shape[0] if isinstance(call, calls.Convolution) else shape[1] * call.groups
        if isinstance(call, calls.BatchNorm) and isinstance(call.running_mean, str):
            return self.capture.tensor(call.running_mean).numel()
        if isinstance(call, calls.ExplicitAffine):
            return int(self.tensor(call.weight).numel())
        if isinstance(call, calls.Concatenate) and call.dim == 1:
            sizes = [self._channels_by_layers(part) for part in call.parts]
            return sum(size for size in sizes if size is not None) if None not in sizes else None
        return None

    def sizes(self, value: Node) -> tuple[Size, ...] | None:
        """Return the sizes of a value's dimensions as the graph tells them for every input; None where it does not.

        Other than :meth:`shapes` these hold for all heights and widths for which the model runs, not only for those of
        the example inputs. Where there are none, nothing is known.
        """
        return self._sizes.of(value)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes(self)

    def shape_of_source(self, source: calls.Source) -> tuple[int, ...] | None:
        """Return the shape of a parameter, or of a value computed from parameters only, if it is one."""
        if isinstance(source, Node):
            shapes = self.shapes(source) if self.is_constant(source) else ()
            return shapes[0] if shapes else None
        return None if source is None else tuple(self.capture.tensor(source).shape)

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
            if answer is not None or not isinstance(call, _SAME_RANK):
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
        if isinstance(self.call(node), calls.Reshape):
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


_LIKE = frozenset(("reshape_as", "view_as", "expand_as", "type_as"))
