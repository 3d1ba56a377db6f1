"""The class of a folded model: a ``GraphModule`` that is called as any other module is."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Proxy, Tracer
from torch.fx.graph import CodeGen, PythonCode
from torch.utils import _pytree as pytree

from bnfold.errors import OtherInputError
from bnfold.graph.torch_versions import children_of, find_named_tuples

__all__ = ["FoldedModule", "TracesFactories"]

_OF_NUMBERS = (
    "arange as_tensor bartlett_window blackman_window empty eye full hamming_window hann_window kaiser_window linspace "
    "logspace ones scalar_tensor tensor tril_indices triu_indices zeros"
).split()
# What makes tensors of numbers alone, and where generated code finds it. Most of these take no Proxy for a number.
_FACTORIES: dict[Any, tuple[Any, str]] = {
    **{getattr(torch, name): (torch, name) for name in _OF_NUMBERS},
    **{getattr(torch.fft, name): (torch._C._fft, f"fft_{name}") for name in ("fftfreq", "rfftfreq")},  # type: ignore[attr-defined]
}


class TracesFactories(Tracer):
    """Traces code that makes tensors of sizes: a pickled ``GraphModule`` is its code, which is traced to load it."""

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> Graph:
        """Trace a module, and see what it makes of numbers that are computed."""
        with contextlib.ExitStack() as patches:
            for function, (owner, name) in _FACTORIES.items():
                patches.enter_context(mock.patch.object(owner, name, self._seen(function)))
            return super().trace(root, concrete_args)

    def _seen(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(value, Proxy) for value in pytree.tree_leaves((args, kwargs))):
                return self.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call


class _PlainOutputs(CodeGen):
    """Lets an ``Interpreter``, as ``torch.export`` runs one, return what the generated code does: dicts and lists.

    A graph holds torch.fx's immutable ones, which would go into the program's outputs and its ``call_spec``.
    """

    def process_outputs(self, outputs: Any) -> Any:
        """Return the outputs with plain containers."""
        return _plain(outputs)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, tuple):
        parts = [_plain(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


class FoldedModule(GraphModule):
    """A ``GraphModule`` without the wrapper around ``__call__``.

    The wrapper prints a line of the generated code when an exception passes, and costs about a microsecond a call: more
    than one per cent of a small network's time.

    Args:
        root: as for ``GraphModule``: a module, or what the new one holds, by name.
        graph: kept; how its code is traced when it is unpickled is noted in it.
        class_name: of the new module.
    """

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "GraphModule") -> None:
        if any(node.target in _FACTORIES and node.all_input_nodes for node in graph.nodes):
            graph._tracer_cls = TracesFactories
        if type(graph._codegen) is CodeGen:  # else it makes the outputs of a structure of its own
            graph.set_codegen(_PlainOutputs())
        super().__init__(root, graph, class_name)

    def recompile(self) -> PythonCode:
        """Generate ``forward`` anew, and let ``nn.Module`` call it."""
        code = super().recompile()
        own = type(self)  # torch.fx makes a class for each instance, and puts the wrapper there
        if "__call__" in vars(own):
            del own.__call__
        find_named_tuples(own.forward, self.graph.output_node().args[0])
        info = getattr(self.graph._codegen, "pytree_info", None)
        if info is not None and info.in_spec is not None and _is_nest(info.in_spec):
            own.forward = _checked(own.forward, children_of(info.in_spec)[0])
        return code


def _is_nest(spec: Any) -> bool:
    """Whether an argument is a list, a tuple or a dict; the arguments are a tuple, and a dict of named ones."""
    return any(argument.type is not None for part in children_of(spec) for argument in children_of(part))


def _checked(forward: Any, spec: Any) -> Any:
    """Return ``forward`` that refuses nests of another structure: the code of torch.fx ignores what is more."""
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = list(signature.bind(*args, **kwargs).arguments.values())[1:]
        for name, value, wanted in zip(list(signature.parameters)[1:], given, children_of(spec), strict=False):
            if not _fits(value, wanted):
                raise OtherInputError(
                    f"argument {name!r} holds other parts than this graph was captured for by torch.export.",
                    fix="Fold the model again with example_inputs of the structure that you need.",
                )
        return forward(*args, **kwargs)

    return checked


def _fits(value: Any, spec: Any) -> bool:
    if spec.type is None or isinstance(value, Proxy):  # one value, or a graph that is traced again
        return True
    children = children_of(spec)
    if isinstance(value, Mapping):
        same = len(value) == len(children) and set(value) == set(spec.context)
        return same and all(_fits(value[key], child) for key, child in zip(spec.context, children, strict=True))
    if isinstance(value, (list, tuple)):
        return len(value) == len(children) and all(map(_fits, value, children))
    return False
