"""An ONNX model in float64: the oracle of an original that is ONNX.

ONNX Runtime has no float64 kernels for convolutions, so the model is run node by node, on a copy in which every float
weight, constant, cast and declared type is float64: by torch or ONNX Runtime where :mod:`bnfold.verify.onnx_kernels`
says so, and else by the reference implementation that comes with ONNX. What ran where is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

from bnfold.verify.onnx_kernels import (
    KERNELS,
    NARROW,
    ROWS,
    RUNTIME,
    WHOLE,
    WHOLE_BEFORE,
    Arrays,
    Kernel,
    RuntimeKernel,
)
from bnfold.verify.reference import in_float64
from bnfold.verify.reference_loop import stacking_loop

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

__all__ = ["FLOATS", "DoubleModel", "Engines", "evaluator", "in_double", "named_tensors"]

Engines = dict[str, set[str]]
"""Which operators were computed by whom: ``"torch"``, ``"ONNX Runtime"``, ``"reference"``."""

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_TYPES = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})  # attributes that name a type of elements


class DoubleModel:
    """An ONNX model in float64, called like the module it was exported from.

    Args:
        wide: the model, made by :func:`in_double`.

    Raises:
        Exception: an operator has no float64 form; see :func:`evaluator`.
    """

    def __init__(self, wide: onnx.ModelProto) -> None:
        weights = {tensor.name for tensor in wide.graph.initializer}
        self._inputs = [value for value in wide.graph.input if value.name not in weights]
        self._names = [value.name for value in wide.graph.output]
        self._engines: Engines = {}
        self._evaluator = evaluator(wide, self._engines)
        self._operators = _operators(wide)

    def __call__(self, inputs: Sequence[Any], names: Sequence[str] = ()) -> list[tuple[str, Tensor]]:
        """Return the outputs, each with its name; inputs are matched by name where all have one, else by position."""
        known = dict(zip(names, inputs, strict=False)) if len(names) >= len(inputs) else {}
        own = [value.name for value in self._inputs]
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if set(own) <= known.keys():
            tensors = [known[name] for name in own]
        feed = {name: in_float64(value).cpu().numpy() for name, value in zip(own, tensors, strict=True)}
        outputs = self._evaluator.run(None, feed)
        return [(name, torch.from_numpy(np.array(output))) for name, output in zip(self._names, outputs, strict=True)]

    @property
    def engines(self) -> Engines:
        """Which operators were computed by whom, in the runs until now."""
        told = set().union(*self._engines.values())
        reference = self._engines.get("reference", set()) | (self._operators - told)
        return {**self._engines, **({"reference": reference} if reference else {})}

    def engines_in_words(self) -> str:
        """Return a sentence that says who computed what in the runs until now."""
        names = {"torch": "torch", "ONNX Runtime": "ONNX Runtime", "reference": "the reference implementation of ONNX"}
        parts = [f"{_listed(found)} by {names[by]}" for by, found in sorted(self.engines.items(), reverse=True)]
        return f"In float64 the original was computed operator by operator: {'; '.join(parts)}."

    def refuses(self, case: Any) -> str | None:
        """Return why the model does not take a case, by the sizes that it declares; None if it takes it."""
        tensors = [value for value in case.inputs if isinstance(value, Tensor)]
        for value, tensor in zip(self._inputs, tensors, strict=False):
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, tensor.shape, strict=False):
                if dim.HasField("dim_value") and dim.dim_value != size:
                    return f"its input `{value.name}` is declared with a size of {dim.dim_value}, and {size} is given"
        return None


def _listed(names: set[str]) -> str:
    """Return up to six names, and how many more there are."""
    some = sorted(names)[:6]
    more = len(names) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


def evaluator(model: onnx.ModelProto, engines: Engines | None = None) -> ReferenceEvaluator:
    """Return the evaluator of a model made by :func:`in_double`.

    Args:
        model: the model.
        engines: who computes what is noted here, when it runs, for operators that several can compute.

    Raises:
        ValueError: the reference implementation computes one of its operators in float32, whatever it is given.
        Exception: whatever it raises for an operator that it does not know.
    """
    from onnx.reference import ReferenceEvaluator

    used = _operators(model)
    narrow = sorted(used & NARROW)
    if narrow:
        raise ValueError(f"the reference implementation computes {', '.join(narrow)} in float32")
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    noted: Engines = {} if engines is None else engines
    known = KERNELS.keys() | RUNTIME | (ROWS.keys() if version < _ROWS_UNTIL else set())
    quick = [_quick(name, version, noted) for name in sorted(used & known)]
    loops = [stacking_loop(version)] if "Loop" in used else []
    return ReferenceEvaluator(model, new_ops=[*quick, *loops])


def _operators(model: onnx.ModelProto) -> set[str]:
    """Return the names of all operators of ONNX's own that a model holds."""
    return {node.op_type for graph in _graphs(model.graph) for node in graph.node if node.domain in ("", "ai.onnx")}


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in float64 throughout.

    Raises:
        ValueError: it holds sparse weights.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for graph in _graphs(copy.graph):
        if graph.sparse_initializer:
            raise ValueError("it holds sparse weights")
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in FLOATS:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        _widen_nodes(graph.node)
    for function in copy.functions:
        _widen_nodes(function.node)
    return copy


def named_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the weights of a graph: its initializers, and the values of its ``Constant`` nodes."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.type == AttributeProto.TENSOR)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs):
                yield from _graphs(inner)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _widen_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.name in _TYPES and attribute.type == AttributeProto.INT and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                wide = numpy_helper.from_array(np.asarray(values, dtype=np.float64))
                attribute.CopyFrom(onnx.helper.make_attribute("value", wide))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))


_RESIZING = ("Resize", "Upsample")
_ROWS_UNTIL = 13

# --- operators that others compute ---------------------------------------------------------------------------------


def _of_opset_11(args: Arrays, attributes: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Return a ``Resize`` of opset 10, or an ``Upsample``, as what it is from opset 11 on: it has no other modes."""
    mode = str(attributes.get("mode") or "nearest").replace("bilinear", "linear")
    scales = np.asarray(args[1] if len(args) > 1 else attributes["scales"])
    given = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return (args[0], None, scales, None), {**given, "cubic_coeff_a": -0.75, "exclude_outside": 0}


def _quick(name: str, version: int, engines: Engines) -> Any:
    """Return the reference implementation of an operator, with what is asked before it."""
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops import load_op

    whole = name in WHOLE or version < WHOLE_BEFORE.get(name, 0)
    asked = ("Resize", max(version, 10)) if name in _RESIZING else (name, version)
    reference = OpRun if whole else load_op("", *asked)
    schema = onnx.defs.get_schema(name, version)
    kernel: Kernel | None = KERNELS.get(name, ROWS.get(name))

    def run(self: Any, *args: Any, **attributes: Any) -> Arrays:
        if name in _RESIZING and version < 11:
            args, attributes = _of_opset_11(args, attributes)
        if name in _RESIZING and not attributes.get("keep_aspect_ratio_policy"):
            attributes["keep_aspect_ratio_policy"] = "stretch"  # before opset 18 there was no other
        answer = None
        if kernel is not None:
            with torch.no_grad():
                answer = kernel(self.onnx_node, args, attributes)
            engine = "torch"
        if answer is None and name in RUNTIME:
            if not hasattr(self, "under_runtime"):
                self.under_runtime = RuntimeKernel(version)
            answer, engine = self.under_runtime(self.onnx_node, args), "ONNX Runtime"
        if answer is None:
            answer, engine = reference._run(self, *args, **attributes), "reference"
        engines.setdefault(engine, set()).add(name)
        return answer

    return type(name, (reference,), {"_run": run, "op_domain": "", "op_schema": schema})
