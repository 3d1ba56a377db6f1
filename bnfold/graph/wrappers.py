"""Modules that wrap another, or that carry what a capture of themselves would drop."""

from __future__ import annotations

import torch
from torch import nn

from bnfold.errors import CaptureError
from bnfold.graph.leaves import carries_hooks, replaces_forward

__all__ = ["refuse_wrappers", "wrapper_refusal"]


def refuse_wrappers(model: nn.Module) -> None:
    """Raise a ``CaptureError`` where the model is a wrapper, or carries what a capture of it would drop."""
    state = torch.nn.modules.module
    hooks = [*state._global_forward_pre_hooks.values(), *state._global_forward_hooks.values()]
    if hooks:
        name = getattr(hooks[0], "__qualname__", type(hooks[0]).__qualname__)
        raise CaptureError(
            f"torch runs a hook on every layer of every model (`{name}`), which a capture would drop.",
            fix="Remove it (its handle.remove()) while you fold.",
        )
    refusal = wrapper_refusal(model)
    if refusal is not None:
        raise refusal


def wrapper_refusal(model: nn.Module) -> CaptureError | None:
    """Why a module must not be captured itself, or None."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return CaptureError(
            "A TorchScript module has no Python source left to capture.", fix="Pass the original model."
        )
    if kind == "OptimizedModule" and hasattr(model, "_orig_mod"):
        return CaptureError("This is a model wrapped by torch.compile.", fix="Pass model._orig_mod, and compile after.")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return CaptureError(f"This is a model wrapped in {kind}.", fix="Pass model.module.")
    if replaces_forward(model):
        return CaptureError(
            f"The forward of this {kind} was replaced on the instance, and a capture would miss the replacement.",
            fix="Define it in the class, or wrap the model in a module that calls it.",
        )
    if carries_hooks(model):
        return CaptureError(
            f"This {kind} carries hooks on itself, which a capture would drop.",
            fix="Remove them, or wrap the model in a module that calls it.",
        )
    return None
