"""ONNX models of small torch networks, written node by node: what an exporter does, in milliseconds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.fx import Node

from bnfold.capture.ways import capture
from bnfold.ops.inplace import IN_PLACE_ADD, IN_PLACE_MULTIPLY, IN_PLACE_SUBTRACT

__all__ = ["onnx_of"]

_BINARY: dict[Any, str] = {
    operator.add: "Add",
    IN_PLACE_ADD: "Add",
    torch.add: "Add",
    "add_": "Add",
    operator.sub: "Sub",
    IN_PLACE_SUBTRACT: "Sub",
    torch.sub: "Sub",
    operator.mul: "Mul",
    IN_PLACE_MULTIPLY: "Mul",
    torch.mul: "Mul",
    "mul_": "Mul",
    operator.truediv: "Div",
    torch.div: "Div",
}
_UNARY: dict[Any, str] = {
    torch.relu: "Relu",
    torch.tanh: "Tanh",
    operator.neg: "Neg",
    "neg": "Neg",
    "clone": "Identity",
    torch.nn.functional.dropout: "Identity",
}
_PADS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class _Writer:
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.captured = capture(model, x, "auto", check=False)
        self.type = helper.np_dtype_to_tensor_dtype(x.numpy().dtype)
        self.like = x
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def held(self, name: str, tensor: Tensor) -> str:
        array = tensor.detach().numpy()
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def put(self, op: str, inputs: list[str], output: str, name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))

    def written(self) -> onnx.ModelProto:
        graph = self.captured.graph
        sizes = ["batch", self.like.shape[1], *(f"size{dim}" for dim in range(2, self.like.dim()))]
        inputs, ends = [], []
        for node in graph.nodes:
            if node.op == "placeholder":
                inputs.append(helper.make_tensor_value_info(node.name, self.type, sizes))
            elif node.op == "get_attr":
                self.held(node.name, self.captured.tensor(str(node.target)))
            elif node.op == "call_module":
                self._layer(node, self.captured.module(str(node.target)), str(node.args[0]))
            elif node.op == "output":
                result: Any = node.args[0]
                ends.append(helper.make_tensor_value_info(str(result), self.type, [None] * self.like.dim()))
            elif not str(getattr(node.target, "__name__", "")).startswith("require_"):
                self._function(node)
        made = helper.make_graph(self.nodes, "net", inputs, ends, list(self.initializers.values()))
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    def _function(self, node: Node) -> None:
        if node.target in _UNARY:
            self.put(_UNARY[node.target], [str(node.args[0])], node.name, node.name)
        elif getattr(node.target, "__name__", node.target) == "mean":
            self.put("ReduceMean", [str(node.args[0])], node.name, node.name, keepdims=0)
        else:
            inputs = [self._argument(node, argument) for argument in node.args[:2]]
            self.put(_BINARY[node.target], inputs, node.name, node.name)

    def _argument(self, node: Node, argument: Any) -> str:
        if isinstance(argument, Node):
            return argument.name
        return self.held(f"{node.name}.{argument}", torch.tensor(float(argument), dtype=self.like.dtype))

    def _layer(self, node: Node, layer: Any, x: str) -> None:
        name = str(node.target)
        write = next(write for kind, write in _LAYERS.items() if isinstance(layer, kind))
        write(self, node.name, name, layer, x)

    def convolution(self, output: str, name: str, layer: Any, x: str) -> None:
        dims = len(layer.kernel_size)
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if layer.padding == "same":
            pads = [*(r // 2 for r in reach), *(r - r // 2 for r in reach)]
        else:
            pads = [*layer.padding, *layer.padding]
        if layer.padding_mode != "zeros":
            sides = np.array([0, 0, *pads[:dims], 0, 0, *pads[dims:]])
            self.put("Pad", [x, self.held(f"{output}.pads", torch.from_numpy(sides))], f"{output}.padded",
                     f"{name}.pad", mode=_PADS[layer.padding_mode])  # fmt: skip
            x, pads = f"{output}.padded", [0] * (2 * dims)
        weights = [self.held(f"{name}.{part}", tensor) for part, tensor in layer.named_parameters()]
        how = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups, "pads": pads}
        self.put("Conv", [x, *weights], output, name, **how)

    def normalisation(self, output: str, name: str, layer: Any, x: str) -> None:
        held = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        names = [self.held(f"{name}.{place}", tensor) for place, tensor in enumerate(held)]
        self.put("BatchNormalization", [x, *names], output, name, epsilon=layer.eps)

    def pool(self, output: str, name: str, layer: Any, x: str) -> None:
        dims = self.like.dim() - 2
        kernel, stride, padding = (
            list(size) if isinstance(size, tuple) else [size] * dims
            for size in (layer.kernel_size, layer.stride, layer.padding)
        )
        how = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "ceil_mode": int(layer.ceil_mode)}
        divisor = getattr(layer, "divisor_override", None)
        counted = layer.count_include_pad or divisor is not None
        end = output if divisor is None else f"{output}.mean"
        self.put("AveragePool", [x], end, name, count_include_pad=int(counted), **how)
        if divisor is not None:
            factor = torch.tensor(np.prod(kernel) / divisor, dtype=self.like.dtype)
            self.put("Mul", [end, self.held(f"{output}.factor", factor)], output, f"{name}.factor")

    def identity(self, output: str, name: str, layer: Any, x: str) -> None:
        self.put("Identity", [x], output, name)


_LAYERS: dict[Any, Callable[..., None]] = {
    nn.modules.conv._ConvNd: _Writer.convolution,
    nn.modules.batchnorm._BatchNorm: _Writer.normalisation,
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d): _Writer.pool,
    (nn.Identity, nn.Dropout): _Writer.identity,
}


def onnx_of(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    """Return an ONNX model that computes what a network of convolutions, pools and sums computes.

    Nodes are called as the layers are; of a function, as its node in the captured graph. Batch and space stay free.
    """
    return _Writer(model, x).written()
