"""How far two models are apart, how many BatchNorms a module still calls, and which of them a comparison can see.

And how long the stages of a check take, and what an error says in one line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "Stage",
    "Throughout64",
    "call",
    "count_batch_norm_calls",
    "distance",
    "in_double",
    "leaves",
    "message",
    "since",
    "unseen",
]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
SEEN = 1e-7


class Stage:
    """Which stage a check is in, and how many seconds each took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.name = ""
        self.start = time.perf_counter()

    def enter(self, name: str) -> None:
        """End the stage that runs, and begin another; an empty name begins none."""
        if self.name:
            self.seconds[self.name] = since(self.start)
        self.name, self.start = name, time.perf_counter()


def message(error: BaseException) -> str:
    """Return an error's type and text in one line of at most 400 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else text[:397] + "..."


def since(start: float) -> float:
    """Return the seconds since a reading of ``time.perf_counter``."""
    return round(time.perf_counter() - start, 4)


class Throughout64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this is entered, what a model's code makes or casts to a narrower float is float64.

    Some attention layers say ``x.float()`` or ``torch.zeros(..., dtype=torch.float32)``: for a float64 copy of the
    model that is a rounding in the middle, and nothing after it could be compared to 1e-9.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is torch.ops.aten._assert_tensor_metadata.default:  # written by torch.export: "this is float32"
            return None
        wide = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*wide[0], **wide[1])


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


_NARROW = {torch.float32, torch.float16, torch.bfloat16}


def call(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """Run a model without gradients; return its outputs as a flat list of leaves, numbers and None among them.

    What it draws at random, as speechbrain's statistics pooling does in eval mode too, is the same each time.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        return leaves(model(*inputs))


def leaves(outputs: Any) -> list[Any]:
    """Return the leaves of nested outputs; dataclasses and dict-like classes are opened too."""
    flat = []
    for leaf in pytree.tree_leaves(outputs):
        if hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor):
            flat += leaves(dict(vars(leaf)))
        else:
            flat.append(leaf)
    return flat


def in_double(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return inputs with every floating-point tensor in float64."""
    return tuple(
        pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    )


def distance(oracle: Sequence[Any], other: Sequence[Any]) -> float:
    """Return the largest difference of any output, each in units of the peak of that output of the oracle.

    Infinite where the outputs differ in number or shape, where one is not finite and the other is, and where outputs
    that are not floating point differ at all.
    """
    if len(oracle) != len(other):
        return math.inf
    return max((_leaf_distance(a, b) for a, b in zip(oracle, other, strict=True)), default=0.0)


def _leaf_distance(oracle: Any, other: Any) -> float:
    if not isinstance(oracle, Tensor) or not isinstance(other, Tensor):
        return 0.0 if type(oracle) is type(other) and oracle == other else math.inf
    if oracle.shape != other.shape:
        return math.inf
    if not oracle.is_floating_point():
        return 0.0 if torch.equal(oracle, other) else math.inf
    if oracle.numel() == 0:
        return 0.0
    first, second = oracle.double(), other.double()
    finite = torch.isfinite(first)
    if not torch.equal(finite, torch.isfinite(second)):
        return math.inf
    if not torch.equal(first[~finite].nan_to_num(2.0), second[~finite].nan_to_num(2.0)):
        return math.inf
    first, second = first[finite], second[finite]
    if first.numel() == 0:
        return 0.0
    peak = float(first.abs().max())
    worst = float((first - second).abs().max())
    return worst / peak if peak > 0 else worst


def count_batch_norm_calls(module: nn.Module) -> int:
    """Count the BatchNorms that a module calls: layers and ``batch_norm`` functions, those of its parts included.

    A GraphModule calls what its graph says; of any other module, each BatchNorm inside counts once.
    """
    if isinstance(module, _BATCH_NORM):
        return 1
    if not isinstance(module, GraphModule):
        return sum(count_batch_norm_calls(child) for child in module.children())
    count = 0
    for node in module.graph.nodes:
        if node.op == "call_module":
            count += count_batch_norm_calls(module.get_submodule(str(node.target)))
        elif node.op == "call_function" and "batch_norm" in getattr(node.target, "__name__", ""):
            count += 1
    return count


def unseen(model: nn.Module, inputs: Sequence[Any], *, seed: int) -> list[str]:
    """Name the BatchNorms that are called and whose scale and shift hardly move the outputs.

    Measured by the gradient of the outputs in a random direction.

    A wrong fold of one of these could stay below the tolerance: the comparison says nothing about it.

    Args:
        model: in eval mode; ``requires_grad`` of its parameters is changed.
        inputs: of the model's dtype.
        seed: of the random direction.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BATCH_NORM) and m.weight is not None}
    model.requires_grad_(False)
    wanted = {}
    for name, layer in layers.items():
        wanted[name] = (layer.weight.requires_grad_(), layer.bias.requires_grad_())
    called = set[nn.Module]()
    handles = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    outputs = leaves(model(*inputs))
    for handle in handles:
        handle.remove()
    wanted = {name: pair for name, pair in wanted.items() if layers[name] in called}
    generator = torch.Generator().manual_seed(seed)
    total: Any = 0.0
    for leaf in outputs:
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.numel():
            peak = leaf.detach().abs().max().clamp(min=1e-300)
            direction = torch.randn(leaf.shape, generator=generator).to(leaf.dtype)
            total = total + (leaf / peak * direction).sum() / math.sqrt(leaf.numel())
    if not isinstance(total, Tensor):
        return list(wanted)
    flat = [tensor for pair in wanted.values() for tensor in pair]
    gradients = iter(torch.autograd.grad(total, flat, allow_unused=True))
    hidden = []
    for name, pair in wanted.items():
        effect = 0.0
        for tensor in pair:
            gradient = next(gradients)
            if gradient is not None:
                effect = max(effect, float((gradient * tensor.detach()).norm()))
        if not effect >= SEEN:
            hidden.append(name)
    return hidden
