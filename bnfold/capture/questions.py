"""What code asks of a value while its run is recorded, and the checks that keep the answers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from bnfold import ops
from bnfold.capture.blind import UnknownShape
from bnfold.capture.failures import APART, DataQuestionError, at
from bnfold.capture.lines import user_frame, user_line
from bnfold.capture.nodes import TRACED, Deps, Nodes, memory_of, plain_node
from bnfold.capture.plain_calls import calls_plainly
from bnfold.capture.tables import ASK_FOR_DATA, DEVICE_ATTRIBUTES, TENSOR_ATTRIBUTES
from bnfold.errors import CaptureError, NeedsInputsError
from bnfold.graph.captured import Capture
from bnfold.graph.facts import Facts
from bnfold.graph.requires import require_answer, require_dtype, require_number, require_rank
from bnfold.graph.traced import Expression, TracedInt, settled

__all__ = ["QUESTIONS", "Questions"]

_Error = TypeVar("_Error", bound=Exception)


class Questions(Nodes):
    """Answers what is asked of values: as of this run, with a check in the graph where another run may differ.

    Args:
        root: the model.
        blind: whether nothing is known of the shapes of values.
        device: of the inputs.
    """

    def __init__(self, root: nn.Module, *, blind: bool, device: torch.device | None) -> None:
        super().__init__(root)
        self.blind = blind
        self.device = device or torch.device("cpu")
        self.open = False
        self.error: Exception | None = None  # what was raised first: the model's code may have caught it
        self.hashed = False
        self.rank_asked = False
        self.squeezed = False  # whether a value has as many dimensions as its sizes allow
        self.plain_calls: set[tuple[CodeType, ...]] = set()
        self.inside = 0  # of how many leaf modules
        floating = next((tensor for tensor in root.parameters() if tensor.is_floating_point()), None)
        self._dtype = None if floating is None else floating.dtype  # of what nothing is known of
        self._decided: set[Any] = set()
        self._last_read: dict[Node, Node] = {}
        self._tainted: Deps = {}  # what was written into tensors that the code made: their views depend on it, too
        self._facts = Facts(Capture(self.graph, root, self.constants, "recorded"))

    def call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """See a call of torch that is no question."""
        raise NotImplementedError

    def attribute(self, x: Tensor, func: Any) -> Any:
        """Answer a read of an attribute of a tensor."""
        name = func.__self__.__name__
        if name in TENSOR_ATTRIBUTES:
            return self.call(func, "__get__", (x,), {}) if name != "grad" else func(x)
        if name == "shape":
            return self._shape(x)
        if not x.is_meta or id(x) not in self._nodes:
            if name in ("ndim", "nbytes"):
                self.pin((x,))
            return func(x)
        if name == "ndim":
            return self._rank(x)
        if name == "device":
            return self._device_of(x)
        if self.blind and name != "dtype" and name not in DEVICE_ATTRIBUTES:
            self.unknown(f".{name}")
        if name in DEVICE_ATTRIBUTES:
            answer: Any = getattr(torch.empty(0, device=self.device), name)
        else:
            answer = func(x)
        if name == "dtype":
            return self._dtype_of(x)
        if name not in ("is_leaf", "grad_fn", "layout", "itemsize", "is_meta", "retains_grad"):
            node = self.node_of(x)
            self.require_same_answer(node, getattr, (node, name), answer, f"the {name} of `{node.name}`")
        return answer

    def _shape(self, x: Tensor) -> Any:
        if self.blind and x.is_meta:
            return UnknownShape(self, x)
        if not self.varies(x):
            return x.size()
        self.ask_rank(x)
        return torch.Size([self.size(x, dim) for dim in range(x.dim())])

    def ask_rank(self, x: Tensor) -> None:
        """Let the graph check the rank of its inputs and, where a squeeze may have changed it, that of a value."""
        self.rank_asked = True
        node = self.node_of(x)
        if self.squeezed and ("rank", node) not in self._decided:
            self._decided.add(("rank", node))
            self.require(require_rank, (node, x.dim(), node.name + at(user_line())))

    def varies(self, x: Tensor) -> bool:
        """Whether the shape of a tensor may be another in another run."""
        return x.is_meta or bool(self._deps.get(id(x)))

    def size(self, x: Tensor, dim: int) -> Any:
        """Return one size of a tensor: a plain number where it is the same in every run."""
        if not self.varies(x) or (not x.is_meta and id(x) not in self._nodes):
            return x.size(dim)
        if not self.blind:
            if dim < 0:
                self.ask_rank(x)
            dim = range(x.dim())[dim]
        node = self.node_of(x)
        if dim == 1:
            channels = self.channels(node)
            if channels is not None and (self.blind or x.size(1) == channels):
                return channels
        key = (node, dim)
        text = f"{node.name}.shape[{dim}]"
        return TracedInt(None if self.blind else x.size(dim), self._read(key, "size", (node, dim), text), self)

    def _read(self, key: Any, method: str, args: tuple[Any, ...], text: str) -> Expression:
        """Return a size that is read off a value, right after the value was made."""
        node = self._numbers.get(key)
        if node is None:
            value = args[0]
            with self.graph.inserting_after(self._last_read.get(value, value)):
                node = self.graph.call_method(method, args)
            self.mark(node)
            self._numbers[key] = self._last_read[value] = node
        return Expression(None, (), text, node)

    def channels(self, node: Node) -> int | None:
        """Return how many channels, in dimension 1, a value has whatever the input; None where no layer tells."""
        facts = self._facts
        rank = len(self.shapes.get(node, ()))
        current = node
        while (call := facts.call(current)) is not None:
            if isinstance(call, ops.Absorber) and call.needed_rank and rank and rank != call.needed_rank:
                return None  # without a batch
            told = call.own_channels(facts) if isinstance(call, (ops.Absorber, ops.BatchNorm)) else None
            if told is not None or not call.keeps_channels:
                return told
            current = call.inputs[0]
        return None

    def _rank(self, x: Tensor) -> int:
        if self.blind:
            self.unknown("the number of dimensions")
        self.ask_rank(x)
        return x.dim()

    def _device_of(self, x: Tensor) -> torch.device:
        """Return the device of the inputs, as an object of its own: where it is used, the graph asks for it again."""
        device = torch.device(str(self.device))
        self._devices[id(device)] = (device, self.node_of(x))
        return device

    def _dtype_of(self, x: Tensor) -> torch.dtype:
        """Return the dtype of a value; where it is used from now on, the graph asks for it again."""
        node, dtype = self.node_of(x), x.dtype
        if dtype not in self._dtypes:
            read = self.mark(plain_node(self.graph, "call_function", getattr, (node, "dtype"), {}))
            self.require(require_dtype, (read, dtype, f"the dtype of `{node.name}`{at(user_line())}"))
            self._dtypes[dtype] = read
        return dtype

    def answer(self, func: Any, name: str, args: Any, kwargs: Any, found: list[Any], answer: Any) -> Any:
        """Return the answer of a call that gives no tensor, and let the graph check that it stays the same."""
        if not self.depends_on_data(found):
            self.pin(found)
            return answer
        if self.blind:
            self.unknown(name)
        if answer is None:
            return answer
        if not is_simple(answer):
            raise self.failed(
                CaptureError(f"forward asks for {name}{at(user_line())}, whose answer no graph can hold.", fix=APART)
            )
        node = self.record(func, name, args, kwargs)
        self.require_same_answer(node, None, (), answer, f"{name} of `{node.args[0] if node.args else ''}`")
        return answer

    def keep_devices(self) -> None:
        """Let the graph check the devices that code asked for, but where it only passed them on to torch."""
        for key, (device, node) in self._devices.items():
            if key not in self._devices_used:
                self.require_same_answer(node, getattr, (node, "device"), device, f"the device of `{node.name}`")

    def require_same_answer(self, of: Node, function: Any, args: tuple[Any, ...], answer: Any, what: str) -> None:
        """Let the graph check that a function of nodes, or a node itself, still gives an answer."""
        key = (of, function, str(args[1:]))
        if key in self._decided:
            return
        self._decided.add(key)
        node = of
        if function is not None:
            node = self.mark(self.graph.call_function(function, args))
        self.mark(self.graph.call_function(require_answer, (node, answer, what + at(user_line()))))

    def decided(self, left: Any, comparison: str, right: Any, holds: bool) -> None:
        """Let the graph check that a comparison comes out as it did in this run."""
        sides = [value.expression.key if type(value) in TRACED else value for value in (left, right)]
        key = (sides[0], comparison, sides[1])
        if key in self._decided or self.inside:
            return
        self._decided.add(key)
        texts = [value.expression.text if type(value) in TRACED else str(value) for value in (left, right)]
        verb = "holds" if holds else "does not hold"
        where = f"`{texts[0]} {comparison} {texts[1]}` {verb}{at(user_line())}"
        self.mark(self.graph.call_function(require_number, (self.arg(left), comparison, self.arg(right), holds, where)))

    def called_plainly(self, frame: FrameType | None) -> None:
        """Note that code made a plain number of a size."""
        if not self.inside and self.open:
            self.plain_calls.add(calls_plainly(frame))

    def unknown(self, text: str) -> Any:
        """Raise: code asks for a number that only an input tells."""
        raise self.failed(
            NeedsInputsError(
                f"forward asks for {text}{at(user_line())}, which only an input tells.", fix="Pass example_inputs."
            )
        )

    def data_question(self, name: str) -> DataQuestionError:
        """Return the error for a question that only data answers."""
        what = ASK_FOR_DATA.get(name, name)
        return DataQuestionError(
            f"{type(self.root).__name__}.forward asks for {what} of a value that depends on its input"
            f"{at(user_line())}: no graph answers that for every input.",
            fix="Compute it without a decision (torch.where, masks), or fold the parts of the model one by one.",
        )

    def pin(self, found: Sequence[Any]) -> None:
        """Let the graph check the numbers that a value depends on, whose content is asked for."""
        for traced in [*self.all_deps(found).values(), *(self._tainted.values() if found else ())]:
            if traced.value is None:
                self.unknown(traced.expression.text)
            self.decided(traced, "==", traced.value, True)

    def all_deps(self, found: Sequence[Any]) -> Deps:
        """Return the traced numbers that some tensors and numbers depend on."""
        deps: Deps = {}
        for leaf in found:
            if isinstance(leaf, Tensor):
                deps.update(self._deps.get(id(leaf)) or self._made_of(leaf))
            else:
                deps[leaf.expression.key] = leaf
        return deps

    def _made_of(self, tensor: Tensor) -> Deps:
        """Return what the memory of a real tensor depends on, of which torch's functions show no more than that."""
        if tensor.is_meta or not self._memory_deps or id(tensor) in self._names:
            return {}
        return self._memory_deps.get(memory_of(tensor), {})

    def depends_on_data(self, found: Sequence[Any]) -> bool:
        """Whether a value among tensors and numbers depends on the model's input."""
        data = False
        for leaf in found:
            if isinstance(leaf, Tensor) and leaf.is_meta:
                if id(leaf) not in self._nodes:
                    raise self.failed(
                        CaptureError(
                            f"forward uses a tensor{at(user_line())} that was computed out of sight of torch's "
                            "functions in Python.",
                            fix=APART,
                        )
                    )
                data = True
        return data

    def failed(self, error: _Error) -> _Error:
        """Remember an error that is about to be raised, and return it: code that catches it has no right answer."""
        self.error = self.error or error
        return error

    def like(self, x: Tensor) -> Tensor:
        """Return a tensor without data of the shape of another."""
        return self.stand_in() if self.blind else torch.empty(x.size(), dtype=x.dtype, device="meta")

    def stand_in(self) -> Tensor:
        """Return a tensor for a value of which nothing is known."""
        return torch.empty(0, dtype=self._dtype, device="meta")


def is_simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(is_simple, value))
    return isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def _ask_size(self: Questions, func: Any, _name: str, args: Any, kwargs: Any) -> Any:
    x = args[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim is None:
        return self._shape(x)
    return self.size(x, settled(dim)) if isinstance(dim, int) else func(*args, **kwargs)


def _ask_rank(self: Questions, _func: Any, _name: str, args: Any, _kwargs: Any) -> Any:
    return self._rank(args[0]) if args[0].is_meta else args[0].dim()


def _ask_count(self: Questions, func: Any, _name: str, args: Any, kwargs: Any) -> Any:
    x = args[0] if args else kwargs["input"]
    if not self.varies(x):
        return func(x)
    node = self.node_of(x)
    expression = self._read((node, "numel"), "numel", (node,), f"{node.name}.numel()")
    return TracedInt(None if self.blind else x.numel(), expression, self)


def _ask_length(self: Questions, _func: Any, _name: str, args: Any, _kwargs: Any) -> Any:
    if not self.blind and args[0].dim() == 0:
        raise TypeError("len() of a 0-d tensor")
    size = self.size(args[0], 0)
    if type(size) is TracedInt:
        self.called_plainly(user_frame())
    return operator.index(size)


def _ask_type(self: Questions, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if len(args) + len(kwargs) > 1 or not args[0].is_meta:
        return self.call(func, name, args, kwargs)
    if self.blind:
        self.unknown("the type")
    answer = torch.empty(0, dtype=args[0].dtype, device=self.device).type()
    node = self.node_of(args[0])
    read = self.record(func, name, args, kwargs)
    self.require_same_answer(read, None, (), answer, f"the type of `{node.name}`")
    return answer


def _ask_device(self: Questions, func: Any, _name: str, args: Any, _kwargs: Any) -> Any:
    return func(args[0]) if not args[0].is_meta else (-1 if self.device.type == "cpu" else self.device.index or 0)


def _itself(self: Questions, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    x = args[0]
    if not x.is_meta:
        return self.call(func, name, args, kwargs)
    if self.device.type != "cpu":
        raise CaptureError(f"forward moves a tensor to the CPU{at(user_line())}.", fix=APART)
    self.depends_on_data((x,))
    return x


def _compute(_self: Questions, func: Any, _name: str, args: Any, kwargs: Any) -> Any:
    """Let torch's function of numbers ask these to compute it."""
    return func(*args, **kwargs)


QUESTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.size: _ask_size,
    torch.ops.aten.sym_size.int: _ask_size,
    torch.Tensor.dim: _ask_rank,
    torch.Tensor.ndimension: _ask_rank,
    torch.Tensor.numel: _ask_count,
    torch.Tensor.nelement: _ask_count,
    torch.numel: _ask_count,
    torch.ops.aten.sym_numel.default: _ask_count,
    **dict.fromkeys((torch.sym_float, torch.sym_int, torch.sym_max, torch.sym_min), _compute),
    torch.Tensor.__len__: _ask_length,
    torch.Tensor.type: _ask_type,
    torch.Tensor.get_device: _ask_device,
    torch.Tensor.cpu: _itself,
}
