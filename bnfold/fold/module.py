"""The class of a folded model: a ``GraphModule`` that is called as any other module is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule, Proxy
from torch.fx.graph import PythonCode

from bnfold.errors import OtherInputError
from bnfold.graph.torch_versions import children_of, find_named_tuples

__all__ = ["FoldedModule"]


class FoldedModule(GraphModule):
    """A ``GraphModule`` without the wrapper around ``__call__``.

    The wrapper prints a line of the generated code when an exception passes, and costs about a microsecond a call: more
    than one per cent of a small network's time.
    """

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
