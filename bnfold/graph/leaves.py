"""Which modules a graph calls as they are, and where a file of code belongs."""

from __future__ import annotations

import os
import sysconfig
from functools import lru_cache
from types import MethodType

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from bnfold.graph.proof import behaves_like_batch_norm
from bnfold.graph.taught import claim_of

__all__ = ["carries_hooks", "is_foreign", "is_leaf", "is_torchs", "replaces_forward"]

_BNFOLD = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = tuple(sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib"))
_NOT_THE_MODELS = (os.path.dirname(torch.__file__) + os.sep, _BNFOLD + os.sep, "<")


@lru_cache(maxsize=4096)
def is_foreign(filename: str) -> bool:
    """Whether a source file is torch's, Python's or bnfold's, or none at all, and so not the model's."""
    if filename.startswith(_STANDARD) and not filename.startswith(_INSTALLED):
        return True
    return filename.startswith(_NOT_THE_MODELS)


def carries_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs more than its own ``forward``."""
    state = module.__dict__
    return bool(
        state.get("_forward_hooks")
        or state.get("_forward_pre_hooks")
        or state.get("_backward_hooks")
        or state.get("_backward_pre_hooks")
    )


def replaces_forward(module: nn.Module) -> bool:
    """Whether the instance has a ``forward`` that is not one of its own class's methods."""
    if "forward" not in module.__dict__:
        return False
    forward = module.__dict__["forward"]
    if not isinstance(forward, MethodType) or forward.__self__ is not module:
        return True
    return getattr(type(module), forward.__name__, None) is not forward.__func__


def is_torchs(module: nn.Module) -> bool:
    """Whether the module is of a class of torch's own."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))


def is_leaf(module: nn.Module) -> bool:
    """Whether a graph calls the module as a whole: torch's own layers, and whatever must be called as it is."""
    if carries_hooks(module) or replaces_forward(module) or claim_of(module) is not None:
        return True
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if "parametrizations" in module._modules or isinstance(module, ParametrizationList):
        return False  # gone through, so that the weight is seen as computed from parameters
    if is_torchs(module):
        return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return type(module).__module__ == "bnfold.fold.explicit" or behaves_like_batch_norm(module)
