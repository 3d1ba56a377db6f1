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
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from bnfold.capture.blind import blind_result
from bnfold.capture.failures import APART, DataQuestionError, ImpureError, NotArgumentError, WrittenLaterError, at
from bnfold.capture.lines import user_line
from bnfold.capture.nodes import TRACED, memory_of, plain_node
from bnfold.capture.questions import QUESTIONS, Questions
from bnfold.capture.regions import followed
from bnfold.capture.restore import same_random_numbers
from bnfold.capture.tables import (
    ASK_FOR_DATA,
    CHANGE_MEMORY,
    CONVERSIONS,
    MADE_LIKE,
    SETTINGS,
    TENSOR_ATTRIBUTES,
)
from bnfold.errors import BnfoldError, CaptureError, NeedsInputsError, first_line
from bnfold.graph.dataless import Dataless, leaves, settle
from bnfold.graph.effects import RANDOM, written_argument
from bnfold.graph.leaves import carries_hooks, is_leaf, is_torchs
from bnfold.graph.traced import TracedInt, settled

__all__ = ["DataQuestionError", "ImpureError", "Recorder", "WrittenLaterError"]

_SEVERAL_LAYERS = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


class Recorder(Questions, TorchFunctionMode):
    """Records what runs while it is entered. See the module's docstring.

    Args:
        root: the model.
        blind: whether nothing is known of the shapes of values.
        device: of the inputs.
        data_lines: source lines where tensors are made that get values of the data later.
    """

    def __init__(
        self, root: nn.Module, *, blind: bool = False, device: torch.device | None = None, data_lines: set[str | None]
    ) -> None:
        super().__init__(root, blind=blind, device=device)
        self.dataless = Dataless()
        self.special: dict[int, Callable[[tuple[Any, ...], dict[str, Any]], Any]] = {}  # layers written otherwise
        self._data_lines = data_lines
        self._shown: set[int] = set()  # the memory of tensors that numpy or Python was given
        self.modules = dict(root.named_modules())
        self._paths: dict[int, str] = {}
        self._leaves: set[int] = set()
        for path, part in self.modules.items():
            self._paths.setdefault(id(part), path)
            if path and is_leaf(part):
                self._leaves.add(id(part))
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    self._names.setdefault(id(tensor), f"{path}.{name}" if path else name)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While entered, what this thread runs is recorded."""
        with followed(self), calls_seen(self), torch.no_grad(), self:
            self.open = True
            try:
                yield
            finally:
                self.open = False
        self.keep_devices()
        if self.error is not None:
            raise self.error

    def enter_tensor(self, value: Tensor, node: Node) -> Tensor:
        """Return the tensor that stands for an input."""
        if self.blind:
            new = self.stand_in()
        elif value.layout is not torch.strided:
            raise CaptureError(f"An input is {value.layout}, which cannot be run without data.", fix=APART)
        else:
            new = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        self.put(node, new)
        return new

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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See a call of torch: run it, and record it."""
        kwargs = kwargs or {}
        if self.inside:
            return self._run_inside(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self.attribute(args[0], func)
        question = QUESTIONS.get(func)
        if question is not None:
            return question(self, func, name, args, kwargs)
        return self.call(func, name, args, kwargs)

    def _run_inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a call inside of a leaf module, which is not recorded."""
        if getattr(func, "__name__", "") == "__get__":
            return func(*args)
        found = leaves((args, kwargs), [])
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in found):
            return self.dataless.call(func, args, kwargs)
        return func(*args, **kwargs)

    def call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run a call of torch and record it; what gives no tensor is a question."""
        found = leaves((args, kwargs), [])
        data = self.depends_on_data(found)
        if name in ASK_FOR_DATA:
            if data:
                raise self.failed(self.data_question(name))
            self.pin(found)
            self._shown.update(memory_of(leaf) for leaf in found if isinstance(leaf, Tensor))
            return func(*settle(args, same), **settle(kwargs, same))
        if name in CHANGE_MEMORY or (name == "__set__" and func.__self__.__name__ in TENSOR_ATTRIBUTES):
            if id(args[0]) in self._names:
                self._require_own(args[0], data=False)
            raise self.failed(
                CaptureError(
                    f"forward changes the memory of a tensor in place ({name}){at(user_line())}.",
                    fix="Use the operation that returns a new tensor.",
                )
            )
        if name == "__set__" or name in SETTINGS:
            return func(*args, **kwargs)
        if name in RANDOM and not data and not name.startswith(("empty", "new_empty")) and "dropout" not in name:
            raise self.failed(
                ImpureError(
                    f"{type(self.root).__name__}.forward draws random numbers{at(user_line())}, which a graph would "
                    "freeze.",
                    fix="Make it deterministic in eval mode.",
                )
            )
        written = written_argument(func, name, args, kwargs)
        if isinstance(written, Tensor):
            self._require_own(written, data=data)
        try:
            result = self._run(func, name, args, kwargs, data)
        except Exception as error:  # code that catches it decides by it
            self._raised(error)
            raise
        self.squeezed |= data and name in ("squeeze", "squeeze_")
        if not isinstance(written, Tensor) and args and result is args[0] and not data:
            if name not in CONVERSIONS:
                return result  # nothing happened: a `.contiguous()` of what is
            result = result.detach()  # nothing happened in this type; in another something will
            if id(args[0]) in self._names:
                self._names[id(result)] = self._names[id(args[0])]
        if not leaves(result, []) and name != "__setitem__":
            return self.answer(func, name, args, kwargs, found, result)
        try:
            node = self.record(func, name, args, kwargs)
        except NotArgumentError as error:
            if data:
                self.failed(error)
                raise
            return result  # made of what no graph can hold: numpy's arrays, say; its value stays
        deps = self.all_deps(found)
        if data and isinstance(result, Tensor) and not result.is_meta and name.endswith("_like"):
            deps = self.all_deps(
                [size for dim in range(result.dim()) if type(size := self.size(args[0], dim)) in TRACED]
            )
        if isinstance(written, Tensor) and not data:
            self._deps.setdefault(id(written), {}).update(deps)
            self._tainted.update(deps)
            if memory_of(written) in self._shown:
                self.pin(found)
        self._require_count(name, args, kwargs, result)  # before the pieces are taken
        self.put(node, result, deps)
        return result

    def _run(self, func: Any, name: str, args: Any, kwargs: Any, data: bool) -> Any:
        if name == "__deepcopy__":
            return self.like(args[0]) if data else args[0].detach().clone()
        if data and not self.blind and name in MADE_LIKE and user_line() not in self._data_lines:
            return self._made_like(func, name, args, kwargs)
        if data:
            if self.blind:
                return blind_result(self, name, args, kwargs)
            if name == "__setitem__":
                return None
            try:
                return self.dataless.call(func, args, kwargs)
            except NotImplementedError as error:  # the shape of what comes out is a question about data: `x[mask]`
                if "data-independent" not in str(error):
                    raise
                raise self.failed(self.data_question("nonzero")) from error
        if self.blind and any(value is None for value in values_of((args, kwargs))):
            return self.stand_in()
        made = not any(isinstance(leaf, Tensor) for leaf in leaves((args, kwargs), []))
        if made and self._data_lines and user_line() in self._data_lines:
            return func(*settle(args, same, to_meta), **{**settle(kwargs, same), "device": "meta"})
        for value in _written_values(func, name, args, kwargs):
            self.dataless.forget(value)
        return func(*settle(args, same), **settle(kwargs, same))

    def _made_like(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        """Make a tensor that has no more of another than its shape or its type: a real one, as all that code makes."""
        x = args[0]
        if name.endswith("_like"):
            like = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=self.device)
        else:
            like = torch.empty(0, dtype=x.dtype, device=self.device)
        made: Tensor = func(like, *settle(args[1:], same), **settle(kwargs, same))
        return made

    def _raised(self, error: Exception) -> None:
        """Remember that a call of torch raised: for other sizes or types it may not."""
        if not isinstance(error, (BnfoldError, WrittenLaterError, TypeError, AttributeError)):  # of how it is written
            self.failed(
                CaptureError(
                    f"A run of {type(self.root).__name__} cannot be recorded: {first_line(error)}{at(user_line())}.",
                    fix=APART,
                )
            )

    @functools.cached_property
    def _held(self) -> dict[int, str]:
        """The memory of what the model holds: a view of it, or its ``.data``, is a tensor that the code makes."""
        held = (*self.root.named_parameters(), *self.root.named_buffers())
        return {memory_of(tensor): name for name, tensor in held if tensor.layout is torch.strided}

    def _require_own(self, written: Tensor, *, data: bool) -> None:
        """Raise for a write into a tensor that outlives the run."""
        if written.is_meta:
            return
        name = self._held.get(memory_of(written)) if written.layout is torch.strided else None
        if name or id(written) not in self._deps:
            what = f"the buffer `{name}`" if name else "a tensor that it does not make itself"
            raise self.failed(
                ImpureError(
                    f"{type(self.root).__name__}.forward writes into {what}{at(user_line())}, which a graph would "
                    "freeze.",
                    fix="Let it leave its buffers alone in eval mode.",
                )
            )
        if data:
            raise self.failed(WrittenLaterError(self._made_at.get(memory_of(written))))

    def _require_count(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Check that a call which cuts a value in pieces cuts it in as many."""
        name = name.removeprefix("unsafe_")
        if name not in _CUTS or not isinstance(result, (tuple, list)) or self.blind:
            return
        if name not in ("unbind", "split", "chunk"):  # a number of sections, or where to cut
            self.pin([leaf for leaf in leaves((args, kwargs), []) if not isinstance(leaf, Tensor)])
            return
        x = args[0] if args else kwargs["input"]
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

    def call_module(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """See a call of a module: a leaf becomes a node, another is gone through."""
        if self.inside:
            return original(module, *args, **kwargs)
        path = self._paths.get(id(module))
        outer = self.scope
        self.scope = path if path is not None else outer
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
            self.scope = outer

    def _holds_its_own(self, module: nn.Module) -> bool:
        """Whether a layer computes with the tensors that the model holds, and not with others put in their places."""
        own = self._names
        return all(tensor is None or id(tensor) in own for tensor in module._parameters.values()) and all(
            tensor is None or id(tensor) in own for tensor in module._buffers.values()
        )

    def _call_leaf(self, original: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # this mode is active here, and must not see what is asked below
            found = leaves((args, kwargs), [])
            data = self.depends_on_data(found)
            nodes = self.arg(tuple(args)), self.arg(dict(kwargs))
            result = self._blind_layer(module, path, args) if self.blind and data else None
            if result is None and data:
                result = self.dataless.layer(module, args, kwargs)
            if result is None:
                args, kwargs = settle(args, same), settle(kwargs, same)
        if result is None:
            self.inside += 1
            try:
                result = self._run_leaf(original, module, args, kwargs, data=data)
            except Exception as error:
                self._raised(error)
                raise
            finally:
                self.inside -= 1
        if data and not is_torchs(module) and not _of_tensors(result):
            raise self.failed(
                CaptureError(
                    f"`{path}` is called as a whole, and gives more than tensors{at(user_line())}.",
                    fix="Remove its hooks, or let it give tensors alone.",
                )
            )
        with torch._C.DisableTorchFunction():
            node = self.mark(plain_node(self.graph, "call_module", path, *nodes))
            self.put(node, result, self.all_deps(found))
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
            some = settle(args, drawn), settle(kwargs, drawn)
        with torch._C.DisableTorchFunction(), same_random_numbers():
            result = run(*some[0], **some[1])
            return settle(result, self.dataless.twin)

    def _blind_layer(self, module: nn.Module, path: str, args: Any) -> Tensor:
        passes = isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)) and not module.training
        if (passes or getattr(module, "inplace", False)) and args and isinstance(args[0], Tensor):
            return args[0]
        if isinstance(module, _SEVERAL_LAYERS):
            raise NeedsInputsError(f"`{path}` gives several values.", fix="Pass example_inputs.")
        return self.stand_in()


_CUTS = frozenset("unbind split chunk tensor_split hsplit vsplit dsplit".split())


def _of_tensors(value: Any) -> bool:
    """Whether a nest holds tensors and nothing else that could be another in another run."""
    if isinstance(value, (tuple, list)):
        return all(map(_of_tensors, value))
    if isinstance(value, dict):
        return all(map(_of_tensors, value.values()))
    return isinstance(value, Tensor) or value is None


def drawn(tensor: Tensor) -> Tensor:
    """Return a tensor with some numbers in the place of one without data."""
    if not tensor.is_meta:
        return tensor
    generator = torch.Generator().manual_seed(0)
    if not tensor.is_floating_point():
        return torch.zeros(tensor.size(), dtype=tensor.dtype, device="cpu")
    return torch.randn(tensor.size(), generator=generator, device="cpu").to(tensor.dtype)


def same(tensor: Tensor) -> Tensor:
    return tensor


def to_meta(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value


def values_of(value: Any) -> Iterator[Any]:
    return (leaf.value for leaf in leaves(value, []) if type(leaf) in TRACED)


def _written_values(func: Any, name: str, args: Any, kwargs: Any) -> list[Tensor]:
    found = written_argument(func, name, args, kwargs)
    return [found] if isinstance(found, Tensor) else []


# --- calls of modules are seen in the threads that record ---------------------------------------------------------

_RECORDING: dict[int, Recorder] = {}
_LOCK = threading.Lock()
_ORIGINAL: list[Callable[..., Any]] = []


@contextlib.contextmanager
def calls_seen(recorder: Recorder) -> Iterator[None]:
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
