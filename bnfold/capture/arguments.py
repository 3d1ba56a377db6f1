"""The arguments and the result of a recorded run: placeholders, and the output node."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from bnfold.capture.recorder import Recorder
from bnfold.errors import CaptureError
from bnfold.graph.requires import SIMPLE, require_structure, require_value

__all__ = ["CHOICES", "enter_arguments", "leave_result"]

# What code asks with `is`, for its type, or branches on: the graph is right for the one it was captured with.
CHOICES = (*SIMPLE, complex, Enum, torch.layout, torch.memory_format)


def enter_arguments(
    recorder: Recorder, model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Make the placeholders of a graph, named like the arguments of ``forward``.

    Args:
        recorder: gets the placeholders, and the checks that an argument is like the one it was captured with.
        model: whose ``forward`` is recorded.
        inputs: positional arguments; None where none are known, and every argument without a default is a tensor.
        named: keyword arguments.

    Returns:
        What to call the model with: tensors without data for tensors.
    """
    positional, others = _parameters(model, inputs, named)
    graph, nodes = recorder.graph, {}
    for name in (*positional, *named):
        nodes[name] = graph.placeholder(name)
    for name, default in others.items():
        nodes[name] = graph.placeholder(name, default_value=default)
    if inputs is None:
        return [recorder.enter_tensor(_UNKNOWN, nodes[name]) for name in positional], {}
    args = [_enter(recorder, value, nodes[name], name) for name, value in zip(positional, inputs, strict=True)]
    kwargs = {name: _enter(recorder, value, nodes[name], name) for name, value in named.items()}
    for name, default in others.items():
        recorder.require(require_value, (nodes[name], default, name))
    return args, kwargs


_UNKNOWN = torch.empty(0)


def _parameters(
    model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the positional arguments, and the defaults of those that are not given."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # written in C, or a signature of its own
        parameters = []
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if inputs is None:
        names = [p.name for p in places if p.default is p.empty]
        names += [f"{p.name}_0" for p in parameters if p.kind is p.VAR_POSITIONAL and not names]
        return names, _defaults(places, set(names))
    variadic = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    names = [p.name for p in places[: len(inputs)]]
    names += [f"{variadic}_{index}" for index in range(len(inputs) - len(names))]
    return names, _defaults(parameters, {*names, *named})


def _defaults(parameters: list[inspect.Parameter], given: set[str]) -> dict[str, Any]:
    """Return the defaults of arguments that are not given, as far as a graph can hold them."""
    found: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name in given or parameter.default is parameter.empty:
            continue
        if not isinstance(parameter.default, CHOICES):
            if parameter.kind is not parameter.KEYWORD_ONLY:
                break  # later ones would move to its place
            continue
        found[parameter.name] = parameter.default
    return found


def _enter(recorder: Recorder, value: Any, node: Node, name: str) -> Any:
    if isinstance(value, Tensor):
        return recorder.enter_tensor(value, node)
    if type(value) in (list, tuple, dict):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        parts_of = tuple(value) if isinstance(value, dict) else len(value)
        recorder.require(require_structure, (node, type(value).__name__, parts_of, name))
        parts = {
            key: _enter(recorder, value[key], recorder.require(operator.getitem, (node, key)), f"{name}[{key!r}]")
            for key in keys
        }
        return parts if isinstance(value, dict) else type(value)(parts.values())
    if not isinstance(value, CHOICES):
        raise CaptureError(
            f"Argument {name!r} is a {type(value).__name__}, which no graph can hold.",
            fix="Pass its tensors themselves.",
        )
    recorder.require(require_value, (node, value, name))
    return value


def leave_result(recorder: Recorder, value: Any) -> Any:
    """Return what stands for the result of a run as the argument of an output node.

    Raises:
        CaptureError: it is of a class that no graph makes.
    """
    if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        parts = [leave_result(recorder, part) for part in value]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        if type(value) in (tuple, list):
            return type(value)(parts)
    elif type(value) is dict:
        return {key: leave_result(recorder, part) for key, part in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.init]
        given = {field.name: leave_result(recorder, getattr(value, field.name)) for field in fields}
        return recorder.require(type(value), (), given)
    elif isinstance(value, dict):
        try:
            again = type(value)(dict(value))
            same = list(again) == list(value) and all(again[key] is value for key, value in value.items())
        except Exception:  # whatever its constructor raises
            same = False
        if same:
            inner = {key: leave_result(recorder, part) for key, part in value.items()}
            return recorder.require(type(value), (inner,), {})
    elif type(value) is torch.Size:
        return recorder.require(torch.Size, (recorder.arg(list(value)),), {})
    else:
        return recorder.arg(value)
    raise CaptureError(
        f"forward returns a {type(value).__name__}, which no graph can make.", fix="Let it return a tuple or a dict."
    )
