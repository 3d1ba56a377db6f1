"""Capture piece by piece, for models whose own ``forward`` cannot be captured: detectors, samplers, recurrent loops.

The model is run once on the example inputs to see which of its layers are called, how, and from where. Each largest
part that is called always in the same way, holds a BatchNorm and can be recorded is captured on its own. A part whose
inner layers are also called from outside of it is no piece, since a fold would change them for that caller too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bnfold.capture.arguments import CHOICES
from bnfold.capture.restore import buffers_of, own_copies, put_back, same_random_numbers
from bnfold.graph.shells import shell

__all__ = ["calls_of_parts", "find_pieces"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of_parts(
    model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[dict[str, list[Call]], set[str], Exception | None]:
    """Run the model once; return the arguments of its parts' calls, by name, the open parts, and what stopped it.

    A part is open where one of its inner layers was called while the part itself was not running. A run may stop
    after the layers have run: at post-processing that needs an operator which is not installed, say.

    Args:
        model: not changed; the run is on a shell of it.
        inputs: positional.
    """
    running: list[str] = []
    calls: dict[str, list[Call]] = defaultdict(list)
    entered: set[str] = set()
    copy = shell(model, {})

    def before(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name].append((args, kwargs))
            parts = name.split(".")
            outer = [".".join(parts[:length]) for length in range(1, len(parts))]
            entered.update(part for part in outer if part not in running)
            running.append(name)

        return note

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    for name, module in copy.named_modules():
        if name:
            module.register_forward_pre_hook(before(name), with_kwargs=True)
            module.register_forward_hook(after, always_call=False)
    stopped: Exception | None = None
    state = buffers_of(model.modules())
    with torch.no_grad(), same_random_numbers():
        try:
            copy(*own_copies(inputs))
        except Exception as error:  # whatever the model's code raises
            stopped = error
        finally:
            put_back(state)
    return calls, entered, stopped


def find_pieces(
    model: nn.Module,
    inputs: tuple[Any, ...],
    holds_batch_norm: Callable[[nn.Module], bool],
    try_capture: Callable[[nn.Module, Call], Any],
) -> dict[str, Any]:
    """Return what ``try_capture`` made of each piece, by name; it returns None for what it cannot capture."""
    calls, entered, stopped = calls_of_parts(model, inputs)
    if stopped is not None and not calls:
        raise stopped
    found: dict[str, Any] = {}
    pending = [(name, child) for name, child in model.named_children()]
    while pending:
        name, part = pending.pop(0)
        if not holds_batch_norm(part):
            continue
        made = None
        if name not in entered and calls[name] and _alike(calls[name]):
            made = try_capture(part, calls[name][0])
        if made is not None:
            found[name] = made
        else:
            pending.extend((f"{name}.{inner}", child) for inner, child in part.named_children())
    return found


def _alike(calls: list[Call]) -> bool:
    """Whether all calls of a part give the same arguments, in number and name, and make the same choices by them."""
    first = (len(calls[0][0]), sorted(calls[0][1]))
    if any((len(args), sorted(kwargs)) != first for args, kwargs in calls):
        return False
    return all(_choices(call) == _choices(calls[0]) for call in calls[1:])


def _choices(call: Call) -> dict[Any, Any]:
    args, kwargs = call
    given: dict[Any, Any] = dict(enumerate(args))
    given.update(kwargs)
    return {where: value for where, value in given.items() if isinstance(value, CHOICES)}
