"""What differs between the versions of torch that bnfold works with: all of it stands here.

The oldest is the one in pyproject.toml; ``make matrix`` tries several, and
docs/reference/versions.md says what it found.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = [
    "batch_norms_with_one_output",
    "children_of",
    "exact_settings",
    "find_named_tuples",
    "name_ends",
    "program_of",
    "unguarded_module",
    "without_index_widths",
]


_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def program_of(model: nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any = None) -> ExportedProgram:
    """Return what ``torch.export.export`` makes of a model by running its Python, which 2.6 and 2.7 must be told.

    Raises:
        Exception: whatever ``torch.export`` raises.
    """
    return torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes, strict=False)


def unguarded_module(program: ExportedProgram) -> Any:
    """Return the module of a program, without the checks of its guards, which came later than 2.6."""
    known = "check_guards" in inspect.signature(program.module).parameters
    return program.module(check_guards=False) if known else program.module()


def without_index_widths(guards: Iterable[str]) -> list[str]:
    """Return guards without those of 2.6 to 2.12 on how many bits the kernel of a convolution needs for an index.

    What they ask (``3*s16*s82 <= 2147483647``) changes nothing in a program.
    """
    return [text for text in guards if _TORCH >= (2, 13) or not text.endswith(" <= 2147483647")]


def children_of(spec: Any) -> Sequence[Any]:
    """Return the parts of a ``TreeSpec``: a method by now, an attribute in 2.6."""
    return spec.children() if hasattr(spec, "children") else spec.children_specs  # type: ignore[no-any-return]


def find_named_tuples(forward: Any, values: Any) -> None:
    """Let generated code find the named tuples that it returns, which 2.6 writes by the names of their classes."""
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        forward.__globals__.setdefault(type(values).__name__, type(values))
    if isinstance(values, (tuple, list)):
        for value in values:
            find_named_tuples(forward, value)
    elif isinstance(values, dict):
        find_named_tuples(forward, list(values.values()))


class _MatmulPrecision:
    """``torch.set_float32_matmul_precision`` as an attribute: all that torch has before 2.9."""

    @property
    def value(self) -> str:
        return torch.get_float32_matmul_precision()

    @value.setter
    def value(self, precision: str) -> None:
        torch.set_float32_matmul_precision(precision)


def exact_settings() -> list[tuple[Any, str, Any]]:
    """Return the settings under which float32 is computed as such, the same each time: owners, attributes, values."""
    backends: Any = torch.backends
    if hasattr(backends.mkldnn, "matmul"):
        owners = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
        settings: list[tuple[Any, str, Any]] = [(owner, "fp32_precision", "ieee") for owner in owners]
    else:
        settings = [(_MatmulPrecision(), "value", "highest")]
    if torch.cuda.is_available():
        settings += [
            *_tf32_settings(backends),
            (backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
            (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
            (backends.cudnn, "benchmark", False),
            (backends.cudnn, "deterministic", True),
        ]
    return settings


def _tf32_settings(backends: Any) -> list[tuple[Any, str, Any]]:
    """Return the switches of TF32.

    Newer versions have two, and refuse to read the older one after the newer has been written.
    """
    try:
        _ = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    except RuntimeError:
        owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        return [(owner, "fp32_precision", "ieee") for owner in owners]
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]


@contextlib.contextmanager
def batch_norms_with_one_output() -> Iterator[None]:
    """While entered, the ONNX exporter makes a BatchNormalization with the one output that it has in eval mode.

    That of torch 2.6 makes all three of the operator, and onnxscript since 0.5.1 takes them for one.
    """
    if _TORCH >= (2, 8):
        yield
        return
    from torch.onnx._internal.exporter import _building

    evaluate = _building.OpRecorder.eval

    def one_output(self: Any, schema: Any, *args: Any, **kwargs: Any) -> Any:
        made = evaluate(self, schema, *args, **kwargs)
        if schema.name != "BatchNormalization" or not isinstance(made, Sequence):
            return made
        node: Any = made[0].producer()
        node.resize_outputs(1)
        return made[0]

    with mock.patch.object(_building.OpRecorder, "eval", one_output):
        yield


def name_ends(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name what enters and leaves an exported ``onnx_ir.Graph``, where the exporter has not done so already.

    That of 2.6 renames an input that is an output too, and gives a value that is returned twice the last of two names.
    """
    if [value.name for value in (*graph.inputs, *graph.outputs)] == [*inputs, *outputs]:
        return
    import onnx_ir as ir

    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for position, (value, name) in enumerate(zip(list(graph.outputs), outputs, strict=True)):
        if any(value is other for other in graph.outputs[:position]):
            copy = ir.node("Identity", [value])
            graph.append(copy)
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.outputs[position] = copy.outputs[0]
        graph.outputs[position].name = name
