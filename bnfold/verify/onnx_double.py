"""An ONNX model in float64: the oracle of an original that is ONNX.

ONNX Runtime has no float64 kernels for convolutions, so the model is run by the reference implementation that comes
with ONNX, on a copy in which every float weight, constant, cast and declared type is float64. That implementation is
written to be read; its slowest operators are replaced here by torch's in float64, where the attributes are plain. So is
``Erf``, which it rounds to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

from bnfold.verify.reference import in_float64

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

__all__ = ["FLOATS", "KERNELS", "NARROW", "WHOLE", "DoubleModel", "evaluator", "in_double", "named_tensors"]

Arrays = tuple[Any, ...]
Kernel = Callable[[onnx.NodeProto, Sequence[Any], dict[str, Any]], Arrays | None]

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
        self._evaluator = evaluator(wide)

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

    def refuses(self, case: Any) -> str | None:
        """Return why the model does not take a case, by the sizes that it declares; None if it takes it."""
        tensors = [value for value in case.inputs if isinstance(value, Tensor)]
        for value, tensor in zip(self._inputs, tensors, strict=False):
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, tensor.shape, strict=False):
                if dim.HasField("dim_value") and dim.dim_value != size:
                    return f"its input `{value.name}` is declared with a size of {dim.dim_value}, and {size} is given"
        return None


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return the evaluator of a model made by :func:`in_double`.

    Raises:
        ValueError: the reference implementation computes one of its operators in float32, whatever it is given.
        Exception: whatever it raises for an operator that it does not know.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops import load_op

    from bnfold.verify.reference_loop import stacking_loop

    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    used = {node.op_type for graph in _graphs(model.graph) for node in graph.node if node.domain in ("", "ai.onnx")}
    narrow = sorted(used & NARROW)
    if narrow:
        raise ValueError(f"the reference implementation computes {', '.join(narrow)} in float32")
    quick = [
        _quick(
            OpRun if name in WHOLE or version < WHOLE_BEFORE.get(name, 0) else load_op("", name, version),
            onnx.defs.get_schema(name, version),
            KERNELS[name],
        )
        for name in sorted(used & KERNELS.keys())
    ]
    loops = [stacking_loop(version)] if "Loop" in used else []
    return ReferenceEvaluator(model, new_ops=[*quick, *loops])


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


# --- operators that the reference implementation takes long for -----------------------------------------------------


def _quick(reference: Any, schema: Any, kernel: Kernel) -> Any:
    """Return the reference implementation of an operator, with ``kernel`` before it."""

    def run(self: Any, *args: Any, **attributes: Any) -> Arrays:
        if schema.name == "Resize" and not attributes.get("keep_aspect_ratio_policy"):
            attributes["keep_aspect_ratio_policy"] = "stretch"  # before opset 18 there was no other
        with torch.no_grad():
            answer = kernel(self.onnx_node, args, attributes)
        return reference._run(self, *args, **attributes) if answer is None else answer

    return type(schema.name, (reference,), {"_run": run, "op_domain": "", "op_schema": schema})


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _window(attributes: dict[str, Any], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]] | None:
    """Return strides, dilations and pads, first those before, where they are explicit; else None."""
    dims = len(kernel)
    pads = list(attributes.get("pads") or [0] * (2 * dims))
    if attributes.get("auto_pad") not in (None, "", "NOTSET") or dims > 3:
        return None
    strides, dilations = (list(attributes.get(name) or [1] * dims) for name in ("strides", "dilations"))
    return strides, dilations, pads


def _space(attributes: dict[str, Any], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]] | None:
    """Return strides, dilations and the padding, where it is explicit and the same on both sides; else None."""
    space, dims = _window(attributes, kernel), len(kernel)
    if space is None or space[2][:dims] != space[2][dims:]:
        return None
    return space[0], space[1], space[2][:dims]


def _conv(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    x, weight, bias = (*args, None)[:3]
    space = _window(attributes, weight.shape[2:])
    if space is None:
        return None
    strides, dilations, pads = space
    dims = len(strides)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    given, before = None if bias is None else _tensor(bias), _tensor(x)
    if pads[:dims] != pads[dims:]:
        before = F.pad(before, [side for dim in reversed(range(dims)) for side in (pads[dim], pads[dim + dims])])
        pads = [0] * (2 * dims)
    y = function(before, _tensor(weight), given, strides, pads[:dims], dilations, attributes.get("group") or 1)
    return (y.numpy(),)


def _conv_transpose(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    x, weight, bias = (*args, None)[:3]
    space = _window(attributes, weight.shape[2:])
    if space is None or attributes.get("output_shape"):
        return None
    strides, dilations, pads = space
    dims = len(strides)
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    extra = list(attributes.get("output_padding") or [0] * dims)
    given = None if bias is None else _tensor(bias)
    group = attributes.get("group") or 1
    y = function(_tensor(x), _tensor(weight), given, strides, 0, extra, group, dilations)
    for dim in range(dims):
        y = y.narrow(dim + 2, pads[dim], y.shape[dim + 2] - pads[dim] - pads[dim + dims])
    return (y.numpy(),)


def _max_pool(node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    kernel = list(attributes["kernel_shape"])
    space = _space(attributes, kernel)
    plain = len([name for name in node.output if name]) == 1
    if space is None or not plain or any(2 * pad > size for pad, size in zip(space[2], kernel, strict=True)):
        return None
    strides, dilations, pads = space
    ceil = bool(attributes.get("ceil_mode"))
    if ceil and any(
        pad + stride > dilation * (size - 1) + 1
        for pad, stride, dilation, size in zip(pads, strides, dilations, kernel, strict=True)
    ):
        return None  # a window may lie in the padding alone, which torch leaves out
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return (function(_tensor(args[0]), kernel, strides, pads, dilations, ceil).numpy(),)


def _average_pool(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    kernel = list(attributes["kernel_shape"])
    space = _space(attributes, kernel)
    if space is None or attributes.get("ceil_mode") or any(step != 1 for step in space[1]):
        return None
    if any(2 * pad > size for pad, size in zip(space[2], kernel, strict=True)):
        return None
    strides, _, pads = space
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    counted = bool(attributes.get("count_include_pad"))
    return (function(_tensor(args[0]), kernel, strides, pads, False, counted).numpy(),)


def _batch_norm(node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    if attributes.get("training_mode") or len([name for name in node.output if name]) > 1:
        return None
    x, scale, bias, mean, variance = (_tensor(value) for value in args)
    return (F.batch_norm(x, mean, variance, scale, bias, eps=float(attributes["epsilon"])).numpy(),)


def _dequantise(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    """Whole numbers times a scale: one of all, or one along an axis."""
    q, scale, zero = (*args, None)[:3]
    axis, scale = attributes.get("axis"), np.asarray(scale)
    if q.dtype.kind not in "iu" or attributes.get("block_size") or scale.ndim > 1:
        return None
    shape = [1] * q.ndim
    if scale.size > 1:
        shape[1 if axis is None else axis] = -1
    whole = q.astype(np.float64)
    if zero is not None:
        whole = whole - np.asarray(zero).astype(np.float64).reshape(shape)
    return (whole * scale.reshape(shape if scale.ndim else ()),)


def _erf(_node: onnx.NodeProto, args: Sequence[Any], _attributes: dict[str, Any]) -> Arrays | None:
    return (torch.erf(_tensor(args[0])).numpy(),)


def _gelu(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    approximate = attributes.get("approximate") or "none"
    return (F.gelu(_tensor(args[0]), approximate=str(approximate)).numpy(),)


def _resize(_node: onnx.NodeProto, args: Sequence[Any], attributes: dict[str, Any]) -> Arrays | None:
    """Resize height and width as ``F.interpolate`` does; whatever else it is asked is left to the reference."""
    x, _, scales, sizes = (*args, None, None, None)[:4]
    mode, coordinates = str(attributes.get("mode")), str(attributes.get("coordinate_transformation_mode"))
    asked = {
        name: attributes.get(name) for name in ("antialias", "exclude_outside", "axes", "keep_aspect_ratio_policy")
    }
    if x.ndim != 4 or any(value not in (None, 0, "stretch") for value in asked.values()):
        return None
    if sizes is not None and len(sizes):
        size = [int(value) for value in sizes]
    elif scales is not None and len(scales) and all(float(scale).is_integer() for scale in scales):
        size = [int(extent * scale) for extent, scale in zip(x.shape, scales, strict=True)]
    else:
        return None
    if size[:2] != list(x.shape[:2]):
        return None
    if (
        mode == "linear"
        and (coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"))
        and min(size[2:]) > 1
    ):
        y = F.interpolate(_tensor(x), size[2:], mode="bilinear", align_corners=coordinates == "align_corners")
        return (y.numpy(),)
    cubic = mode == "cubic" and attributes.get("cubic_coeff_a") in (None, -0.75)
    if cubic and coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners") and min(size[2:]) > 1:
        y = F.interpolate(_tensor(x), size[2:], mode="bicubic", align_corners=coordinates == "align_corners")
        return (y.numpy(),)
    if mode == "nearest" and coordinates == "asymmetric" and str(attributes.get("nearest_mode")) == "floor":
        return (F.interpolate(_tensor(x), size[2:], mode="nearest").numpy(),)
    return None


NARROW = frozenset({"AffineGrid", "CausalConvWithState", "GridSample", "LinearAttention", "MelWeightMatrix"})
"""Operators that the reference rounds to float32 on the way."""

# From a node, its arguments and its attributes to its outputs, or None to leave it to the reference.
KERNELS: dict[str, Kernel] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantise,
    "Erf": _erf,
    "Gelu": _gelu,
    "MaxPool": _max_pool,
    "Resize": _resize,
}
WHOLE = frozenset({"Erf", "Gelu"})
"""Those that leave nothing to the reference."""
WHOLE_BEFORE = {"DequantizeLinear": 19}
"""Those that the reference knows from an opset on only."""
