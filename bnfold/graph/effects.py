"""Which nodes do more than compute a value: mutation, hooks, asserts."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import _side_effectful_functions

from bnfold.graph.leaves import carries_hooks
from bnfold.graph.taught import claim_of
from bnfold.ops.inplace import IN_PLACE

__all__ = ["RANDOM", "has_effect", "is_pure", "mutated_inputs", "written_argument"]

Modules: TypeAlias = Callable[[str], nn.Module]

_IN_PLACE_FUNCTIONS = frozenset(IN_PLACE.values())
_WRITES_NO_NUMBER = frozenset(("detach_", torch.ops.aten.detach_.default))  # only what is differentiated changes


def mutated_inputs(node: Node, module_of: Modules) -> tuple[Node, ...]:
    """Return the values that this node writes to.

    Layers and functions with ``inplace=True``, functions and methods whose name ends in one underscore, in-place
    operators and ``setitem``. For a module of unknown code, all inputs: it may write to any.

    Args:
        node: of any kind.
        module_of: gives the model's submodule of a name.
    """
    if node.op == "call_module":
        module = module_of(str(node.target))
        known = _known(module)
        if getattr(module, "inplace", False) or not known or carries_hooks(module):
            return tuple(node.all_input_nodes)
        return ()
    if node.op not in ("call_function", "call_method") or node.target in _WRITES_NO_NUMBER:
        return ()
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    value = written_argument(node.target, name, node.args, node.kwargs)
    return (value,) if isinstance(value, Node) else ()


def written_argument(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the argument that a call of a function or a method writes into; None for one that writes into none."""
    first = args[0] if args else kwargs.get("input")
    if isinstance(func, torch._ops.OpOverload):
        return first if func._schema.is_mutable else None
    in_place = kwargs.get("inplace")
    if (
        func in _IN_PLACE_FUNCTIONS
        or func is operator.setitem
        or name == "__setitem__"
        or (name.endswith("_") and not name.endswith("__"))
        or (in_place is not None and in_place is not False)
        or (len(args) > 1 and _in_place_by_position(func, args))
    ):
        return first
    return kwargs.get("out")


def _known(module: nn.Module) -> bool:
    """Whether a layer does nothing but compute its value: torch's, bnfold's, and those that the user vouched for."""
    return type(module).__module__.startswith(("torch.nn.", "bnfold.")) or claim_of(module) is not None


def has_effect(node: Node, module_of: Modules) -> bool:
    """Whether removing the node could change anything besides its own value."""
    if node.op == "call_function" and (node.target in _side_effectful_functions or node.target is torch._assert):
        return True
    if node.op == "call_module":
        module = module_of(str(node.target))
        if not _known(module) or carries_hooks(module):
            return True
    elif node.op in ("call_function", "call_method") and _unknown(node):
        return True
    return bool(mutated_inputs(node, module_of))


RANDOM = frozenset(
    "rand randn rand_like randn_like randint randint_like randperm bernoulli bernoulli_ multinomial normal normal_ "
    "poisson uniform_ dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout rrelu "
    "empty empty_like new_empty".split()
)


def is_pure(node: Node, module_of: Modules) -> bool:
    """Whether the node computes the same value from the same inputs each time, and does nothing else."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name.partition(".")[0] not in RANDOM and not has_effect(node, module_of)


def _unknown(node: Node) -> bool:
    """Whether a function's code is not torch's, so that it may do anything."""
    if node.op == "call_method" or isinstance(node.target, torch._ops.OpOverload):
        return False
    home = getattr(node.target, "__module__", None) or ""
    return not home.startswith(("torch", "_operator", "builtins", "math", "operator"))


def _in_place_by_position(func: Any, args: Sequence[Any]) -> bool:
    """Whether a functional activation got ``inplace=True`` by position."""
    if getattr(func, "__module__", "") != "torch.nn.functional":
        return False
    place = _place_of_inplace(func)
    return place is not None and len(args) > place and args[place] is not False


@cache
def _place_of_inplace(func: Any) -> int | None:
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # a builtin
        return None
    return names.index("inplace") if "inplace" in names else None
