"""Whether a comparison could have noticed anything: does each BatchNorm reach the output on these inputs?

Behind a dead relu, or in front of a gate that is shut, a BatchNorm may be folded in any way and the outputs agree. The
gradient of the outputs with respect to a shift added after each BatchNorm is zero there, in every channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.verify.outputs import flatten

__all__ = ["unreached"]

BATCHNORMS = (nn.modules.batchnorm._BatchNorm,)


def unreached(exact: nn.Module, inputs: Sequence[Any], *, seed: int = 0) -> list[str]:
    """Return the names of the BatchNorm layers that the outputs do not depend on, in any channel.

    Args:
        exact: the original in float64; runs under the caller's modes, and is left as it was.
        inputs: one set of positional inputs, in float64.
        seed: of the weights by which the outputs are summed.

    Returns:
        Names of layers whose values are read and have no effect. Empty where gradients cannot be had.
    """
    shifts: dict[str, list[Tensor]] = {}
    handles = []
    for name, layer in exact.named_modules():
        if isinstance(layer, BATCHNORMS):
            shifts[name] = []
            handles.append(layer.register_forward_hook(_shifted(shifts[name])))
    if not handles:
        return []
    try:
        with torch.enable_grad():
            leaves = [leaf.value for leaf in flatten(exact(*inputs)) if leaf.is_tensor]
            outputs = [value for value in leaves if value.is_floating_point() and value.requires_grad]
            generator = torch.Generator().manual_seed(seed)
            total = sum((torch.randn(value.shape, generator=generator).to(value) * value).sum() for value in outputs)
            ran = [(name, shift) for name, found in shifts.items() for shift in found]
            if not outputs or not isinstance(total, Tensor):
                return []
            gradients = torch.autograd.grad(total, [shift for _, shift in ran], allow_unused=True)
    except Exception:
        return []  # a model that writes in place, or has no gradient: nothing is said about it
    finally:
        for handle in handles:
            handle.remove()
    reached: dict[str, bool] = {}
    for (name, _), gradient in zip(ran, gradients, strict=True):
        if gradient is not None:  # without a gradient nothing reads the layer, and no fold of it can matter
            reached[name] = reached.get(name, False) or bool((gradient != 0).any())
    return [name for name, does in reached.items() if not does]


def _shifted(kept: list[Tensor]) -> Any:
    def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        channels = output.shape[1]
        shift = torch.zeros(channels, dtype=output.dtype, device=output.device, requires_grad=True)
        kept.append(shift)
        return output + shift.reshape(1, channels, *[1] * (output.ndim - 2))

    return hook
