"""What a module from a pickle must not carry: checked on the loaded objects, before any of them is called.

The weights-only unpickler makes objects of allowed classes only, but it fills in their attributes as the file says. An
attribute of an instance hides the method of the same name, a hook runs with every call, and a parameter may be
something other than a plain tensor.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bnfold.printable import shown

__all__ = ["UnsafeModelError", "check_content", "check_tensor"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_HOLDERS = ("_parameters", "_buffers", "_modules")
_OWN = frozenset(nn.Module().__dict__)  # what every module's __dict__ holds
_DEEPEST = 100
_NUMBERS = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
)
_ABSENT = object()


class UnsafeModelError(Exception):
    """What is wrong with a loaded model: a clause that follows the file's name."""


def check_content(root: object) -> None:
    """Check what was made from a file, every module and tensor in it; nothing of it is called.

    Raises:
        UnsafeModelError: an attribute hides a method, a hook is attached, a parameter is no plain tensor, or the tree
            of modules is incomplete, endless or too deep.
    """
    seen: set[int] = set()
    in_trees: set[int] = set()
    pending: list[tuple[str, Any]] = [("", root)]
    while pending:
        path, value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            if id(value) not in in_trees:
                _check_tree(value, in_trees)
            pending.extend(_check_one(path, value))
        elif isinstance(value, torch.Tensor):
            check_tensor(path, value)
        else:
            pending.extend(_named_parts(path, value))


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Check that a tensor is plain: strided numbers in this machine's memory, all of which it holds.

    Raises:
        UnsafeModelError: it is sparse, quantized, nested, meta, lazy, of a subclass or of an odd number format, carries
            a hook, or claims more than its storage.
    """
    kind = _odd_kind(tensor)
    if kind is not None:
        raise UnsafeModelError(f"holds `{shown(name)}`, which is {kind}")
    if tensor._backward_hooks:
        raise UnsafeModelError(f"attaches a hook to `{shown(name)}`")
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() > held or (tensor.numel() and last >= held):
        raise UnsafeModelError(f"holds `{shown(name)}` of shape {tuple(tensor.shape)}, but only {held} of its numbers")


def _odd_kind(tensor: torch.Tensor) -> str | None:
    if type(tensor) not in {torch.Tensor, nn.Parameter}:
        return f"a {shown(type(tensor).__name__)}, a kind of tensor that bnfold does not fold"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_quantized:
        return "a quantized tensor"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    if tensor.device.type != "cpu":
        return f"a {tensor.device.type} tensor, which has no values"
    if tensor.dtype not in _NUMBERS:
        return f"in the number format {tensor.dtype}"
    if tensor.is_conj() or tensor.is_neg():
        return "a lazy conjugate or negative"
    return None


def _check_tree(root: nn.Module, done: set[int]) -> None:
    """Refuse a module that contains itself, and trees that recursion could not follow; note what was visited."""
    trail: list[tuple[nn.Module, Iterator[Any]]] = [(root, _submodules(root))]
    while trail:
        for child in trail[-1][1]:
            if any(child is module for module, _ in trail):
                raise UnsafeModelError(f"holds a {_class_name(child)} that contains itself")
            if id(child) not in done:
                trail.append((child, _submodules(child)))
                break
        else:
            done.add(id(trail.pop()[0]))
        if len(trail) > _DEEPEST:
            raise UnsafeModelError(f"nests its modules more than {_DEEPEST} levels deep")


def _submodules(module: nn.Module) -> Iterator[Any]:
    held: Any = module.__dict__.get("_modules", {})
    return iter([child for child in held.values() if isinstance(child, nn.Module)] if isinstance(held, dict) else [])


def _check_one(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Check one module's own attributes, and yield what they hold with their names."""
    attributes, kind = module.__dict__, type(module)
    where = f"{shown(path)} ({_class_name(module)})" if path else f"its {_class_name(module)}"
    for holder in _HOLDERS:
        held: Any = attributes.get(holder)
        if type(held) not in {dict, OrderedDict} or not all(type(name) is str for name in held):
            raise UnsafeModelError(f"leaves {where} incomplete: it has no {holder.strip('_')}")
    if type(attributes.get("training")) is not bool:
        raise UnsafeModelError(f"leaves {where} incomplete: it is in neither training nor eval mode")
    for hooks in _HOOKS:
        held = attributes.get(hooks)
        if held is not None and (type(held) not in {dict, OrderedDict} or held):
            raise UnsafeModelError(f"attaches hooks to {where}, code that runs with every call")
    if attributes.get("_is_full_backward_hook") not in {None, True, False}:
        raise UnsafeModelError(f"attaches hooks to {where}, code that runs with every call")
    registered: dict[str, Any] = {}
    for holder, wanted in zip(_HOLDERS, (nn.Parameter, torch.Tensor, nn.Module), strict=True):
        for name, value in attributes[holder].items():
            if value is not None and not isinstance(value, wanted):
                raise UnsafeModelError(
                    f"holds a {shown(type(value).__name__)} among the {holder.strip('_')} of {where}"
                )
            if not name or "." in name or name in registered or name in attributes:
                raise UnsafeModelError(f"uses the name `{shown(name)}` wrongly in {where}")
            registered[name] = value
            _check_shadow(where, kind, name, value)
    for name, value in attributes.items():
        if name not in _OWN:
            _check_shadow(where, kind, name, value)
            registered[name] = value
    prefix = f"{path}." if path else ""
    return iter([(f"{prefix}{name}", value) for name, value in registered.items()])


def _check_shadow(where: str, kind: type, name: str, value: object) -> None:
    """Refuse an attribute of an instance that hides one of its class, unless both are plain data."""
    hidden = inspect.getattr_static(kind, name, _ABSENT)
    if hidden is _ABSENT:
        return
    if inspect.getattr_static(nn.Module, name, _ABSENT) is _ABSENT and _is_data(hidden) and _is_data(value):
        return
    if isinstance(hidden, functools.cached_property) and _is_data(value):
        return  # which keeps its value there
    if type(hidden).__name__ == "member_descriptor" or (isinstance(value, nn.Module) and hidden is None):
        return  # a slot, which instances fill; or `downsample = None` in the class and a module in the instance
    raise UnsafeModelError(f"replaces `{shown(name)}` of {where}, which belongs to the class")


def _is_data(value: object) -> bool:
    """Whether a value is no more than data: calling, getting or setting it does nothing."""
    plain = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)
    return isinstance(value, plain) or (
        type(value) in {list, tuple, dict, set, frozenset, OrderedDict}
        and all(_is_data(part) for part in _parts(value))
    )


def _named_parts(path: str, value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        return iter([(f"{prefix}{key}", part) for key, part in value.items()])
    return iter([(path, part) for part in _parts(value)])


def _parts(value: object) -> Iterator[Any]:
    if isinstance(value, dict):
        return iter([*value.keys(), *value.values()])
    if isinstance(value, (list, tuple, set, frozenset)):
        return iter(value)
    return iter(())


def _class_name(module: object) -> str:
    return shown(type(module).__name__)
