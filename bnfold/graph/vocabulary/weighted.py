"""Functions with weights: convolutions, linear layers, embeddings, normalisations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.signature import Signature, static
from bnfold.graph.vocabulary.reading import Arguments, FunctionReader, Row, source_of, value_of

__all__ = ["FUNCTIONS"]


def _convolution(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        x, weight, bias = value_of(a["input"]), source_of(a["weight"]), source_of(a["bias"])
        stride, padding, dilation = static(a["stride"]), static(a["padding"]), static(a["dilation"])
        return calls.Convolution(node, x, weight, bias, spatial_dims, stride, padding, dilation, static(a["groups"]))

    return read


def _transposed(spatial_dims: int) -> FunctionReader:
    def read(node: Node, a: Arguments) -> calls.Call:
        x, weight, bias = value_of(a["input"]), source_of(a["weight"]), source_of(a["bias"])
        stride, padding, extra = static(a["stride"]), static(a["padding"]), static(a["output_padding"])
        groups, dilation = static(a["groups"]), static(a["dilation"])
        return calls.TransposedConvolution(
            node, x, weight, bias, spatial_dims, stride, padding, extra, groups, dilation
        )

    return read


def _convolution_of_any_kind(node: Node, a: Arguments) -> calls.Call:
    """``aten.convolution``: its lists tell the number of dimensions, a flag whether it is transposed."""
    read = (_transposed if static(a["transposed"]) else _convolution)(len(static(a["stride"])))
    call = read(node, a)
    assert call is not None
    return call


def _linear(node: Node, a: Arguments) -> calls.Call:
    return calls.Linear(node, value_of(a["input"]), source_of(a["weight"]), source_of(a["bias"]))


def _embedding(node: Node, a: Arguments) -> calls.Call | None:
    if a.get("max_norm") is not None:
        return None
    return calls.Embedding(node, value_of(a["input"]), source_of(a["weight"]), None)


def _batch_norm(node: Node, a: Arguments) -> calls.Call:
    statistics = (source_of(a["running_mean"]), source_of(a["running_var"]))
    name = str(statistics[0]).rpartition(".")[0] or None if isinstance(statistics[0], str) else None
    if name is None and isinstance(a["weight"], Node) and a["weight"].op == "get_attr":
        name = str(a["weight"].target).rpartition(".")[0] or None
    uses_batch = bool(static(a["training"])) or None in statistics
    weight, bias = source_of(a["weight"]), source_of(a["bias"])
    return calls.BatchNorm(node, value_of(a["input"]), *statistics, weight, bias, static(a["eps"]), uses_batch, name)


def _group_norm(node: Node, a: Arguments) -> calls.Call | None:
    weight, bias = source_of(a["weight"]), source_of(a["bias"])
    return None if weight is None else calls.AffineNormalization(node, value_of(a["input"]), weight, bias, 1, 0)


def _instance_norm(node: Node, a: Arguments) -> calls.Call | None:
    if static(a["use_input_stats"]):
        return _group_norm(node, a)
    if a["running_mean"] is None:
        return None
    return _batch_norm(node, {**a, "training": False})


def _layer_norm(node: Node, a: Arguments) -> calls.Call | None:
    shape = static(a["normalized_shape"])
    sizes = (shape,) if isinstance(shape, int) else shape
    weight, bias = source_of(a["weight"]), source_of(a["bias"])
    if len(sizes) != 1:
        return None
    return calls.AffineNormalization(node, value_of(a["input"]), weight, bias, -1, int(sizes[0]))


aten = torch.ops.aten
_CONV = Signature("input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1")
_CONV_T = Signature("input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1")
_BN = Signature("input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05")
_TORCH_BN = Signature("input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True")
_IN = Signature(
    "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-05"
)
_LINEAR = Signature("input, weight, bias=None")
_EMBEDDING = Signature(
    "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False"
)
_TORCH_IN = Signature("input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=1")
_GROUP_NORM = Signature("input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True")
_LAYER_NORM = Signature("input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enabled=True")
_TORCH_EMBEDDING = Signature("weight, input, padding_idx=-1, scale_grad_by_freq=False, sparse=False")

FUNCTIONS: dict[Any, Row] = {
    torch.batch_norm: (_TORCH_BN, _batch_norm),
    F.batch_norm: (_BN, _batch_norm),
    aten.batch_norm.default: (_TORCH_BN, _batch_norm),
    aten.batch_norm: (_TORCH_BN, _batch_norm),
    F.instance_norm: (_IN, _instance_norm),
    torch.instance_norm: (_TORCH_IN, _instance_norm),
    aten.instance_norm.default: (_TORCH_IN, _instance_norm),
    F.group_norm: (_GROUP_NORM, _group_norm),
    torch.group_norm: (_GROUP_NORM, _group_norm),
    aten.group_norm.default: (_GROUP_NORM, _group_norm),
    F.layer_norm: (_LAYER_NORM, _layer_norm),
    torch.layer_norm: (_LAYER_NORM, _layer_norm),
    aten.layer_norm.default: (_LAYER_NORM, _layer_norm),
    F.linear: (_LINEAR, _linear),
    aten.linear.default: (_LINEAR, _linear),
    F.embedding: (_EMBEDDING, _embedding),
    aten.embedding.default: (_TORCH_EMBEDDING, _embedding),
}
_ANY_CONV = "input, weight, bias, stride, padding, dilation, transposed, output_padding, groups"
FUNCTIONS[aten.convolution.default] = (Signature(_ANY_CONV), _convolution_of_any_kind)
FUNCTIONS[aten._convolution.default] = (
    Signature(_ANY_CONV + ", benchmark, deterministic, cudnn_enabled, allow_tf32"),
    _convolution_of_any_kind,
)
for _size in (1, 2, 3):
    _row = (_CONV, _convolution(_size))
    for _space in (torch, F):
        FUNCTIONS[getattr(_space, f"conv{_size}d")] = _row
    FUNCTIONS[getattr(aten, f"conv{_size}d").default] = FUNCTIONS[getattr(aten, f"conv{_size}d").padding] = _row
    _row = (_CONV_T, _transposed(_size))
    for _space in (torch, F):
        FUNCTIONS[getattr(_space, f"conv_transpose{_size}d")] = _row
    _aten = getattr(aten, f"conv_transpose{_size}d")
    FUNCTIONS[_aten.default if _size == 1 else _aten.input] = _row
