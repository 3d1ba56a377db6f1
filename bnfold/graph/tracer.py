"""A symbolic tracer that leaves the model as it found it and the program as it was written.

What it does differently from :class:`torch.fx.Tracer`:

* constants met on the way are kept beside the graph, not written into the model;
* ``x += y`` stays in place (:mod:`bnfold.graph.inplace`), so that what else looks at ``x`` sees it;
* ``isinstance(x, torch.Tensor)`` is answered as of a tensor (:mod:`bnfold.graph.proxies`);
* arguments with a default that the caller did not give take that default, guarded, so that ``if mask is not None``
  means what it says; and so do choices that the caller gives: None, a flag, a number, the name of a mode;
* parameters and buffers are found by identity in one look, where the base class searches all of them each time;
* a module that carries hooks, or whose ``forward`` was replaced on the instance, is a leaf, so that these run;
* each node knows the source line and the module it came from, in ``node.meta["source"]`` and ``["module"]``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import CodeType, FrameType, MethodType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.node import has_side_effect
from torch.nn.utils.parametrize import ParametrizationList

from bnfold.graph.proof import behaves_like_batch_norm
from bnfold.graph.proxies import InPlaceProxy, is_foreign
from bnfold.graph.taught import Normalizes, Statistics, claim_of, statistics_of

__all__ = [
    "CHOICES",
    "NARROW",
    "SIMPLE",
    "ModelTracer",
    "OtherInputError",
    "carries_hooks",
    "replaces_forward",
    "require_rank",
    "require_value",
]

SIMPLE = (bool, int, float, str, type(None), torch.dtype, torch.device)

# What code asks with `is`, for its type, or branches on. A traced value would answer wrongly, or stop.
CHOICES = (*SIMPLE, complex, Enum, torch.layout, torch.memory_format)


class OtherInputError(ValueError):
    """A folded model is called with an input for which its graph is not right."""


@has_side_effect
def require_value(value: Any, captured: Any, name: str) -> None:
    """Raise unless an argument, or a value inside of one, is what the graph was captured with.

    Raises:
        OtherInputError: it is not.
    """
    if isinstance(value, Proxy):  # a graph is traced again, when it is unpickled or folded again
        value.tracer.create_proxy("call_function", require_value, (value, captured, name), {})
        return
    if value is not captured and not (isinstance(value, SIMPLE) and value == captured):
        raise OtherInputError(
            f"argument {name!r} was captured as {captured!r}. To use another value, pass it in example_inputs when "
            "folding."
        )


@has_side_effect
def require_rank(value: Any, rank: int, name: str) -> None:
    """Raise unless ``value`` has ``rank`` dimensions, as the layer ``name`` takes for granted."""
    if isinstance(value, Proxy):
        value.tracer.create_proxy("call_function", require_rank, (value, rank, name), {})
        return
    if value.ndim != rank:
        raise ValueError(f"expected {rank}D input to {name} (got {value.ndim}D input)")


_LITERALS = frozenset((int, float, bool, str, type(None)))


def carries_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs more than its own ``forward``."""
    state = module.__dict__
    return bool(
        state.get("_forward_hooks")
        or state.get("_forward_pre_hooks")
        or state.get("_backward_hooks")
        or state.get("_backward_pre_hooks")
    )


def replaces_forward(module: nn.Module) -> bool:
    """Whether the instance has a ``forward`` that is not one of its own class's methods."""
    if "forward" not in module.__dict__:
        return False
    forward = module.__dict__["forward"]
    if not isinstance(forward, MethodType) or forward.__self__ is not module:
        return True
    return getattr(type(module), forward.__name__, None) is not forward.__func__


NARROW = "narrow"
"""In a node's ``meta``: the type in which float64 numbers computed from a layer of the user's are used."""


def _type_beside(layer: nn.Module) -> torch.dtype:
    """Return the type in which a BatchNorm's numbers stand beside the tensors of a layer."""
    tensors = (tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point())
    like = next(tensors, torch.empty(0))
    return torch.float32 if like.itemsize < 4 else like.dtype


def _has(root: nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return hasattr(root.get_submodule(owner), attribute)


class ModelTracer(Tracer):
    """See the module's docstring.

    Args:
        given: the positional arguments that the caller gives, for their classes; later ones with a default keep it.
        named: arguments that the caller gives by keyword.
    """

    proxy_buffer_attributes = False

    def __init__(self, given: tuple[Any, ...], named: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.given = given
        self.named = named or {}
        self.constants: dict[str, torch.Tensor] = {}
        self._constant_names: dict[int, str] = {}
        self._tensor_names: dict[int, str] = {}
        self._files: dict[CodeType, bool] = {}
        self._taught: dict[nn.Module, Statistics] = {}
        self._narrow: dict[str, torch.dtype] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> Graph:
        """Trace ``root``, an ``nn.Module``."""
        parts = dict(root.named_modules())
        for path, part in parts.items():
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                self._tensor_names.setdefault(id(tensor), f"{path}.{name}" if path else name)
        self._tensor_names.pop(id(None), None)
        self._read_taught(root, parts)
        if "forward" in root.__dict__:  # one of its methods: self.forward = self.forward_fast
            self.traced_func_name = root.forward.__name__
        with _dimension_checks_recorded(), _autocast_refused():
            return super().trace(root, concrete_args)

    def _read_taught(self, root: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        """Read the layers that the user said are BatchNorms in eval mode, and name what they compute with."""
        for path, part in parts.items():
            claim = claim_of(part)
            if not isinstance(claim, Normalizes) or carries_hooks(part) or replaces_forward(part):
                continue
            told = self._taught[part] = statistics_of(part, claim, path)
            for kind, tensor in zip(("running_mean", "running_var", "weight", "bias"), told.tensors, strict=True):
                if tensor is not None and id(tensor) not in self._tensor_names:
                    name = f"{path}.{kind}" if path else kind
                    while name in self.constants or _has(root, name):
                        name += "_"
                    self.constants[name] = tensor
                    self._constant_names[id(tensor)] = name
                    self._narrow[name] = _type_beside(part)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a layer; one that the user said is a BatchNorm in eval mode is written as the function."""
        told = self._taught.get(m)
        if told is None or len(args) != 1 or kwargs:
            return self._call(m, forward, args, kwargs)
        if told.rank is not None:
            self.create_proxy("call_function", require_rank, (args[0], told.rank, type(m).__name__), {})
        settings = {"training": False, "eps": told.eps}
        value = self.create_proxy("call_function", nn.functional.batch_norm, (*args, *told.tensors), settings)
        if any(tensor is not None and id(tensor) in self._constant_names for tensor in told.tensors):
            value.node.meta[NARROW] = _type_beside(m)
        return value

    def _call(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do as the base class does, but for its stack of modules, which nobody reads here."""
        path, outer = self.path_of_module(m), self.scope.module_path
        self.scope.module_path = path
        try:
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self.scope.module_path = outer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Leaves: torch's own layers, and whatever must be called as it is."""
        if isinstance(m, torch.jit.ScriptModule):
            raise TypeError(f"`{module_qualified_name}` is a TorchScript module, which has no Python source")
        if carries_hooks(m) or replaces_forward(m):
            return True
        if claim_of(m) is not None:
            return True
        if "parametrizations" in m._modules or isinstance(m, ParametrizationList):
            return False  # traced through, so that the weight is seen as computed from parameters
        if super().is_leaf_module(m, module_qualified_name) or type(m).__module__ == "bnfold.fold.explicit":
            return True
        return behaves_like_batch_norm(m)

    def proxy(self, node: Node) -> Proxy:
        """Wrap a node as a traced value."""
        return InPlaceProxy(node, self)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[Node], Proxy] | None = None,
    ) -> Proxy:
        """Add a node, and wrap it as a traced value."""
        arguments = self.create_arg(args)
        named = {key: self.create_arg(value) for key, value in kwargs.items()} if kwargs else {}
        node = self.create_node(kind, target, arguments, named, name, type_expr)
        return self.proxy(node) if proxy_factory_fn is None else proxy_factory_fn(node)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:  # noqa: ARG002
        """Return a traced value for a parameter, anything else as it is."""
        if isinstance(attr_val, torch.Tensor) and isinstance(attr_val, nn.Parameter):
            name = self._tensor_names.get(id(attr_val))
            if name is not None:
                proxy = parameter_proxy_cache.get(name)
                if proxy is None:
                    proxy = parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
                return proxy
        return attr_val

    def create_arg(self, a: Any) -> Any:
        """Turn a literal argument into what a node may hold; tensors become ``get_attr`` nodes."""
        kind = type(a)  # the most frequent first: the base class asks a dozen questions about each
        if kind is InPlaceProxy:
            return a.node
        if kind in _LITERALS:
            return a
        if kind is tuple:
            return tuple([self.create_arg(part) for part in a])
        if kind is list:
            return [self.create_arg(part) for part in a]
        if isinstance(a, torch.Tensor) and not issubclass(type(a), Proxy):
            name = self._tensor_names.get(id(a)) or self._constant_names.get(id(a))
            if name is None:
                name = f"_tensor_constant{len(self.constants)}"
                while hasattr(self.root, name):
                    name = "_" + name
                self.constants[name] = a
                self._constant_names[id(a)] = name
            return self.create_node("get_attr", name, (), {})
        if issubclass(type(a), dict) and type(a) is not dict:
            return self._create_kind_of_dict(a)
        return super().create_arg(a)

    def _create_kind_of_dict(self, a: Any) -> Node:
        """An ``OrderedDict``, or an output class that is a dict, is made anew when the graph runs, of the same kind."""
        if dataclasses.is_dataclass(a):
            given = {field.name: self.create_arg(getattr(a, field.name)) for field in dataclasses.fields(a)}
            return self.create_node("call_function", type(a), (), given)
        try:
            again = type(a)(dict(a))
            same = list(again) == list(a) and all(again[key] is value for key, value in a.items())
        except Exception:  # whatever its constructor raises
            same = False
        if not same:
            raise NotImplementedError(f"a {type(a).__name__} that is not made of a dict alone")
        return self.create_node("call_function", type(a), (self.create_arg(dict(a)),), {})

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> Node:
        """Add a node, with where it came from."""
        if isinstance(type_expr, str):  # an annotation as text, which a pickled graph could not import
            type_expr = None
        node = self.graph.create_node(kind, target, (), {}, name, type_expr)
        node.args = args  # given to `create_node`, the arguments would be searched for symbolic sizes
        if kwargs:
            node.kwargs = kwargs
        node.meta["source"] = self._user_line()
        node.meta["module"] = self.scope.module_path
        if kind == "get_attr" and target in self._narrow:
            node.meta[NARROW] = self._narrow[target]
        return node

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make the placeholders, and put values in place of those that are choices, or not given."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        position = 0
        for index, arg in enumerate(args):
            if not isinstance(arg, Proxy) or arg.node.op != "placeholder":
                continue
            name = str(arg.node.target)
            frozen = not name.startswith("*")
            if position < len(self.given) or name in self.named:
                value = self.given[position] if position < len(self.given) else self.named[name]
                arg.node.meta["class"] = type(value)
                frozen = frozen and isinstance(value, CHOICES)
            else:
                frozen = frozen and bool(arg.node.args)
                value = arg.node.args[0] if frozen else None  # the default
            if frozen:
                self.create_node("call_function", require_value, (arg.node, value, name), {})
                args[index] = value
            position += 1
        return function, args

    def _user_line(self) -> str | None:
        """Return ``file:line`` of the innermost frame of the user's code."""
        frame: FrameType | None = sys._getframe(2)
        files = self._files
        while frame is not None:
            code = frame.f_code
            skip = files.get(code)
            if skip is None:
                skip = files[code] = is_foreign(code.co_filename)
            if not skip:
                return f"{code.co_filename}:{frame.f_lineno}"
            if code is _TRACE:
                return None
            frame = frame.f_back
        return None


_TRACE = ModelTracer.trace.__code__


@contextlib.contextmanager
def _dimension_checks_recorded() -> Iterator[None]:
    """Let subclasses of BatchNorm be traced through.

    Their inherited ``forward`` asks for the number of dimensions first, which a traced value cannot answer: it is
    recorded as a guard instead.
    """
    ranks = ((nn.BatchNorm2d, 4), (nn.BatchNorm3d, 5), (nn.BatchNorm1d, None), (nn.SyncBatchNorm, None))
    saved: list[tuple[Any, Any]] = [(kind, kind._check_input_dim) for kind, _ in ranks]

    def recorder(check: Callable[[Any, Any], None], rank: int | None) -> Callable[[Any, Any], None]:
        def record(self: nn.Module, input: Any) -> None:
            if not isinstance(input, Proxy):
                check(self, input)
            elif rank is not None:
                input.tracer.create_proxy("call_function", require_rank, (input, rank, type(self).__name__), {})

        return record

    try:
        for (kind, check), (_, rank) in zip(saved, ranks, strict=True):
            kind._check_input_dim = recorder(check, rank)
        yield
    finally:
        for kind, check in saved:
            kind._check_input_dim = check


@contextlib.contextmanager
def _autocast_refused() -> Iterator[None]:
    """A graph does not record ``with autocast()``: stop where the model's code enters one that is enabled."""
    enter = torch.autocast.__enter__

    def refuse(self: torch.autocast) -> Any:
        if self._enabled:
            raise RuntimeError("forward enters torch.autocast, which a traced graph would lose")
        return enter(self)  # type: ignore[no-untyped-call]

    torch.autocast.__enter__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
