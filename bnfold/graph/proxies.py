"""Traced values: in-place operators are recorded as in place, and ``isinstance`` answers as of what they stand for.

Code that asks ``isinstance(x, torch.Tensor)`` and was told of a proxy would silently take another branch than a tensor
takes. ``isinstance`` looks at ``x.__class__`` where the type itself does not fit, so the answer stands there: the class
of what the value will be for the model's own code, in whatever file, and the truth for torch and bnfold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, Proxy
from torch.fx.proxy import Attribute, TraceError

from bnfold.graph.inplace import IN_PLACE

__all__ = ["InPlaceProxy", "is_foreign"]

_NOT_THE_MODELS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.abspath(__file__)) + os.sep, "<")
_IS_TENSOR = torch.is_tensor.__code__


def is_foreign(filename: str) -> bool:
    """Whether a source file is torch's or bnfold's, or none at all, and so not the model's."""
    return filename.startswith(_NOT_THE_MODELS)


def _seen_class(self: Proxy) -> type:
    """The class that whoever asks should see."""
    code = sys._getframe(1).f_code
    if code is not _IS_TENSOR and is_foreign(code.co_filename):
        return type(self)
    return _class_to_be(self) or type(self)


def _class_to_be(self: Proxy) -> type | None:
    """The class that the value will have; None where that cannot be said."""
    if isinstance(self, InPlaceAttribute) and self._node is None:  # asking must not record a read
        return _ATTRIBUTES.get(self.attr)
    return class_of(self.node, self.tracer.root)  # type: ignore[attr-defined]


def _hash(self: Proxy) -> int:
    """Refuse to be looked up in a set or dict as a number: a traced one equals none, and the answer would be no.

    A tensor is looked up by its identity, and so is what stands for it.
    """
    if not is_foreign(sys._getframe(1).f_code.co_filename):
        kind = _class_to_be(self)
        if kind is not None and not issubclass(kind, Tensor):
            raise TraceError(f"a traced {kind.__name__} is looked up in a set or dict")
    return object.__hash__(self)


class InPlaceProxy(Proxy):
    """A traced value whose in-place operators are recorded as in place."""

    __class__ = property(_seen_class)
    __hash__ = _hash

    def __getattr__(self, k: str) -> Attribute:
        return InPlaceAttribute(self, k)


class InPlaceAttribute(Attribute):
    """An attribute of a traced value, such as ``x.data``, whose in-place operators are recorded as in place."""

    __class__ = property(_seen_class)
    __hash__ = _hash


def _record(function: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], Any]:
    def record(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name, _function in IN_PLACE.items():
    setattr(InPlaceProxy, _name, _record(_function))
    setattr(InPlaceAttribute, _name, _record(_function))


# --- what a value will be ----------------------------------------------------------------------------------------

_ATTRIBUTES: dict[str, type] = {
    "shape": torch.Size,
    "ndim": int,
    "dtype": torch.dtype,
    "device": torch.device,
    **dict.fromkeys(("data", "T", "mT", "H", "mH", "grad", "real", "imag"), Tensor),
}
_NUMBERS_OF = frozenset(("dim", "ndimension", "numel", "nelement", "__len__"))
_ARITHMETIC = frozenset(("add", "sub", "mul", "floordiv", "mod", "neg", "pos", "abs"))
_SEVERAL = frozenset(
    "split chunk unbind tensor_split hsplit vsplit dsplit split_with_sizes topk sort kthvalue mode cummax cummin "
    "aminmax std_mean var_mean".split()
)
_SEVERAL_WITH_DIM = frozenset(("max", "min", "median", "nanmedian"))
_SEVERAL_LAYERS = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


def class_of(node: Node, root: nn.Module) -> type | None:
    """Return the class that a node's value will have; None where that cannot be said, a tensor in case of doubt."""
    if node.op == "placeholder":
        given: type = node.meta.get("class", Tensor)
        return given
    if node.op == "call_module":
        return tuple if isinstance(root.get_submodule(str(node.target)), _SEVERAL_LAYERS) else Tensor
    if node.op == "call_method":
        return _class_of_method(node, str(node.target))
    if node.op != "call_function":
        return Tensor
    name = getattr(node.target, "__name__", "")
    if node.target is getattr:
        return _ATTRIBUTES.get(str(node.args[1])) if len(node.args) == 2 else None
    if (getattr(node.target, "__module__", None) or "") in ("_operator", "builtins", "math"):
        return _class_of_operator(node, name, root)
    return tuple if _gives_several(node, name) else Tensor


def _class_of_method(node: Node, name: str) -> type | None:
    if name == "size":
        return int if len(node.args) + len(node.kwargs) > 1 else torch.Size
    if name in _NUMBERS_OF:
        return int
    if name in ("item", "tolist"):
        return None
    return tuple if _gives_several(node, name) else Tensor


def _class_of_operator(node: Node, name: str, root: nn.Module) -> type | None:
    kinds = [class_of(value, root) for value in node.all_input_nodes]
    if Tensor in kinds:
        return Tensor
    if name == "getitem" and kinds:
        if kinds[0] is torch.Size:
            return int if isinstance(node.args[1], int) else torch.Size
        return Tensor if kinds[0] in (tuple, list, dict) else None  # of a split, of a list of inputs
    return int if name in _ARITHMETIC and set(kinds) == {int} else None


def _gives_several(node: Node, name: str) -> bool:
    if name in _SEVERAL:
        return True
    along_a_dim = len(node.args) > 1 and isinstance(node.args[1], int)
    return name in _SEVERAL_WITH_DIM and (along_a_dim or "dim" in node.kwargs)
