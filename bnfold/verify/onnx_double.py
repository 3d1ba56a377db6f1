"""An ONNX model in float64: the oracle of an original that is ONNX.

ONNX Runtime has no float64 kernels for convolutions, so the model is run node by node, on a copy in which every float
weight, constant, cast and declared type is float64: by torch or ONNX Runtime where :mod:`bnfold.verify.onnx_kernels`
says so, and else by the reference implementation that comes with ONNX. What ran where is counted.

A weight of a large model is cast when its node runs, and released after it; a value is released after its last reader.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from bnfold.files.onnx_file import bodies, graphs
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

__all__ = ["DoubleModel", "Engines", "Evaluator", "evaluator", "in_double", "is_held"]

Engines = dict[str, set[str]]
"""Which operators were computed by whom: ``"torch"``, ``"ONNX Runtime"``, ``"reference"``."""

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_HELD = 1 << 28
"""Bytes of weights in float64 up to which they are all held: then none is cast or folded again for each run."""

_TYPES = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})  # attributes that name a type of elements


class DoubleModel:
    """An ONNX model in float64, called like the module it was exported from.

    Args:
        wide: the model, made by :func:`in_double`.

    Raises:
        Exception: an operator has no float64 form; see :func:`evaluator`.
    """

    def __init__(self, wide: ir.Model) -> None:
        nodes, self._weights = _apart(wide)
        self._inputs = [value for value in nodes.graph.input if value.name not in self._weights]
        self._names = [value.name for value in nodes.graph.output]
        self._engines: Engines = {}
        self._evaluator = evaluator(nodes, self._engines)
        self._operators = _operators(nodes)

    def __call__(self, inputs: Sequence[Any], names: Sequence[str] = ()) -> list[tuple[str, Tensor]]:
        """Return the outputs, each with its name; inputs are matched by name where all have one, else by position."""
        known = dict(zip(names, inputs, strict=False)) if len(names) >= len(inputs) else {}
        own = [value.name for value in self._inputs]
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if set(own) <= known.keys():
            tensors = [known[name] for name in own]
        feed = {name: in_float64(value).cpu().numpy() for name, value in zip(own, tensors, strict=True)}
        outputs = self._evaluator.answer(feed, self._weights)
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


class Evaluator(ReferenceEvaluator):
    """Runs a model node by node, and holds of weights and values what the next nodes read."""

    def answer(self, feed: Mapping[str, Any], weights: Mapping[str, ir.TensorProtocol]) -> list[Any]:
        """Return the outputs.

        Args:
            feed: the inputs, by name.
            weights: the initializers, by name, which the model itself does not hold.
        """
        reads, last = self._reads
        values: dict[str, Any] = {"": None, **feed}
        for place, (node, names) in enumerate(zip(self.rt_nodes_, reads, strict=True)):
            for name in names:
                if name not in values and name in weights:
                    values[name] = weights[name].numpy()
            inputs = [values[name] for name in node.input]
            outputs = node.run(*inputs, context=values) if node.need_context() else node.run(*inputs)
            del inputs
            values.update(zip(node.output, outputs, strict=False))
            for name in (*names, *node.output):
                if last.get(name, place) == place and name and name not in self.output_names:
                    values.pop(name, None)
        return [values[name] if name in values else weights[name].numpy() for name in self.output_names]

    @cached_property
    def _reads(self) -> tuple[list[list[str]], dict[str, int]]:
        """What each node reads, and the place of the last reader of each value."""
        reads = [self._read(node) for node in self.rt_nodes_]
        return reads, {name: place for place, names in enumerate(reads) for name in names}

    @staticmethod
    def _read(node: Any) -> list[str]:
        """Return the names of all that a node reads, in the graphs inside of it too."""
        names = list(node.input)
        for body in bodies(node.onnx_node):
            for graph in graphs(body):
                names += [name for each in graph.node for name in each.input]
                names += [value.name for value in graph.output]
        return names


def evaluator(model: onnx.ModelProto, engines: Engines | None = None) -> Evaluator:
    """Return the evaluator of a model in float64.

    Args:
        model: the model.
        engines: who computes what is noted here, when it runs, for operators that several can compute.

    Raises:
        ValueError: the reference implementation computes one of its operators in float32, whatever it is given.
        Exception: whatever it raises for an operator that it does not know.
    """
    used = _operators(model)
    narrow = sorted(used & NARROW)
    if narrow:
        raise ValueError(f"the reference implementation computes {', '.join(narrow)} in float32")
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    noted: Engines = {} if engines is None else engines
    known = KERNELS.keys() | RUNTIME | (ROWS.keys() if version < _ROWS_UNTIL else set())
    quick = [_quick(name, version, noted) for name in sorted(used & known)]
    loops = [stacking_loop(version)] if "Loop" in used else []
    return Evaluator(model, new_ops=[*quick, *loops])


def _operators(model: onnx.ModelProto) -> set[str]:
    """Return the names of all operators of ONNX's own that a model holds."""
    return {node.op_type for graph in graphs(model.graph) for node in graph.node if node.domain in ("", "ai.onnx")}


def in_double(model: ir.Model) -> ir.Model:
    """Return a copy of a model in float64 throughout; it reads its weights from the tensors of the model."""
    skeleton = model.clone()
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, value in skeleton.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and int(tensor.dtype) in _FLOATS:
            tensors[name] = tensor
            value.const_value = ir.Tensor(np.zeros((), dtype=tensor.dtype.numpy()), dtype=tensor.dtype, name=name)
    proto = ir.to_proto(skeleton)
    for graph in graphs(proto.graph):
        for initializer in graph.initializer:
            _widen(initializer)
        for declared in (*graph.input, *graph.output, *graph.value_info):
            if declared.type.tensor_type.elem_type in _FLOATS:
                declared.type.tensor_type.elem_type = TensorProto.DOUBLE
        _widen_nodes(graph.node)
    for function in proto.functions:
        _widen_nodes(function.node)
    wide = ir.from_proto(proto)
    held = is_held(model)
    for name, tensor in tensors.items():
        value = wide.graph.initializers[name]
        value.const_value = _cast(tensor, name, held=held)
        value.shape = ir.Shape(tensor.shape.numpy())
    return wide


def is_held(model: ir.Model) -> bool:
    """Whether a model is so small that its weights are held in float64, and not cast each time."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return 8 * sum(tensor.size for tensor in tensors if tensor is not None) <= _HELD


def _cast(tensor: ir.TensorProtocol, name: str, *, held: bool) -> ir.LazyTensor:
    """Return a tensor in float64, which is made of another when its numbers are asked for."""

    def make() -> ir.Tensor[Any]:
        wide = ir.Tensor(tensor.numpy().astype(np.float64))
        if isinstance(tensor, ir.ExternalTensor):
            with contextlib.suppress(BufferError):  # somebody looks at it
                tensor.release()
        return wide

    return ir.LazyTensor(make, ir.DataType.DOUBLE, ir.Shape(tensor.shape.numpy()), cache=held, name=name)


def _apart(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Return a model without its weights, and these by name."""
    nodes = model.clone()
    weights = {name: value.const_value for name, value in nodes.graph.initializers.items()}
    for name in weights:
        nodes.graph.initializers.pop(name)
    return ir.to_proto(nodes), {name: tensor for name, tensor in weights.items() if tensor is not None}


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _widen_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.name in _TYPES and attribute.type == AttributeProto.INT and attribute.i in _FLOATS:
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
