"""An ONNX export with free sizes, tried at another size: the exporter may have taken a size for a constant.

Adaptive pooling is written as a pooling with the window that the example needs; nothing in the file says so. Only a run
at another size tells. It tells what is grossly wrong; the proof is :mod:`bnfold.verify`'s.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import first_line
from bnfold.export.axes import Axis, resized

if TYPE_CHECKING:
    import onnx

__all__ = ["goes_wrong"]

_GROSS = 0.05  # of the largest output: a wrong window errs by more, and half precision by less


def goes_wrong(model: onnx.ModelProto, module: nn.Module, inputs: Sequence[Any], axes: Sequence[Axis]) -> str | None:
    """Return what goes wrong with an export at another size than the example's; None where all is well.

    None too where the module itself does not run there, and where ONNX Runtime is not installed or takes no such model.

    Args:
        model: the export, of less than 2 GiB.
        module: what was exported; not changed.
        inputs: the example inputs.
        axes: the dimensions that are free in it.
    """
    others = resized(inputs, axes, torch.Generator().manual_seed(0))
    if others is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        with torch.no_grad():
            leaves = pytree.tree_leaves(module(*others))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        own = [value.detach().cpu().numpy() for value in inputs if isinstance(value, Tensor)]
        names = [node.name for node in session.get_inputs()]
        session.run(None, dict(zip(names, own, strict=True)))
    except Exception:  # nothing can be said; the proof will say what it can
        return None
    arrays = [value.detach().cpu().numpy() for value in others if isinstance(value, Tensor)]
    try:
        answers = session.run(None, dict(zip(names, arrays, strict=True)))
    except Exception as error:
        return f"at another size it stops with: {first_line(error)}"
    expected = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for ours, theirs in zip(expected, map(torch.as_tensor, answers), strict=False):
        if ours.shape != theirs.shape and not ours.is_complex():
            return f"at another size its output is {_told(theirs)} instead of {_told(ours)}"
        if (
            ours.is_floating_point()
            and ours.numel()
            and float((ours - theirs).abs().max()) > _GROSS * float(ours.abs().max())
        ):
            return "at another size its output is another"
    return None


def _told(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
