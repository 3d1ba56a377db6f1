"""Layers and tensors of their own over the memory of a model.

What is done to a shell (``.to()``, ``.half()``, ``requires_grad_()``, new parameters) leaves the model alone; what is
written into its memory does not, which is the price of copying nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnfold.on_demand import OnDemand

__all__ = ["double_shell", "fresh_shell", "shell", "wrapped"]


# Every module's registers of hooks, by the names that this version of torch has for them.
_HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if "_hooks" in name and isinstance(value, dict))


def shell(module: nn.Module, shells: dict[int, Any]) -> Any:
    """Return a module of the same class and settings, with parameters of its own over the same memory.

    Args:
        module: not changed.
        shells: what was made so far, by the identity of what it was made from: shared parts stay shared.
    """
    if isinstance(module, torch.jit.ScriptModule):  # has no Python state of its own to wrap
        return module
    if id(module) not in shells:
        shells[id(module)] = fresh_shell(module, shells)
    return shells[id(module)]


def fresh_shell(module: nn.Module, shells: dict[int, Any], *, without: Collection[str] = ()) -> Any:
    """Return a new shell, also where one of this module was made before; its tensors are still the shared ones.

    Args:
        module: not changed.
        shells: as for :func:`shell`.
        without: names of parameters of the module itself that stay as they are, since they will be replaced.
    """
    new = module.__class__.__new__(module.__class__)
    if isinstance(module, GraphModule):  # has a class of its own, with its generated code; so has the new one
        type(new).forward = type(module).forward
    new.__dict__.update(module.__dict__)
    for name in _HOOKS:
        value = module.__dict__.get(name)
        if value is not None:
            new.__dict__[name] = copy.copy(value) if value else type(value)()
    for name, value in module.__dict__.items():  # self.forward = self.forward_fast, say
        if isinstance(value, MethodType) and value.__self__ is module:
            new.__dict__[name] = MethodType(value.__func__, new)
    new.__dict__["_parameters"] = {
        name: value if name in without else wrapped(value, shells) for name, value in module._parameters.items()
    }
    new.__dict__["_buffers"] = {name: wrapped(value, shells) for name, value in module._buffers.items()}
    new.__dict__["_modules"] = {
        name: None if part is None else shell(part, shells) for name, part in module._modules.items()
    }
    return new


def double_shell(module: nn.Module, shells: dict[int, Any]) -> Any:
    """Return a shell whose floating tensors are float64: copies, or large ones cast when a call needs them."""
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and id(tensor) not in shells:
                shells[id(tensor)] = _in_double(tensor)
    return shell(module, shells)


def wrapped(tensor: Any, shells: dict[int, Any]) -> Any:
    """Return a tensor object of its own over the same memory; tied tensors stay tied."""
    if not isinstance(tensor, Tensor):
        return tensor
    found = shells.get(id(tensor))
    if found is None:
        found = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            found = nn.Parameter(found, requires_grad=tensor.requires_grad and _may_require_grad(found))
        shells[id(tensor)] = found
    return found


def _in_double(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and OnDemand.suits(tensor):
        return OnDemand.of(tensor, torch.float64).requires_grad_(tensor.requires_grad)
    double = tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()
    if not isinstance(tensor, nn.Parameter):
        return double
    return nn.Parameter(double, requires_grad=tensor.requires_grad and _may_require_grad(double))


def _may_require_grad(tensor: Tensor) -> bool:
    """What was made in inference mode may not, outside of it."""
    return torch.is_inference_mode_enabled() or not tensor.is_inference()
