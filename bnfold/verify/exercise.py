"""Whether a comparison could have noticed anything: does each BatchNorm reach the output on these inputs?

Behind a dead relu, or in front of a gate that is shut, a BatchNorm may be folded in any way and the outputs agree. The
gradient of the outputs with respect to a shift added after each BatchNorm is zero there, in every channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.capture.nests import flatten

__all__ = ["unreached"]

BATCHNORMS = (nn.modules.batchnorm._BatchNorm,)


def unreached(model: nn.Module, inputs: Sequence[Any], *, seed: int = 0) -> list[str] | None:
    """Return the names of the BatchNorms that the outputs do not depend on, in any channel.

    Args:
        model: a copy of the original; runs under the caller's modes, and is left as it was.
        inputs: one set of positional inputs, in its precision.
        seed: of the weights by which the outputs are summed.

    Returns:
        Names of layers whose values are read and have no effect. A bare ``F.batch_norm`` with running statistics has
        the name of what holds its running mean, or else of that buffer, or a number. None where gradients cannot be
        had.
    """
    shifted = _Shifted(model)
    try:
        with torch.enable_grad():
            with shifted:
                leaves = [leaf.value for leaf in flatten(model(*inputs)) if leaf.is_tensor]
            outputs = [value for value in leaves if value.is_floating_point() and value.requires_grad]
            generator = torch.Generator().manual_seed(seed)
            total = sum((torch.randn(value.shape, generator=generator).to(value) * value).sum() for value in outputs)
            if not outputs or not isinstance(total, Tensor):
                return None
            gradients = torch.autograd.grad(total, [shift for _, shift in shifted.ran], allow_unused=True)
    except Exception:
        return None  # a model that writes in place, or has no gradient: nothing is said about it
    finally:
        shifted.remove()
    reached: dict[tuple[str, int], bool] = {}
    for (key, _), gradient in zip(shifted.ran, gradients, strict=True):
        if gradient is not None:  # without a gradient nothing reads the layer, and no fold of it can matter
            reached[key] = reached.get(key, False) or bool(((gradient != 0) & gradient.isfinite()).any())
    return list(dict.fromkeys(name for (name, _), does in reached.items() if not does))


class _Shifted(TorchFunctionMode):
    """Adds a shift of zeros after each BatchNorm: by hooks after the layers, and after bare calls while it is entered.

    Attributes:
        ran: name, identity and shift of each that ran. Calls of one layer, or with one running mean, have one identity.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ran: list[tuple[tuple[str, int], Tensor]] = []
        self._owners = {id(buffer): name.rpartition(".")[0] or name for name, buffer in model.named_buffers()}
        self._handles: list[Any] = []
        self._unnamed = 0
        self._depth = 0  # of layers that are running: what they call is theirs
        for name, layer in model.named_modules():
            if isinstance(layer, BATCHNORMS):
                self._handles.append(layer.register_forward_pre_hook(self._enter))
                # always called, so that the depth is right after a layer that raised
                self._handles.append(layer.register_forward_hook(self._leave(name), always_call=True))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if self._depth or function not in (F.batch_norm, torch.batch_norm):
            return output
        # F.batch_norm has the running mean second, torch.batch_norm, which takes weight and bias first, fourth
        position = 1 if function is F.batch_norm else 3
        mean = kwargs.get("running_mean", args[position] if len(args) > position else None)
        training = kwargs.get("training", args[5] if len(args) > 5 else False)
        if mean is None or training:  # it has no fixed affine, and nobody folds it
            return output
        name = self._owners.get(id(mean))
        if name is None:
            self._unnamed += 1
            return self._shift(f"bare batch_norm {self._unnamed}", self._unnamed, output)
        return self._shift(name, id(mean), output)

    def _enter(self, _layer: nn.Module, _inputs: Any) -> None:
        self._depth += 1

    def _leave(self, name: str) -> Any:
        def hook(layer: nn.Module, _inputs: Any, output: Any) -> Any:
            self._depth -= 1
            return self._shift(name, id(layer), output) if isinstance(output, Tensor) else output

        return hook

    def _shift(self, name: str, identity: int, output: Tensor) -> Tensor:
        channels = output.shape[1]
        shift = torch.zeros(channels, dtype=output.dtype, device=output.device, requires_grad=True)
        self.ran.append(((name, identity), shift))
        return output + shift.reshape(1, channels, *[1] * (output.ndim - 2))
