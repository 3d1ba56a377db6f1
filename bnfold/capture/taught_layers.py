"""Layers that the user said are BatchNorms in eval mode: written into the graph as that function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.capture.recorder import Recorder
from bnfold.graph.captured import NARROW
from bnfold.graph.leaves import carries_hooks, replaces_forward
from bnfold.graph.requires import require_rank
from bnfold.graph.taught import Normalizes, Statistics, claim_of, statistics_of

__all__ = ["teach"]


def teach(recorder: Recorder) -> None:
    """Let a recorder write such layers of its model as the function, and name what they compute with.

    Raises:
        UsageError: what was said of a layer is wrong.
    """
    root = recorder.root
    for path, part in root.named_modules():
        claim = claim_of(part)
        if not isinstance(claim, Normalizes) or carries_hooks(part) or replaces_forward(part):
            continue
        told = statistics_of(part, claim, path)
        computed = False
        for kind, tensor in zip(("running_mean", "running_var", "weight", "bias"), told.tensors, strict=True):
            if tensor is not None and recorder.name_of(tensor) is None:
                computed = True
                name = f"{path}.{kind}" if path else kind
                while name in recorder.constants or _has(root, name):
                    name += "_"
                recorder.name_constant(tensor, name, _type_beside(part))
        recorder.special[id(part)] = _as_function(recorder, part, told, computed=computed)


def _as_function(
    recorder: Recorder, layer: nn.Module, told: Statistics, *, computed: bool
) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            return NotImplemented
        x = args[0]
        if told.rank is not None:
            recorder.require(require_rank, (recorder.arg(x), told.rank, type(layer).__name__))
        tensors = tuple(recorder.arg(tensor) for tensor in told.tensors)
        settings = {"training": False, "eps": told.eps}
        node = recorder.require(nn.functional.batch_norm, (recorder.arg(x), *tensors), settings)
        if computed:
            node.meta[NARROW] = _type_beside(layer)
        result = recorder.like(x)
        recorder.put(node, result)
        return result

    return call


def _type_beside(layer: nn.Module) -> torch.dtype:
    """Return the type in which a BatchNorm's numbers stand beside the tensors of a layer."""
    tensors = (tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point())
    like = next(tensors, torch.empty(0))
    return torch.float32 if like.itemsize < 4 else like.dtype


def _has(root: nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return hasattr(root.get_submodule(owner), attribute)
