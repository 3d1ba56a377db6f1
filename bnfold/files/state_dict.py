"""Weights without a model: a state_dict, a checkpoint, a safetensors file; and the module that they belong to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnfold.errors import UsageError, first_line
from bnfold.files.loaded import NEEDS_MODEL, LoadedModel, Request
from bnfold.files.safety import UnsafeModelError, check_tensor
from bnfold.printable import listed, shortened, shown, shown_path

__all__ = ["fill_module", "module_with_state"]

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "ema",
    "network",
    "module",
    "model_ema",
    "state_dict_ema",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "ema.", "network.")
_COUNTERS = frozenset({"n_averaged"})  # torch.optim.swa_utils.AveragedModel's own
_MOST_TEXT = 250
_MOST_COMPARED, _LONGEST_COMPARED = 40, 100  # names are compared pair by pair, in time that grows with their lengths


def module_with_state(content: Any, target: nn.Module | None, request: Request) -> LoadedModel:
    """Return the model that a loaded object is or belongs to.

    Args:
        content: a state_dict, a checkpoint dict, or a dict with a module in it.
        target: what ``--model`` made, or None.
        request: what was asked for; ``key`` picks an entry, and notes are added to it.

    Raises:
        RefusedFileError: there is no state_dict in it, or the one there does not fit.
        UsageError: ``--model`` is needed and not given, or ``--key`` names nothing.
    """
    picked, name = _pick(content, request)
    if isinstance(picked, nn.Module):
        return request.loaded(picked, "checkpoint")
    state = _tensors_of(picked, request)
    if target is None:
        raise request.refused(
            f"holds weights ({len(state)} tensors) but not the model that they belong to",
            NEEDS_MODEL,
        )
    fill_module(target, state, request)
    return request.loaded(target, "state_dict" if name is None else "checkpoint")


def fill_module(target: nn.Module, state: Mapping[str, Tensor], request: Request) -> None:
    """Load weights into a module, all of them and nothing else.

    Raises:
        RefusedFileError: a key is missing, unexpected, or of another shape; or the module is lazy.
    """
    state, prefix = _without_prefix(state, target.state_dict().keys())
    if prefix:
        request.notes.append(f"The prefix `{shown(prefix)}` was removed from the names of the weights.")
    places = _places(target)
    lazy = next((name for _, name, tensor in places if is_lazy(tensor)), None)
    if lazy is not None:
        raise request.refused(
            f"cannot be loaded into {_class(target)}, whose `{shown(lazy)}` has no shape yet: its layer is lazy",
            "Let what --model names run the model once.",
        )
    alone = all(_is_held_once(tensor) for _, _, tensor in places)  # before state_dict() holds them too
    own = target.state_dict()
    shapes = [key for key, value in state.items() if key in own and _shape(own[key]) != _shape(value)]
    missing: list[str] = []
    unexpected: list[str] = []
    if not shapes:
        try:
            assign = alone and _may_take_over(target, state, own)
            missing, unexpected = map(list, target.load_state_dict(state, strict=False, assign=assign))
            if assign:
                _keep_objects(places)
        except Exception as error:
            raise request.refused(
                f"does not fit {_class(target)}: {first_line(error, typed=True)}",
                "Check that --model names the model it was saved from.",
            ) from error
    else:
        unexpected = [key for key in state if key not in own]
        missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if missing or unexpected or shapes:
        what = f"does not fit {_class(target)}: {_misfit(missing, unexpected, shapes, own, state)}"
        raise request.refused(what, "Check that --model names the model it was saved from.")
    rounded = {
        f"{value.dtype} to {own[key].dtype}".replace("torch.", "")
        for key, value in state.items()
        if _rounds(value, own, key)
    }
    if rounded:
        request.notes.append(f"Weights were rounded to the model's number format: {', '.join(sorted(rounded))}.")


def _places(target: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return the parameters and buffers of a module, each with the dictionary that holds it and its name there."""
    holders = [holder for part in target.modules() for holder in (part._parameters, part._buffers)]
    return [(holder, name, tensor) for holder in holders for name, tensor in holder.items() if tensor is not None]


def _is_held_once(tensor: Tensor) -> bool:
    """Whether a tensor alone holds its memory: a view of it, kept by the module's code, would keep the old numbers."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # sparse
        return False
    return bool(torch._C._storage_Use_Count(storage._cdata) == 2)  # the tensor, and the name on the left


def _keep_objects(places: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
    """Give what a module took over to the objects that it held before: its code may keep them elsewhere, too."""
    for holder, name, before in places:
        taken = holder[name]
        if taken is not before:
            before.data = taken.detach()
            holder[name] = before


def _may_take_over(target: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Any]) -> bool:
    """Whether a module may hold the tensors of a file themselves, which are mapped, instead of copies.

    Not where that would change it: where a tensor is of another dtype or lies otherwise in memory, or where the module
    has one under two names.
    """
    held = [*target.parameters(), *target.buffers()]
    names = [*target.named_parameters(remove_duplicate=False), *target.named_buffers(remove_duplicate=False)]
    if len(held) < len(names) or not (_apart(held) and _apart([*state.values()])):
        return False
    return all(
        own[key].dtype == value.dtype and own[key].stride() == value.stride() and own[key].device == value.device
        for key, value in state.items()
        if key in own and isinstance(own[key], Tensor)
    )


def _apart(tensors: Sequence[Tensor]) -> bool:
    """Whether each tensor has memory of its own, all of it."""
    full = [tensor for tensor in tensors if tensor.numel() and not tensor.is_meta]
    places = {tensor.untyped_storage().data_ptr() for tensor in full}
    return len(places) == len(full) and all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in full)


def _pick(content: Any, request: Request) -> tuple[Any, str | None]:
    """Return what holds the weights and the key it stood under, None where it is the whole file."""
    if not isinstance(content, dict):
        raise request.refused(f"holds a {shown(type(content).__name__)}, not a model or its weights", _SAVE)
    if request.key is not None:
        return _at_key(content, request.key, request), request.key
    if _is_state(content):
        return content, None
    found = [name for name in _WRAPPERS if isinstance(content.get(name), nn.Module) or _is_state(content.get(name))]
    if not found:
        keys = [key for key in content if isinstance(key, str)]
        deeper = [key for key in keys if isinstance(content[key], nn.Module) or _is_state(content[key])]
        if len(deeper) == 1:
            found = deeper
        else:
            fix = f"Name the one with the weights: --key {shown(deeper[0])}." if deeper else _SAVE
            raise request.refused(
                f"is a dict with {listed(deeper or keys, 5, 30) or 'nothing'}, and none is surely the weights",
                fix,
            )
    name = found[0]
    others = [
        other for other in content if other != name and _is_state(content[other]) and not str(other).startswith("optim")
    ]
    extra = f"; it also holds {listed(others)}, which --key picks" if others else ""
    request.notes.append(f"The weights are those under `{shown(name)}`{extra}.")
    return content[name], name


_SAVE = "Save the model with torch.save(model, FILE), or its state_dict with torch.save(model.state_dict(), FILE)."


def _at_key(content: Any, key: str, request: Request) -> Any:
    """Return the entry that ``--key`` names: as it is written, or level by level at its dots."""
    if key in content:
        return content[key]
    value = content
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            keys = [name for name in content if isinstance(name, str)]
            short = [name for name in keys if len(name) <= _LONGEST_COMPARED][:1000]
            close = difflib.get_close_matches(key[:_LONGEST_COMPARED], short, 5, 0.0)
            raise UsageError(
                f"{shown_path(request.source)} has no key `{shown(key)}`.",
                fix=f"It has {listed(close, 5, 30) or 'no keys'}.",
            )
        value = value[part]
    return value


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(part, Tensor) for key, part in value.items())
    )


def _tensors_of(value: Any, request: Request) -> dict[str, Tensor]:
    """Return a state_dict's tensors, each one checked."""
    if not isinstance(value, dict) or not value:
        raise request.refused("holds no weights under that key", "Name the key that holds them: --key NAME.")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise request.refused(
                f"holds `{shown(name)}`, a {shown(type(tensor).__name__)}, among its weights",
                "Name the key that holds them: --key NAME.",
            )
        try:
            check_tensor(name, tensor)
        except UnsafeModelError as error:
            raise request.refused(error, "Save it again with plain tensors.") from None
    return dict(value)


def _without_prefix(state: Mapping[str, Tensor], wanted: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """Return the weights under the names the model uses, and the prefix taken off for that, ``""`` for none."""
    own = set(wanted)
    best, best_prefix = dict(state), ""
    current, prefix = dict(state), ""
    while not own <= current.keys():
        plain = {key: value for key, value in current.items() if key not in _COUNTERS}
        found = next((one for one in _PREFIXES if plain and all(key.startswith(one) for key in plain)), None)
        if found is None:
            break
        current, prefix = {key[len(found) :]: value for key, value in plain.items()}, prefix + found
        if len(own & current.keys()) > len(own & best.keys()):
            best, best_prefix = current, prefix
    return best, best_prefix


def _misfit(
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: list[str],
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> str:
    """Return what does not fit in a sentence of bounded length, the keys with the closest names first."""
    left, extra = list(missing), list(unexpected)
    parts = []
    if shapes:
        key = shapes[0]
        there, here = list(_shape(state[key]) or ()), list(_shape(own[key]) or ())
        parts.append(f"{len(shapes)} of another shape (`{shown(key, 40)}` is {there} in the file, {here} in the model)")
    left, extra = _closest_first(left, extra)
    if left:
        parts.append(f"{len(left)} missing ({listed(left, 2, 40)})")
    if extra:
        parts.append(f"{len(extra)} unexpected ({listed(extra, 2, 40)})")
    return shortened("; ".join(parts), _MOST_TEXT)


def _closest_first(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    """Sort two lists of names so that the pairs most alike across them come first."""
    if not left or not right:
        return left, right
    few = [name for name in left if len(name) <= _LONGEST_COMPARED][:_MOST_COMPARED]
    others = [name for name in right if len(name) <= _LONGEST_COMPARED][:_MOST_COMPARED]
    matcher = difflib.SequenceMatcher(autojunk=False)
    pairs = []
    for other in others:
        matcher.set_seq2(other)
        for one in few:
            matcher.set_seq1(one)
            pairs.append((matcher.ratio(), one, other))
    pairs.sort(key=lambda pair: -pair[0])
    return (
        list(dict.fromkeys([one for _, one, _ in pairs] + left)),
        list(dict.fromkeys([other for _, _, other in pairs] + right)),
    )


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _rounds(value: Any, own: Mapping[str, Any], key: str) -> bool:
    """Whether copying a weight into the model loses digits."""
    into = own.get(key)
    if not isinstance(into, Tensor) or not isinstance(value, Tensor) or into.dtype == value.dtype:
        return False
    return torch.promote_types(value.dtype, into.dtype) != into.dtype


def _class(module: nn.Module) -> str:
    return shown(type(module).__name__)
