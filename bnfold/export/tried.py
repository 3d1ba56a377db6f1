"""An export with free sizes, tried at other sizes: the exporter may have taken a size for a constant.

Adaptive pooling is written as a pooling with the window that the example needs; nothing in the file says so. Only runs
at other sizes tell, uneven ones above all. They tell what is grossly wrong; the proof is :mod:`bnfold.verify`'s. Some
exports are wrong for the example too: the exporter leaves out the divisor of an average pool, for one.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.capture.check import undisturbed
from bnfold.errors import first_line
from bnfold.export.axes import Axis, resized
from bnfold.graph.torch_versions import unguarded_module

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

__all__ = ["goes_wrong", "program_goes_wrong", "rounded_scale"]

_WORSE = 50.0  # times the error at the example's size, which tells how the model rounds
_LEAST = 1e-5  # of the largest output: no less is asked
_GROSS = 1e-2  # of the largest output: more is no rounding, unless the model's own output moves as far
_UP_TO = 4096  # the sizes at which a scale is asked what it makes of them

Run = Callable[[Sequence[Any]], Sequence[Tensor]]


def goes_wrong(
    model: onnx.ModelProto | Path, module: nn.Module, inputs: Sequence[Any], axes: Sequence[Axis]
) -> str | None:
    """Return what goes wrong with an ONNX export on the example and at other sizes; None where all is well.

    None too where the module itself does not run there, and where ONNX Runtime is not installed or takes no such model.

    Args:
        model: the export, of less than 2 GiB; or the path of its file.
        module: what was exported; not changed.
        inputs: the example inputs.
        axes: the dimensions that are free in it; of none, only the example is run.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception:  # nothing can be said; the proof will say what it can
        return None
    names = [node.name for node in session.get_inputs()]
    if len(names) != sum(isinstance(value, Tensor) for value in inputs):
        return None  # inputs within inputs

    def run(values: Sequence[Any]) -> list[Tensor]:
        arrays = [value.detach().cpu().numpy() for value in values if isinstance(value, Tensor)]
        return [torch.as_tensor(answer) for answer in session.run(None, dict(zip(names, arrays, strict=True)))]

    return _elsewhere(run, module, inputs, axes)


def program_goes_wrong(
    program: ExportedProgram, module: nn.Module, inputs: Sequence[Any], axes: Sequence[Axis]
) -> str | None:
    """Return what goes wrong with a program at other sizes than the example's; see :func:`goes_wrong`."""
    exported = unguarded_module(program)
    return _elsewhere(lambda values: _tensors(exported(*values)), module, inputs, axes)


def rounded_scale(model: onnx.ModelProto | Path) -> str | None:
    """Return which resizing goes wrong at some size because ONNX keeps its scale in float32; None where none does."""
    if isinstance(model, Path):
        import onnx

        model = onnx.load(model, load_external_data=False)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = np.arange(1, _UP_TO)
    for node in model.graph.node:
        if node.op_type != "Resize" or len(node.input) < 3 or node.input[2] not in constants:
            continue
        import onnx

        for scale in onnx.numpy_helper.to_array(constants[node.input[2]]).astype(np.float32):
            meant = float(str(scale))  # the shortest number that rounds to it: what the model's code says
            here = np.floor(sizes * meant)
            for there in (np.floor(sizes.astype(np.float32) * scale), np.floor(sizes * np.float64(scale))):
                if np.any(here != there):
                    size = int(sizes[here != there][0])
                    return f"ONNX keeps the scale {meant:g} in float32, which makes another size of {size}"
    return None


def _elsewhere(run: Run, module: nn.Module, inputs: Sequence[Any], axes: Sequence[Axis]) -> str | None:
    try:
        known = _answers(module, inputs)
    except Exception:  # nothing can be said; the proof will say what it can
        return None
    found = _given(run, inputs, known, "on the example")
    if isinstance(found, str):
        return found
    usual = _error(known, found)
    if not usual <= _GROSS and not usual <= _WORSE * _sway(module, inputs, known):
        return "on the example its output is another"
    near = [replace(axis, own=axis.own + axis.step) if axis.most is None else axis for axis in axes]
    for some in (axes, near):
        others = resized(inputs, some, torch.Generator().manual_seed(0))
        if others is None:
            continue
        try:
            expected = _answers(module, others)
        except Exception:
            continue
        answers = _given(run, others, expected, "at another size")
        if isinstance(answers, str):
            return answers
        off = _error(expected, answers)
        if not off <= max(_WORSE * usual, _LEAST) and not off <= _WORSE * _sway(module, others, expected):
            return "at another size its output is another"
    return None


def _given(run: Run, inputs: Sequence[Any], expected: Sequence[Tensor], where: str) -> Sequence[Tensor] | str:
    """Return what an export gives; or, where it stops or an output has another shape, what is to be said."""
    try:
        with torch.no_grad():
            answers = run(inputs)
    except Exception as error:
        return f"{where} it stops with: {first_line(error)}"
    for ours, theirs in zip(expected, answers, strict=False):
        if ours.shape != theirs.shape and not ours.is_complex():
            return f"{where} its output is {_told(theirs)} instead of {_told(ours)}"
    return answers


def _sway(module: nn.Module, inputs: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """Return how far the module's own output moves when its inputs move by their rounding: far, at some sizes."""
    generator = torch.Generator().manual_seed(0)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        ulps = torch.randint(-1, 2, value.shape, generator=generator).to(value)
        return value * (1 + ulps * torch.finfo(value.dtype).eps)

    return _error(expected, _answers(module, list(map(moved, inputs))))


def _answers(module: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """Run a module, which is left as it is found, on copies of inputs."""
    answer = undisturbed(module, module, tuple(inputs), {})
    if isinstance(answer, Exception):
        raise answer
    return _tensors(answer)


def _error(expected: Sequence[Tensor], answers: Sequence[Tensor]) -> float:
    """Return the largest error of any output, as a share of its largest value; inf where one alone is not finite."""
    worst = 0.0
    for ours, theirs in zip(expected, answers, strict=False):
        if ours.is_floating_point() and ours.numel() and ours.shape == theirs.shape:
            wanted, given = ours.double(), theirs.double()
            alike = (wanted == given) | (wanted.isnan() & given.isnan())
            off = torch.where(alike, 0.0, (wanted - given).abs()).nan_to_num(math.inf, math.inf)
            peak = float(wanted[wanted.isfinite()].abs().max()) if wanted.isfinite().any() else 0.0
            worst = max(worst, float(off.max()) / (peak or 1.0))
    return worst


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def _told(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
