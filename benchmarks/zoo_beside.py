"""What else is done with a model of the zoo: the usual folder and torch.export on it, an ONNX export of the fold."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from typing import Any

import torch
from torch import nn

from benchmarks.zoo_build import Subject, fresh_inputs
from benchmarks.zoo_measure import Throughout64, call, count_batch_norm_calls, distance, in_double, message, since

__all__ = ["export_seconds", "export_to_onnx", "fuse"]

Record = dict[str, Any]


def fuse(subject: Subject, tolerance: float) -> Record:
    """What ``torch.fx.experimental.optimization.fuse`` makes of the same model, in float64."""
    from torch.fx.experimental.optimization import fuse as usual

    start = time.perf_counter()
    fused = usual(subject.model)
    result: Record = {"takes": True, "seconds": since(start), "left": count_batch_norm_calls(fused)}
    del fused
    original = copy.deepcopy(subject.model).double()
    inputs = in_double(fresh_inputs(subject.entry, subject.shape, batch=subject.images, seed=subject.seed + 11))
    try:
        with Throughout64():
            result["error"] = distance(call(original, inputs), call(usual(original), inputs))
    except Exception as error:
        result["error"], result["message"] = math.inf, message(error)
    result["wrong"] = not result["error"] <= tolerance
    return result


def export_seconds(model: nn.Module, inputs: tuple[Any, ...]) -> float | None:
    """How long ``torch.export.export`` takes, to compare the capture with; None where it fails.

    The model may keep what was computed without data: run it no more.
    """
    start = time.perf_counter()
    try:
        with torch.no_grad():
            torch.export.export(model, inputs)
    except Exception:
        return None
    return since(start)


def export_to_onnx(folded: nn.Module, inputs: tuple[Any, ...]) -> Record:
    """Export to ONNX as users do; count the nodes that should not be there."""
    from bnfold.export import to_onnx

    start = time.perf_counter()
    try:
        exported = to_onnx(folded, inputs)
    except Exception as error:
        return {"failed": message(error)}
    kinds = Counter(node.op_type for node in exported.graph.node)
    kinds.update(node.op_type for function in exported.functions for node in function.node)
    return {"batch_normalization": kinds["BatchNormalization"], "nodes": sum(kinds.values()), "seconds": since(start)}
