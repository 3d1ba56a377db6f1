"""Operators with weights: convolutions, matrix products, normalisations."""

from __future__ import annotations

from bnfold import ops
from bnfold.errors import RefusedFileError
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.spellings.quantised import scaled_convolution, unscaled
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.spelling import NotStaticError

__all__ = ["READERS"]


# --- convolutions ------------------------------------------------------------------------------------------------


def _spatial(a: NodeArguments) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the number of spatial dimensions, the kernel, the strides and the dilations."""
    shape = a.shape(1)
    kernel = shape[2:]
    dims = len(kernel)
    if not 1 <= dims <= 3 or min(shape) < 1 or a.integers("kernel_shape") not in (None, kernel):
        raise NotStaticError("a kernel of another shape than its weight")
    strides, dilations = a.integers("strides") or (1,) * dims, a.integers("dilations") or (1,) * dims
    if len(strides) != dims or len(dilations) != dims:
        raise NotStaticError("attributes of another length than its kernel")
    return dims, kernel, strides, dilations


def _explicit_pads(a: NodeArguments, dims: int) -> tuple[int, ...] | None:
    """Return the pads as numbers, first those before; None where the size of the input decides."""
    auto, pads = str(a.attribute("auto_pad", "NOTSET") or "NOTSET"), a.integers("pads")
    if auto == "VALID":
        return (0,) * (2 * dims)
    if auto == "NOTSET":
        pads = pads or (0,) * (2 * dims)
        if len(pads) != 2 * dims:
            raise NotStaticError("pads of another length than its kernel")
        return pads
    return None


def _bias(a: NodeArguments, channels: int) -> object:
    if a.has(2) and a.is_constant(2) and a.shape(2) != (channels,):
        raise NotStaticError("a bias of another shape")
    return a.source(2)


def _conv(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if a.quantised:
        return scaled_convolution(node, a, 0)
    dims, kernel, strides, dilations = _spatial(a)
    groups, channels = a.integer("group", 1), a.shape(1)[0]
    if groups < 1 or channels % groups:
        raise NotStaticError("groups that do not fit")
    taken, given = a.shape(1)[1] * groups, a.facts.channels(a.value(), 1)
    if given not in (None, taken):
        raise RefusedFileError(
            f"The ONNX model is broken: `{a.facts.name(node)}` takes {taken} channels, and is given {given}.",
            fix="Check it with ONNX Runtime, or export it again.",
        )
    pads = _explicit_pads(a, dims)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    if pads is None and set(strides) == {1} and all(total % 2 == 0 for total in reach):
        pads = tuple(total // 2 for total in reach) * 2  # "same", whatever the size of the input
    uneven = pads is None or pads[:dims] != pads[dims:]
    padding = (0,) * dims if pads is None else pads[:dims]
    bias = _bias(a, channels)
    return ops.Convolution(node, a.value(), a.source(1), bias, dims, strides, padding, dilations, groups, uneven=uneven)


def _conv_transpose(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if a.quantised:
        return scaled_convolution(node, a, 1)
    dims, _, strides, dilations = _spatial(a)
    groups, shape = a.integer("group", 1), a.shape(1)
    if groups < 1 or shape[0] % groups:
        raise NotStaticError("groups that do not fit")
    extra = a.integers("output_padding") or (0,) * dims
    pads = _explicit_pads(a, dims) if a.attribute("output_shape") is None else None
    # where windows reach matters to a shift before it only, and that needs them not to overlap at all
    padding = "as asked" if pads is None or any(pads) else 0
    bias = _bias(a, shape[1] * groups)
    return ops.TransposedConvolution(
        node, a.value(), a.source(1), bias, dims, strides, padding, dilations, groups, output_padding=extra
    )


# --- matrices ----------------------------------------------------------------------------------------------------


def _gemm(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """``alpha * x @ w + beta * c``."""
    if a.quantised:
        return unscaled(node, a)
    shape = a.shape(1)
    if a.integer("transA", 0) or len(shape) != 2 or min(shape) < 1:
        return None
    alpha, beta = float(a.attribute("alpha", 1.0)), float(a.attribute("beta", 1.0))
    turned = not a.integer("transB", 0)
    channels = shape[1] if turned else shape[0]
    bias = None
    if a.has(2):
        added = a.shape(2)
        if added not in ((channels,), (1, channels), (1,), (1, 1), ()):
            return None  # one number for each row is no bias
        bias = a.source(2, factor=beta, vector=channels)
    return ops.Linear(node, a.value(), a.source(1, turned=turned, factor=alpha), bias)


def _matmul(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """``x @ w``, and the sum with a constant that follows it, where the facts have joined the two."""
    if a.quantised:
        return unscaled(node, a)
    shape = a.shape(1)
    if len(shape) != 2 or min(shape) < 1 or a.rank(0) < 2:
        return None
    added = a.facts.added_to(node)
    bias = None if added is None else a.facts.parameter(added, vector=shape[1])
    return ops.Linear(node, a.value(), a.source(1, turned=True), bias)


# --- normalisations ----------------------------------------------------------------------------------------------


def _batch_norm(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    if not a.integer("spatial", 1):  # before opset 9: statistics of each position
        return None
    # before opset 14 it is asked for more results than one where it trains
    more = any(a.facts.is_used(output) for output in a.node.outputs[1:])
    training = bool(a.integer("training_mode", 0)) or more
    if not training and a.version < 14 and any(output.name for output in a.node.outputs[1:]):
        training = True
    rank = a.facts.graph_rank(a.value())
    if rank is not None and rank < 2:
        return None
    shapes = {a.shape(place) for place in (1, 2, 3, 4) if a.is_constant(place)}
    if len(shapes) > 1 or any(len(shape) != 1 or shape[0] < 1 for shape in shapes):
        return None
    weight, bias, mean, variance = (a.source(place) for place in (1, 2, 3, 4))
    eps = float(a.attribute("epsilon", 1e-5))
    return ops.BatchNorm(node, a.value(), mean, variance, weight, bias, eps, training, a.facts.name(node))


def _instance_norm(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    shape = a.shape(1)
    if len(shape) != 1 or a.shape(2) != shape:
        return None
    return ops.AffineNormalization(node, a.value(), a.source(1), a.source(2), 1, shape[0])


def _layer_norm(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    a.only_first()
    rank, shape = a.rank(), a.shape(1)
    if a.integer("axis", -1) % rank != rank - 1 or len(shape) != 1 or (a.has(2) and a.shape(2) != shape):
        return None
    channels = a.facts.channels(a.value(), rank - 1)
    if channels != shape[0]:
        return None
    return ops.AffineNormalization(node, a.value(), a.source(1), a.source(2), -1, channels)


def _group_norm(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """From opset 21 on its scale is one for each channel; before, one for each group."""
    shape = a.shape(1)
    if a.version < 21 or len(shape) != 1 or a.shape(2) != shape:
        return None
    return ops.AffineNormalization(node, a.value(), a.source(1), a.source(2), 1, shape[0])


READERS = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
}
