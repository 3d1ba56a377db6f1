"""Record one run of a model as a torch.fx graph.

The model's own code runs on tensors without data, so whatever it asks (``isinstance``, ``type``, ``hasattr``, a
condition on a size) is answered as in any run: :mod:`bnfold.graph.dataless`. A :class:`Recorder` sees every torch call
outside of leaf modules, and the leaf modules; both become nodes. Sizes are numbers that know how they were computed
(:mod:`bnfold.graph.traced`): where one decides something, the graph gets a check; where one is used in a call, the
computation becomes part of it.

What code asks of a value that depends on the model's input has no answer, and raises :class:`DataQuestionError`.

Without example inputs (``Recorder(..., blind=True)``) nothing is known of shapes: calls are recorded and not run, and a
question about a size raises, too.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FrameType, FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from bnfold.capture.lines import user_frame, user_line
from bnfold.capture.plain_calls import calls_plainly
from bnfold.capture.regions import followed
from bnfold.capture.restore import same_random_numbers
from bnfold.errors import CaptureError, NeedsInputsError
from bnfold.graph import calls
from bnfold.graph.captured import NARROW, Capture
from bnfold.graph.dataless import Dataless, leaves, settle
from bnfold.graph.effects import RANDOM
from bnfold.graph.facts import Facts
from bnfold.graph.inplace import IN_PLACE
from bnfold.graph.leaves import carries_hooks, is_leaf, is_torchs
from bnfold.graph.requires import require_answer, require_dtype, require_number
from bnfold.graph.traced import Expression, TracedFloat, TracedInt, settled

__all__ = ["DataQuestionError", "ImpureError", "Recorder", "WrittenLaterError"]


class ImpureError(CaptureError):
    """``forward`` does more than compute its output from its input, and no graph records that."""


class DataQuestionError(CaptureError):
    """``forward`` asks for a value that depends on the model's input."""


class WrittenLaterError(Exception):
    """A tensor that the code makes is written to, later, with values that depend on the model's input."""

    def __init__(self, line: str | None) -> None:
        super().__init__(line)
        self.line = line


_Error = TypeVar("_Error", bound=Exception)
Deps = dict[Any, Any]  # the traced numbers that a tensor depends on, by the key of their expression


class Recorder(TorchFunctionMode):
    """Records what runs while it is entered. See the module's docstring.

    Args:
        root: the model.
        constants: gets the tensors that the graph reads and the model does not hold, by name.
        blind: whether nothing is known of the shapes of values.
        device: of the inputs.
        data_lines: source lines where tensors are made that get values of the data later.
    """

    def __init__(
        self, root: nn.Module, *, blind: bool = False, device: torch.device | None = None, data_lines: set[str | None]
    ) -> None:
        super().__init__()
        self.root = root
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}
        self.shapes: dict[Node, tuple[int, ...]] = {}
        self.blind = blind
        self.open = False
        self.error: Exception | None = None  # what was raised first: the model's code may have caught it
        self.rank_asked = False
        self.plain_calls: set[tuple[CodeType, ...]] = set()
        self.dataless = Dataless()
        self.device = device or torch.device("cpu")
        self._data_lines = data_lines
        floating = next((tensor for tensor in root.parameters() if tensor.is_floating_point()), None)
        self._dtype = None if floating is None else floating.dtype  # of what nothing is known of
        self._nodes: dict[int, Node] = {}
        self._deps: dict[int, Deps] = {}  # of real tensors that the code made
        self._made_at: dict[int, str | None] = {}  # the memory of real tensors that the code made
        self._alive: list[Any] = []
        self._inside = 0
        self._names: dict[int, str] = {}
        self._constant_names: dict[int, str] = {}
        self._modules: dict[int, str] = {}
        self._attributes: dict[str, Node] = {}
        self._leaves: set[int] = set()
        self._numbers: dict[Any, Node] = {}
        self._decided: set[Any] = set()
        self._last_read: dict[Node, Node] = {}
        self._narrow: dict[str, torch.dtype] = {}
        self._tainted: Deps = {}  # what was written into tensors that the code made: their views depend on it, too
        self._dtypes: dict[torch.dtype, Node] = {}
        self._devices: dict[int, tuple[torch.device, Node]] = {}
        self._scope = ""
        self._facts = Facts(Capture(self.graph, root, self.constants, "recorded"))
        for path, part in root.named_modules():
            self._modules.setdefault(id(part), path)
            if path and is_leaf(part):
                self._leaves.add(id(part))
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    self._names.setdefault(id(tensor), f"{path}.{name}" if path else name)
        self.special: dict[int, Callable[[tuple[Any, ...], dict[str, Any]], Any]] = {}

    # --- a run ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While entered, what this thread runs is recorded."""
        with followed(self), _calls_seen(self), torch.no_grad(), self:
            self.open = True
            try:
                yield
            finally:
                self.open = False
        if self.error is not None:
            raise self.error

    def failed(self, error: _Error) -> _Error:
        """Remember an error that is about to be raised, and return it: code that catches it has no right answer."""
        self.error = self.error or error
        return error

    def enter_tensor(self, value: Tensor, node: Node) -> Tensor:
        """Return the tensor that stands for an input."""
        if self.blind:
            new = self._stand_in()
        elif value.layout is not torch.strided:
            raise CaptureError(f"An input is {value.layout}, which cannot be run without data.", fix=_FIX)
        else:
            new = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        self.put(node, new)
        return new

    def name_constant(self, tensor: Tensor, name: str, narrow: torch.dtype | None = None) -> None:
        """Give a tensor that the model does not hold a name in the graph."""
        self.constants[name] = tensor
        self._constant_names[id(tensor)] = name
        if narrow is not None:
            self._narrow[name] = narrow

    def name_of(self, tensor: Tensor) -> str | None:
        """Return the name of a tensor that the model holds."""
        return self._names.get(id(tensor))

    def runs_here(self) -> bool:
        """Whether this thread's run is the one that is recorded."""
        return _RECORDING.get(threading.get_ident()) is self

    def remembers(self, value: Tensor, name: str) -> bool:
        """Whether a value that outlives the run depends on the model's input, or on the attribute ``name``."""
        if value.is_meta:
            return True
        stack = [self._nodes[id(value)]] if id(value) in self._nodes else []
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node.op == "get_attr" and node.target == name:
                return True
            if node not in seen:
                seen.add(node)
                stack.extend(node.all_input_nodes)
        return False

    # --- what the run shows: calls of torch -------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See a call of torch: run it, and record it."""
        kwargs = kwargs or {}
        if self._inside:
            return self._run_inside(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(args[0], func)
        question = _QUESTIONS.get(func)
        if question is not None:
            return question(self, func, name, args, kwargs)
        return self._call(func, name, args, kwargs)

    def _run_inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a call inside of a leaf module, which is not recorded."""
        if getattr(func, "__name__", "") == "__get__":
            return func(*args)
        found = leaves((args, kwargs), [])
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in found):
            return self.dataless.call(func, args, kwargs)
        return func(*args, **kwargs)

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        found = leaves((args, kwargs), [])
        data = self._depends_on_data(found)
        if name in _ASK_FOR_DATA:
            if data:
                raise self.failed(self._data_question(name))
            self._pin(found)
            return func(*settle(args, _same), **settle(kwargs, _same))
        if name in _CHANGE_MEMORY or (name == "__set__" and func.__self__.__name__ == "data"):
            raise self.failed(
                CaptureError(
                    f"forward changes the memory of a tensor in place ({name}){_at(user_line())}.",
                    fix="Use the operation that returns a new tensor.",
                )
            )
        if name == "__set__" or name in _SETTINGS:
            return func(*args, **kwargs)
        if name in RANDOM and not data and not name.startswith(("empty", "new_empty")) and "dropout" not in name:
            raise self.failed(
                ImpureError(
                    f"{type(self.root).__name__}.forward draws random numbers{_at(user_line())}, which a graph would "
                    "freeze.",
                    fix="Make it deterministic in eval mode.",
                )
            )
        written = _written(func, name, args, kwargs)
        if written is not None:
            self._require_own(written, data=data)
        result = self._run(func, name, args, kwargs, data)
        if written is None and args and result is args[0] and not data:
            if name not in _CONVERSIONS:
                return result  # nothing happened: a `.contiguous()` of what is
            result = result.detach()  # nothing happened in this type; in another something will
            if id(args[0]) in self._names:
                self._names[id(result)] = self._names[id(args[0])]
        if not leaves(result, []) and name != "__setitem__":
            return self._answer(func, name, args, kwargs, found, result)
        try:
            node = self.record(func, name, args, kwargs)
        except _NotArgumentError as error:
            if data:
                self.failed(error)
                raise
            return result  # made of what no graph can hold: numpy's arrays, say; its value stays
        deps = self._all_deps(found)
        if written is not None and not data:
            self._deps.setdefault(id(written), {}).update(deps)
            self._tainted.update(deps)
        self._require_count(name, args, kwargs, result)  # before the pieces are taken
        self.put(node, result, deps)
        return result

    def _run(self, func: Any, name: str, args: Any, kwargs: Any, data: bool) -> Any:
        if name == "__deepcopy__":
            return self.like(args[0]) if data else args[0].detach().clone()
        if data:
            if self.blind:
                return self._blind_result(name, args, kwargs)
            if name == "__setitem__":
                return None
            try:
                return self.dataless.call(func, args, kwargs)
            except NotImplementedError as error:  # the shape of what comes out is a question about data: `x[mask]`
                if "data-independent" not in str(error):
                    raise
                raise self.failed(self._data_question("nonzero")) from error
        if self.blind and any(value is None for value in _values((args, kwargs))):
            return self._stand_in()
        made = not any(isinstance(leaf, Tensor) for leaf in leaves((args, kwargs), []))
        if made and self._data_lines and user_line() in self._data_lines:
            return func(*settle(args, _same, _to_meta), **{**settle(kwargs, _same), "device": "meta"})
        for value in _written_values(func, name, args, kwargs):
            self.dataless.forget(value)
        return func(*settle(args, _same), **settle(kwargs, _same))

    def _require_own(self, written: Tensor, *, data: bool) -> None:
        """Raise for a write into a tensor that outlives the run."""
        if written.is_meta:
            return
        if id(written) not in self._deps:
            name = self._names.get(id(written))
            base = written._base
            while name is None and base is not None:
                name, base = self._names.get(id(base)), base._base
            what = f"the buffer `{name}`" if name else "a tensor that it does not make itself"
            raise self.failed(
                ImpureError(
                    f"{type(self.root).__name__}.forward writes into {what}{_at(user_line())}, which a graph would "
                    "freeze.",
                    fix="Let it leave its buffers alone in eval mode.",
                )
            )
        if data:
            raise self.failed(WrittenLaterError(self._made_at.get(_memory(written))))

    def _require_count(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Check that a call which cuts a value in pieces cuts it in as many."""
        if name not in ("unbind", "split", "chunk") or not isinstance(result, (tuple, list)) or self.blind:
            return
        x = args[0]
        given = list(args[1:])
        if name == "unbind":
            dim = kwargs.get("dim", given[0] if given else 0)
            pieces = 1
        else:
            pieces = given[0] if given else kwargs.get("split_size", kwargs.get("chunks", None))
            dim = kwargs.get("dim", given[1] if len(given) > 1 else 0)
        if not isinstance(pieces, int) or not isinstance(dim, int):
            return
        size = self.size(x, settled(dim))
        if not isinstance(size, TracedInt):
            return
        if name == "chunk":
            pieces = (size + (pieces - 1)) // pieces
        count = size if name == "unbind" else -(-size // pieces)
        if isinstance(count, TracedInt):
            self.decided(count, "==", len(result), True)

    # --- questions --------------------------------------------------------------------------------------------------

    def _attribute(self, x: Tensor, func: Any) -> Any:
        name = func.__self__.__name__
        if name in _TENSOR_ATTRIBUTES:
            return self._call(func, "__get__", (x,), {}) if name != "grad" else func(x)
        if name == "shape":
            return self._shape(x)
        if not x.is_meta or id(x) not in self._nodes:
            return func(x)
        if name == "ndim":
            return self._rank(x)
        if name == "device":
            return self._device_of(x)
        if self.blind and name != "dtype" and name not in _DEVICE_ATTRIBUTES:
            self.unknown(f".{name}")
        if name in _DEVICE_ATTRIBUTES:
            answer: Any = getattr(torch.empty(0, device=self.device), name)
        else:
            answer = func(x)
        if name == "dtype":
            return self._dtype_of(x)
        if name not in ("requires_grad", "is_leaf", "grad_fn", "layout", "itemsize", "is_meta", "retains_grad"):
            node = self._node_of(x)
            self._require_answer(node, getattr, (node, name), answer, f"the {name} of `{node.name}`")
        return answer

    def _shape(self, x: Tensor) -> Any:
        if self.blind and x.is_meta:
            return _UnknownShape(self, x)
        if not self._varies(x):
            return x.size()
        self.rank_asked = True
        return torch.Size([self.size(x, dim) for dim in range(x.dim())])

    def _varies(self, x: Tensor) -> bool:
        """Whether the shape of a tensor may be another in another run."""
        return x.is_meta or bool(self._deps.get(id(x)))

    def size(self, x: Tensor, dim: int) -> Any:
        """Return one size of a tensor: a plain number where it is the same in every run."""
        if not self._varies(x) or (not x.is_meta and id(x) not in self._nodes):
            return x.size(dim)
        if not self.blind:
            self.rank_asked |= dim < 0
            dim = range(x.dim())[dim]
        node = self._node_of(x)
        if dim == 1:
            channels = self._channels(node)
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
            self._mark(node)
            self._numbers[key] = self._last_read[value] = node
        return Expression(None, (), text, node)

    def _channels(self, node: Node) -> int | None:
        """Return how many channels, in dimension 1, a value has whatever the input; None where no layer tells."""
        facts = self._facts
        rank = len(self.shapes.get(node, ()))
        current = node
        while (call := facts.call(current)) is not None:
            if isinstance(call, (calls.Convolution, calls.TransposedConvolution)):
                unbatched = rank and rank != call.spatial_dims + 2
                return None if unbatched else facts.told_channels(call)
            if isinstance(call, calls.BatchNorm):
                return facts.told_channels(call)
            if not isinstance(call, _SAME_CHANNELS) or not call.inputs:
                return None
            current = call.inputs[0]
        return None

    def _rank(self, x: Tensor) -> int:
        if self.blind:
            self.unknown("the number of dimensions")
        self.rank_asked = True
        return x.dim()

    def _device_of(self, x: Tensor) -> torch.device:
        """Return the device of the inputs, as an object of its own: where it is used, the graph asks for it again."""
        device = torch.device(str(self.device))
        self._devices[id(device)] = (device, self._node_of(x))
        return device

    def _dtype_of(self, x: Tensor) -> torch.dtype:
        """Return the dtype of a value; where it is used from now on, the graph asks for it again."""
        node, dtype = self._node_of(x), x.dtype
        if dtype not in self._dtypes:
            read = self._mark(_plain_node(self.graph, "call_function", getattr, (node, "dtype"), {}))
            self.require(require_dtype, (read, dtype, f"the dtype of `{node.name}`{_at(user_line())}"))
            self._dtypes[dtype] = read
        return dtype

    def _answer(self, func: Any, name: str, args: Any, kwargs: Any, found: list[Any], answer: Any) -> Any:
        """Return the answer of a call that gives no tensor, and let the graph check that it stays the same."""
        if not self._depends_on_data(found):
            self._pin(found)
            return answer
        if self.blind:
            self.unknown(name)
        if answer is None:
            return answer
        if not _is_simple(answer):
            raise self.failed(
                CaptureError(f"forward asks for {name}{_at(user_line())}, whose answer no graph can hold.", fix=_FIX)
            )
        node = self.record(func, name, args, kwargs)
        self._require_answer(node, None, (), answer, f"{name} of `{node.args[0] if node.args else ''}`")
        return answer

    def _require_answer(self, of: Node, function: Any, args: tuple[Any, ...], answer: Any, what: str) -> None:
        key = (of, function, str(args[1:]))
        if key in self._decided:
            return
        self._decided.add(key)
        node = of
        if function is not None:
            node = self._mark(self.graph.call_function(function, args))
        self._mark(self.graph.call_function(require_answer, (node, answer, what + _at(user_line()))))

    def decided(self, left: Any, comparison: str, right: Any, holds: bool) -> None:
        """Let the graph check that a comparison comes out as it did in this run."""
        sides = [value.expression.key if type(value) in _TRACED else value for value in (left, right)]
        key = (sides[0], comparison, sides[1])
        if key in self._decided or self._inside:
            return
        self._decided.add(key)
        texts = [value.expression.text if type(value) in _TRACED else str(value) for value in (left, right)]
        verb = "holds" if holds else "does not hold"
        where = f"`{texts[0]} {comparison} {texts[1]}` {verb}{_at(user_line())}"
        self._mark(
            self.graph.call_function(require_number, (self.arg(left), comparison, self.arg(right), holds, where))
        )

    def called_plainly(self, frame: FrameType | None) -> None:
        """Note that code made a plain number of a size."""
        if not self._inside and self.open:
            self.plain_calls.add(calls_plainly(frame))

    def unknown(self, text: str) -> Any:
        """Raise: code asks for a number that only an input tells."""
        raise self.failed(
            NeedsInputsError(
                f"forward asks for {text}{_at(user_line())}, which only an input tells.", fix="Pass example_inputs."
            )
        )

    def _data_question(self, name: str) -> DataQuestionError:
        what = _ASK_FOR_DATA.get(name, name)
        return DataQuestionError(
            f"{type(self.root).__name__}.forward asks for {what} of a value that depends on its input"
            f"{_at(user_line())}: no graph answers that for every input.",
            fix="Compute it without a decision (torch.where, masks), or fold the parts of the model one by one.",
        )

    def _pin(self, found: Sequence[Any]) -> None:
        """Let the graph check the numbers that a value depends on, whose content is asked for."""
        for traced in [*self._all_deps(found).values(), *(self._tainted.values() if found else ())]:
            if traced.value is None:
                self.unknown(traced.expression.text)
            self.decided(traced, "==", traced.value, True)

    def _all_deps(self, found: Sequence[Any]) -> Deps:
        deps: Deps = {}
        for leaf in found:
            if isinstance(leaf, Tensor):
                deps.update(self._deps.get(id(leaf), {}))
            else:
                deps[leaf.expression.key] = leaf
        return deps

    def _depends_on_data(self, found: Sequence[Any]) -> bool:
        data = False
        for leaf in found:
            if isinstance(leaf, Tensor) and leaf.is_meta:
                if id(leaf) not in self._nodes:
                    raise self.failed(
                        CaptureError(
                            f"forward uses a tensor{_at(user_line())} that was computed out of sight of torch's "
                            "functions in Python.",
                            fix=_FIX,
                        )
                    )
                data = True
        return data

    # --- what the run shows: calls of modules -----------------------------------------------------------------------

    def call_module(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """See a call of a module: a leaf becomes a node, another is gone through."""
        if self._inside:
            return original(module, *args, **kwargs)
        path = self._modules.get(id(module))
        outer = self._scope
        self._scope = path if path is not None else outer
        try:
            special = self.special.get(id(module))
            if special is not None:
                with torch._C.DisableTorchFunction():
                    result = special(args, kwargs)
                if result is not NotImplemented:
                    return result
            if path is None or id(module) not in self._leaves or not self._holds_its_own(module):
                return original(module, *args, **kwargs)
            return self._call_leaf(original, module, path, args, kwargs)
        finally:
            self._scope = outer

    def _holds_its_own(self, module: nn.Module) -> bool:
        """Whether a layer computes with the tensors that the model holds, and not with others put in their places."""
        own = self._names
        return all(tensor is None or id(tensor) in own for tensor in module._parameters.values()) and all(
            tensor is None or id(tensor) in own for tensor in module._buffers.values()
        )

    def _call_leaf(self, original: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # this mode is active here, and must not see what is asked below
            found = leaves((args, kwargs), [])
            data = self._depends_on_data(found)
            nodes = self.arg(tuple(args)), self.arg(dict(kwargs))
            result = self._blind_layer(module, path) if self.blind and data else None
            if result is None and data:
                result = self.dataless.layer(module, args, kwargs)
            if result is None:
                args, kwargs = settle(args, _same), settle(kwargs, _same)
        if result is None:
            self._inside += 1
            try:
                result = self._run_leaf(original, module, args, kwargs, data=data)
            finally:
                self._inside -= 1
        with torch._C.DisableTorchFunction():
            node = self._mark(_plain_node(self.graph, "call_module", path, *nodes))
            self.put(node, result, self._all_deps(found))
        return result

    def _run_leaf(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any, *, data: bool) -> Any:
        """Run a leaf module for the shape of what it gives.

        Its hooks, which are not for a run without data, are left out. Code of the user's that looks at the data gets
        some: standard normal numbers.
        """
        if not data:
            return original(module, *args, **kwargs)
        run = module.forward if carries_hooks(module) else functools.partial(original, module)
        try:
            return run(*args, **kwargs)
        except (RuntimeError, NotImplementedError, TypeError):
            if is_torchs(module):
                raise
        with torch._C.DisableTorchFunction():
            drawn = settle(args, _drawn), settle(kwargs, _drawn)
        with torch._C.DisableTorchFunction(), same_random_numbers():
            result = run(*drawn[0], **drawn[1])
            return settle(result, self.dataless.twin)

    def _blind_layer(self, module: nn.Module, path: str) -> Tensor:
        if isinstance(module, _SEVERAL_LAYERS):
            raise NeedsInputsError(f"`{path}` gives several values.", fix="Pass example_inputs.")
        return self._stand_in()

    # --- nodes ------------------------------------------------------------------------------------------------------

    def record(self, func: Any, name: str, args: Any, kwargs: Any) -> Node:
        """Add a node for a call of torch, at the level at which the code wrote it."""
        nodes = [self.arg(value) for value in args]
        named = {key: self.arg(value) for key, value in kwargs.items()}
        if name == "__deepcopy__":
            return self._mark(_plain_node(self.graph, "call_method", "clone", (nodes[0],), {}))
        if name == "__get__":
            return self._mark(_plain_node(self.graph, "call_function", getattr, (nodes[0], func.__self__.__name__), {}))
        written = _OPERATORS.get(func)
        if written is not None and len(nodes) == written[1] and not named:
            target, _, swapped = written
            return self._mark(
                _plain_node(self.graph, "call_function", target, tuple(nodes[::-1] if swapped else nodes), {})
            )
        kind = type(func)
        if kind in (MethodDescriptorType, WrapperDescriptorType) or (
            kind is FunctionType and func.__module__ == "torch._tensor"
        ):
            return self._mark(_plain_node(self.graph, "call_method", name, tuple(nodes), named))
        return self._mark(_plain_node(self.graph, "call_function", func, tuple(nodes), named))

    def require(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
        """Add a node for a call that the code did not write; arguments are nodes and plain values."""
        return self._mark(_plain_node(self.graph, "call_function", function, args, dict(kwargs or {})))

    def _mark(self, node: Node) -> Node:
        node.meta["source"] = user_line()
        node.meta["module"] = self._scope
        return node

    def put(self, node: Node, value: Any, deps: Deps | None = None) -> None:
        """Let a node stand for a value: a tensor, or a nest with some."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._alive.append(value)
            if not value.is_meta:
                self._deps[id(value)] = deps or {}
                self._made_at.setdefault(_memory(value), node.meta.get("source"))
            elif not self.blind:
                self.shapes[node] = tuple(value.size())
        elif isinstance(value, (tuple, list)):
            for index, part in enumerate(value):
                if leaves(part, []):
                    self.put(_plain_node(self.graph, "call_function", operator.getitem, (node, index), {}), part, deps)
        elif isinstance(value, dict):
            for key, part in value.items():
                if leaves(part, []):
                    self.put(_plain_node(self.graph, "call_function", operator.getitem, (node, key), {}), part, deps)

    def _node_of(self, tensor: Tensor) -> Node:
        node = self._nodes.get(id(tensor))
        if node is not None:
            return node
        if tensor.is_meta:
            self._depends_on_data((tensor,))
        name = self._names.get(id(tensor)) or self._constant_names.get(id(tensor))
        if name is None:
            name = f"_tensor_constant{len(self.constants)}"
            while hasattr(self.root, name):
                name = "_" + name
            self.constants[name] = tensor
            self._constant_names[id(tensor)] = name
            self._alive.append(tensor)
        node = self._attributes.get(name)
        if node is None:
            node = self._attributes[name] = self._mark(_plain_node(self.graph, "get_attr", name, (), {}))
            if name in self._narrow:
                node.meta[NARROW] = self._narrow[name]
            self.shapes[node] = tuple(tensor.size())
        return node

    def _number(self, traced: Any) -> Any:
        """Return the node that computes a number when the graph runs."""
        expression = traced.expression
        if traced.session is not self:
            return traced.value
        if expression.node is not None:
            return expression.node
        node = self._numbers.get(expression.key)
        if node is None:
            args = tuple(self._number(arg) if type(arg) in _TRACED else arg for arg in expression.args)
            node = self._mark(_plain_node(self.graph, "call_function", expression.function, args, {}))
            self._numbers[expression.key] = node
        expression.node = node
        return node

    def arg(self, value: Any) -> Any:
        """Return what stands for a value as an argument of a node."""
        kind = type(value)
        if kind in _LITERALS:
            return value
        if isinstance(value, Tensor):
            return self._node_of(value)
        if kind in _TRACED:
            return self._number(value)
        if isinstance(value, (tuple, list)):
            parts = [self.arg(part) for part in value]
            if hasattr(value, "_fields"):
                return kind(*parts)
            return parts if isinstance(value, list) else tuple(parts)
        if kind is torch.device:
            asked = self._devices.get(id(value))
            if asked is None:
                return value
            return self._mark(_plain_node(self.graph, "call_function", getattr, (asked[1], "device"), {}))
        if kind is torch.dtype:
            return self._dtypes.get(value, value)
        if kind is dict:
            return {key: self.arg(part) for key, part in value.items()}
        if kind is slice:
            return slice(self.arg(value.start), self.arg(value.stop), self.arg(value.step))
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, (int, float, str)):  # a subclass, such as an enumeration's
            return kind.__mro__[-2](value) if kind.__mro__[-2] in (int, float, str) else value
        if kind in (type(Ellipsis), torch.memory_format, torch.layout, complex):
            return value
        raise _NotArgumentError(kind, user_line())  # not remembered: what is made of plain values keeps its value

    def like(self, x: Tensor) -> Tensor:
        """Return a tensor without data of the shape of another."""
        return self._stand_in() if self.blind else torch.empty(x.size(), dtype=x.dtype, device="meta")

    # --- without shapes ---------------------------------------------------------------------------------------------

    def _stand_in(self) -> Tensor:
        return torch.empty(0, dtype=self._dtype, device="meta")

    def _blind_result(self, name: str, args: Any, kwargs: Any) -> Any:
        if name == "__setitem__":
            return None
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Tensor):
            return args[0]
        given = list(args[1:])
        count = None
        if name == "chunk":
            count = given[0] if given else kwargs.get("chunks")
        elif name in ("split", "split_with_sizes"):
            sizes = given[0] if given else next(iter(kwargs.values()), None)
            count = len(sizes) if isinstance(sizes, (tuple, list)) else 0
        elif name in _PAIRS or (name in _PAIRS_WITH_DIM and (given or "dim" in kwargs)):
            count = 2
        elif name in ("unbind", "tensor_split", "hsplit", "vsplit", "dsplit"):
            count = 0
        if count is None:
            return self._stand_in()
        if type(count) is not int or count == 0:
            self.unknown(f"the pieces of {name}")
        return tuple(self._stand_in() for _ in range(count))


class _UnknownShape(tuple[Any, ...]):
    """The shape of a value of which nothing is known: each size can be computed with, and nothing be asked."""

    __slots__ = ()
    _held: dict[int, tuple[Recorder, Tensor]] = {}  # noqa: RUF012

    def __new__(cls, recorder: Recorder, x: Tensor) -> _UnknownShape:
        new = super().__new__(cls)
        cls._held[id(new)] = (recorder, x)
        recorder._alive.append(new)
        return new

    __class__ = property(lambda _self: torch.Size)

    def __getitem__(self, index: Any) -> Any:
        recorder, x = self._held[id(self)]
        if isinstance(index, int):
            return recorder.size(x, index)
        return recorder.unknown("the shape")

    def __iter__(self) -> Any:
        return self._held[id(self)][0].unknown("the shape")

    def __len__(self) -> int:
        return int(self._held[id(self)][0].unknown("the number of dimensions"))

    def __eq__(self, _other: object) -> bool:
        return bool(self._held[id(self)][0].unknown("the shape"))

    def __ne__(self, _other: object) -> bool:
        return bool(self._held[id(self)][0].unknown("the shape"))

    __hash__ = None  # type: ignore[assignment]


class _NotArgumentError(CaptureError):
    """A call has an argument that no graph can hold."""

    def __init__(self, kind: type, line: str | None) -> None:
        super().__init__(f"forward passes a {kind.__name__} to torch{_at(line)}, which no graph can hold.", fix=_FIX)

    def __reduce__(self) -> Any:
        return CaptureError, (self.what,), {"fix": self.fix}


_FIX = "Fold the parts of the model one by one."


def _plain_node(graph: Graph, op: str, target: Any, args: Any, kwargs: Any) -> Node:
    node = graph.create_node(op, target, (), {})
    node.args = args  # given to `create_node`, the arguments would be searched for symbolic sizes
    if kwargs:
        node.kwargs = kwargs
    return node


def _drawn(tensor: Tensor) -> Tensor:
    """Return a tensor with some numbers in the place of one without data."""
    if not tensor.is_meta:
        return tensor
    generator = torch.Generator().manual_seed(0)
    if not tensor.is_floating_point():
        return torch.zeros(tensor.size(), dtype=tensor.dtype)
    return torch.randn(tensor.size(), generator=generator).to(tensor.dtype)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _to_meta(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value


def _at(line: str | None) -> str:
    return f", at {line}" if line else ""


def _values(value: Any) -> Iterator[Any]:
    return (leaf.value for leaf in leaves(value, []) if type(leaf) in _TRACED)


def _is_simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_simple, value))
    return isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def _written(func: Any, name: str, args: Any, kwargs: Any) -> Tensor | None:
    """Return the tensor that a call writes into, if it does."""
    target: Any = None
    if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or kwargs.get("inplace") is True:
        target = args[0] if args else kwargs.get("input")
    elif getattr(func, "__module__", "") == "torch.nn.functional" and len(args) > 1 and args[-1] is True:
        target = args[0] if name in _ACTIVATIONS else None
    elif isinstance(kwargs.get("out"), Tensor):
        target = kwargs["out"]
    return target if isinstance(target, Tensor) else None


def _written_values(func: Any, name: str, args: Any, kwargs: Any) -> list[Tensor]:
    found = _written(func, name, args, kwargs)
    return [] if found is None else [found]


_TRACED = (TracedInt, TracedFloat)
_LITERALS = frozenset((int, float, bool, str, type(None)))
_ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu elu selu celu silu mish hardtanh hardswish hardsigmoid threshold rrelu dropout dropout1d "
    "dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
)
_SAME_CHANNELS = (
    calls.Passing,
    calls.PositivelyHomogeneous,
    calls.MaxPool,
    calls.AveragePool,
    calls.AdaptiveAveragePool,
    calls.Interpolate,
    calls.ByNumber,
)
_SEVERAL_LAYERS = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)
_PAIRS = frozenset("topk sort kthvalue mode cummax cummin aminmax std_mean var_mean".split())
_PAIRS_WITH_DIM = frozenset(("max", "min", "median", "nanmedian"))
_TENSOR_ATTRIBUTES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag", "grad"))
_DEVICE_ATTRIBUTES = frozenset("is_cuda is_cpu is_mps is_xpu is_meta is_ipu is_hpu is_maia is_mtia is_vulkan".split())
_ASK_FOR_DATA = {
    "__bool__": "the truth",
    "__int__": "the number",
    "__index__": "the number",
    "__float__": "the number",
    "__complex__": "the number",
    "item": "the number",
    "tolist": "the numbers",
    "numpy": "the numbers",
    "__array__": "the numbers",
    "__repr__": "the text",
    "__format__": "the text",
    "__contains__": "the numbers",
    "__reduce_ex__": "the content",
    "__dlpack__": "the memory",
    "data_ptr": "the memory",
    "untyped_storage": "the memory",
    "storage": "the memory",
    "_typed_storage": "the memory",
    "nonzero": "the places",
    "argwhere": "the places",
    "unique": "the different numbers",
    "unique_consecutive": "the different numbers",
    "_unique2": "the different numbers",
    "masked_select": "the numbers",
    "is_nonzero": "the truth",
    "equal": "the numbers",
    "allclose": "the numbers",
    "bincount": "the numbers",
}
_CHANGE_MEMORY = frozenset(("resize_", "resize_as_", "set_", "as_strided_"))
_CONVERSIONS = frozenset(("to", "type", "type_as"))
_SETTINGS = frozenset(("_set_grad_enabled", "requires_grad_", "set_grad_enabled", "retain_grad", "register_hook"))

# How Python's operators reach a mode, and what they are in a graph: the function, its arguments, whether swapped.
_OPERATORS: dict[Any, tuple[Any, int, bool]] = {
    torch.Tensor.__getitem__: (operator.getitem, 2, False),
    torch.Tensor.__setitem__: (operator.setitem, 3, False),
    torch.Tensor.neg: (operator.neg, 1, False),
    torch.Tensor.__eq__: (operator.eq, 2, False),
}
for _name, _function in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "matmul": operator.matmul,
    "remainder": operator.mod,
    "__floordiv__": operator.floordiv,
    "__pow__": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "ne": operator.ne,
}.items():
    _OPERATORS[getattr(torch.Tensor, _name)] = (_function, 2, False)
for _name, _function in {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}.items():
    if hasattr(torch.Tensor, _name):
        _OPERATORS[getattr(torch.Tensor, _name)] = (_function, 2, True)
for _name, _spelled in {
    "add_": "__iadd__",
    "sub_": "__isub__",
    "mul_": "__imul__",
    "div_": "__itruediv__",
    "floor_divide_": "__ifloordiv__",
    "remainder_": "__imod__",
}.items():
    _OPERATORS[getattr(torch.Tensor, _name)] = (IN_PLACE[_spelled], 2, False)


# --- questions about shapes, by the function that asks -----------------------------------------------------------


def _ask_size(self: Recorder, func: Any, _name: str, args: Any, kwargs: Any) -> Any:
    x = args[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim is None:
        return self._shape(x)
    return self.size(x, settled(dim)) if isinstance(dim, int) else func(*args, **kwargs)


def _ask_rank(self: Recorder, _func: Any, _name: str, args: Any, _kwargs: Any) -> Any:
    return self._rank(args[0]) if args[0].is_meta else args[0].dim()


def _ask_count(self: Recorder, func: Any, _name: str, args: Any, kwargs: Any) -> Any:
    x = args[0] if args else kwargs["input"]
    if not self._varies(x):
        return func(x)
    node = self._node_of(x)
    expression = self._read((node, "numel"), "numel", (node,), f"{node.name}.numel()")
    return TracedInt(None if self.blind else x.numel(), expression, self)


def _ask_length(self: Recorder, _func: Any, _name: str, args: Any, _kwargs: Any) -> Any:
    if not self.blind and args[0].dim() == 0:
        raise TypeError("len() of a 0-d tensor")
    size = self.size(args[0], 0)
    if type(size) is TracedInt:
        self.called_plainly(user_frame())
    return operator.index(size)


def _ask_type(self: Recorder, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if len(args) + len(kwargs) > 1 or not args[0].is_meta:
        return self._call(func, name, args, kwargs)
    if self.blind:
        self.unknown("the type")
    answer = torch.empty(0, dtype=args[0].dtype, device=self.device).type()
    node = self._node_of(args[0])
    read = self.record(func, name, args, kwargs)
    self._require_answer(read, None, (), answer, f"the type of `{node.name}`")
    return answer


def _ask_device(self: Recorder, func: Any, _name: str, args: Any, _kwargs: Any) -> Any:
    return func(args[0]) if not args[0].is_meta else (-1 if self.device.type == "cpu" else self.device.index or 0)


def _itself(self: Recorder, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    x = args[0]
    if not x.is_meta:
        return self._call(func, name, args, kwargs)
    if self.device.type != "cpu":
        raise CaptureError(f"forward moves a tensor to the CPU{_at(user_line())}.", fix=_FIX)
    self._depends_on_data((x,))
    return x


_QUESTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.size: _ask_size,
    torch.Tensor.dim: _ask_rank,
    torch.Tensor.ndimension: _ask_rank,
    torch.Tensor.numel: _ask_count,
    torch.Tensor.nelement: _ask_count,
    torch.numel: _ask_count,
    torch.Tensor.__len__: _ask_length,
    torch.Tensor.type: _ask_type,
    torch.Tensor.get_device: _ask_device,
    torch.Tensor.cpu: _itself,
}


# --- calls of modules are seen in the threads that record ---------------------------------------------------------

_RECORDING: dict[int, Recorder] = {}
_LOCK = threading.Lock()
_ORIGINAL: list[Callable[..., Any]] = []


@contextlib.contextmanager
def _calls_seen(recorder: Recorder) -> Iterator[None]:
    thread = threading.get_ident()
    outer = _RECORDING.get(thread)
    with _LOCK:
        if not _RECORDING:
            original = nn.Module.__call__
            _ORIGINAL[:] = [original]

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                found = _RECORDING.get(threading.get_ident())
                if found is None:
                    return original(module, *args, **kwargs)
                return found.call_module(original, module, args, kwargs)

            nn.Module.__call__ = call  # type: ignore[method-assign]
        _RECORDING[thread] = recorder
    try:
        yield
    finally:
        with _LOCK:
            if outer is None:
                del _RECORDING[thread]
            else:
                _RECORDING[thread] = outer
            if not _RECORDING:
                nn.Module.__call__ = _ORIGINAL[0]  # type: ignore[method-assign]
