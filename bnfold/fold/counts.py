"""What a model costs to run: multiply-accumulates, parameters, and how often each kind of operation runs.

The model runs once on fake tensors, which carry shapes and no numbers: nothing is computed. Multiply-accumulates are
those of convolutions, linear layers, matrix products and attention, as torch's own
:class:`torch.utils.flop_counter.FlopCounterMode` counts them (in floating-point operations, two for each).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bnfold.fold.explicit import ExplicitAffine

__all__ = ["Counts", "counts"]

_NAMES = {
    "native_batch_norm": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "addmm": "linear",
    "linear": "linear",
    "mm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
}
_NOTHING = frozenset(
    "empty empty_like new_empty zeros zeros_like ones ones_like full full_like arange scalar_tensor lift_fresh "
    "_local_scalar_dense device is_contiguous size stride sym_size sym_stride _assert_async _assert_tensor_metadata "
    "_unsafe_view _reshape_alias".split()
)  # allocations and questions


@dataclass(frozen=True)
class Counts:
    """What one run costs.

    Attributes:
        macs: multiply-accumulates for one example of the batch; None where the model cannot run on fake tensors.
        parameters: how many numbers the parameters hold, each tensor once.
        parameter_bytes: memory of these, and of the buffers.
        ops: how often each kind of operation runs: ``{"convolution": 20, "relu": 17, ...}``, most frequent first; views
            and allocations do not count. Empty where ``macs`` is None.
    """

    macs: int | None
    parameters: int
    parameter_bytes: int
    ops: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"macs", "parameters", "parameter_bytes", "ops"}`` as plain JSON types."""
        return asdict(self)


def counts(module: nn.Module, example_inputs: Any) -> Counts:
    """Count what one run of a model costs.

    Args:
        module: any module in eval mode: a model, a folded one, a graph. It is not run on numbers, and not changed.
        example_inputs: a tensor, or a tuple of positional inputs; their first dimension is the batch. None where there
            are none: then only the parameters are counted.
    """
    parameters = list({id(parameter): parameter for parameter in module.parameters()}.values())
    held = [*parameters, *{id(buffer): buffer for buffer in module.buffers()}.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    number = sum(parameter.numel() for parameter in parameters)
    if example_inputs is None:
        return Counts(None, number, size)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        macs, ops = _run(module, inputs)
    except Exception:  # whatever the user's code raises on tensors that hold no numbers
        return Counts(None, number, size)
    return Counts(macs // _batch(inputs), number, size, ops)


def _run(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, dict[str, int]]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = [pytree.tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, value) for value in inputs]
    ops = _Ops()
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), mode, flops, ops, _affines(ops):
        module(*fake)
    found = {name: number for name, number in ops.found.most_common() if number}
    return flops.get_total_flops() // 2, found


def _batch(inputs: tuple[Any, ...]) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return max(1, tensors[0].shape[0]) if tensors and tensors[0].ndim else 1


class _Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NOTHING and func.namespace != "prim":
            name = name.removesuffix("_") if not name.startswith("_") else name
            self.found[_NAMES.get(name, name.lstrip("_"))] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _affines(ops: _Ops) -> Iterator[None]:
    """Count explicit affines under their own name: in torch they are calls of ``batch_norm`` too."""

    def note(layer: nn.Module, _inputs: Any) -> None:
        if isinstance(layer, ExplicitAffine):
            ops.found["explicit_affine"] += 1
            ops.found["batch_norm"] -= 1

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
