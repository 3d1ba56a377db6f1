"""A suite of small graphs: what stands around a BatchNormalization in files that people deploy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from tests.onnx_graph.support import Net

__all__ = ["GRAPHS", "Small"]

IMAGE = (((2, 4, 8, 8),), ((3, 4, 12, 10),))


@dataclass(frozen=True)
class Small:
    """A graph of the suite.

    Attributes:
        name: of it.
        make: builds it.
        shapes: of the inputs, for two runs.
        left: how many BatchNormalizations stay for a reason.
        affines: how many become an explicit affine, since no rule lets them move.
    """

    name: str
    make: Callable[[Net], str]
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = IMAGE
    left: int = 0
    affines: int = 0
    opset: int = 17

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """Build it."""
        net = Net(seed, self.opset)
        return net.model(self.make(net))


GRAPHS: list[Small] = []


def graph(*shapes: tuple[tuple[int, ...], ...], left: int = 0, affines: int = 0, opset: int = 17):
    """Add a graph to the suite."""

    def add(make: Callable[[Net], str]) -> Callable[[Net], str]:
        GRAPHS.append(Small(make.__name__, make, shapes or IMAGE, left, affines, opset))
        return make

    return add


def image(net: Net, channels: int = 4) -> str:
    return net.input(["batch", channels, "height", "width"])


@graph()
def conv_bn(n: Net) -> str:
    return n.bn(n.conv(image(n), 4, 6), 6)


@graph()
def conv_without_bias_bn_relu_conv(n: Net) -> str:
    x = n.bn(n.conv(image(n), 4, 6, bias=False, pads=[1, 1, 1, 1]), 6)
    return n.bn(n.conv(n.node("Relu", [x]), 6, 4, 1), 4)


@graph()
def grouped_dilated_conv_bn(n: Net) -> str:
    return n.bn(n.conv(image(n), 4, 8, group=2, dilations=[2, 2], pads=[2, 1, 2, 3]), 8)


@graph()
def same_upper_strided_conv_bn(n: Net) -> str:
    return n.bn(n.conv(image(n), 4, 6, auto_pad="SAME_UPPER", strides=[2, 2]), 6)


@graph(((2, 4, 11),), ((3, 4, 16),))
def conv1d_bn(n: Net) -> str:
    return n.bn(n.conv(n.input(["n", 4, "t"]), 4, 6, 3, 1), 6)


@graph(((2, 2, 5, 6, 7),), ((1, 2, 6, 6, 6),))
def conv3d_bn(n: Net) -> str:
    return n.bn(n.conv(n.input(["n", 2, "d", "h", "w"]), 2, 4, 3, 3), 4)


@graph()
def conv_transpose_bn(n: Net) -> str:
    return n.bn(n.node("ConvTranspose", [image(n), n.weight(4, 6, 3, 3)], strides=[2, 2], output_padding=[1, 1]), 6)


@graph()
def grouped_conv_transpose_bn(n: Net) -> str:
    x = n.node("ConvTranspose", [image(n), n.weight(4, 3, 3, 3), n.weight(6)], group=2, pads=[1, 0, 1, 2])
    return n.bn(x, 6)


@graph()
def conv_max_pool_bn(n: Net) -> str:
    x = n.node("MaxPool", [n.conv(image(n), 4, 6)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return n.bn(x, 6, positive=True)


@graph(affines=1)
def conv_max_pool_bn_of_negative_scales(n: Net) -> str:
    return n.bn(n.node("MaxPool", [n.conv(image(n), 4, 6)], kernel_shape=[2, 2]), 6)


@graph()
def conv_average_pool_bn(n: Net) -> str:
    x = n.node("AveragePool", [n.conv(image(n), 4, 6)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return n.bn(x, 6)


@graph(affines=1)
def conv_average_pool_that_counts_zeros_bn(n: Net) -> str:
    x = n.node("AveragePool", [n.conv(image(n), 4, 6)], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    return n.bn(x, 6)


@graph()
def conv_average_pool_rounding_up_bn(n: Net) -> str:
    x = n.node("AveragePool", [n.conv(image(n), 4, 6)], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return n.bn(x, 6)


@graph()
def conv_global_average_pool_bn(n: Net) -> str:
    return n.bn(n.node("GlobalAveragePool", [n.conv(image(n), 4, 6)]), 6)


@graph()
def conv_mean_over_space_bn(n: Net) -> str:
    return n.bn(n.node("ReduceMean", [n.conv(image(n), 4, 6)], axes=[-2, 3], keepdims=0), 6)


@graph(opset=18)
def conv_mean_with_axes_as_input_bn(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    return n.bn(n.node("ReduceMean", [x, n.constant(np.array([2, 3]))], keepdims=1), 6)


@graph()
def bn_conv(n: Net) -> str:
    return n.conv(n.bn(image(n), 4), 4, 6)


@graph(affines=1)
def bn_conv_that_pads(n: Net) -> str:
    return n.conv(n.bn(image(n), 4), 4, 6, pads=[1, 1, 1, 1])


@graph(affines=1)
def bn_conv_that_pads_one_side(n: Net) -> str:
    return n.conv(n.bn(image(n), 4), 4, 6, pads=[0, 0, 1, 1])


@graph()
def concat_bn(n: Net) -> str:
    x = image(n)
    joined = n.node("Concat", [n.conv(x, 4, 6), n.conv(x, 4, 2)], axis=1)
    return n.bn(joined, 8)


@graph()
def add_bn(n: Net) -> str:
    x = image(n)
    return n.bn(n.node("Add", [n.conv(x, 4, 6), n.conv(x, 4, 6)]), 6)


@graph()
def sub_bn(n: Net) -> str:
    x = image(n)
    return n.bn(n.node("Sub", [n.conv(x, 4, 6), n.conv(x, 4, 6)]), 6)


@graph(((2, 4, 8, 8),), ((3, 4, 8, 8),))
def conv_reshape_bn(n: Net) -> str:
    x = n.conv(n.input(["batch", 4, 8, 8]), 4, 6)
    return n.bn(n.node("Reshape", [x, n.constant(np.array([0, 6, -1]))]), 6)


@graph()
def conv_depth_to_space_bn(n: Net) -> str:
    x = n.conv(image(n), 4, 24)
    return n.bn(n.node("DepthToSpace", [x], blocksize=2), 6)


@graph()
def conv_pixel_shuffle_bn(n: Net) -> str:
    x = n.conv(image(n), 4, 24)
    return n.bn(n.node("DepthToSpace", [x], blocksize=2, mode="CRD"), 6)


@graph()
def bn_space_to_depth_conv(n: Net) -> str:
    return n.conv(n.node("SpaceToDepth", [n.bn(image(n), 4)], blocksize=2), 16, 6, 1)


@graph()
def conv_resize_bn(n: Net) -> str:
    scales = n.constant(np.array([1, 1, 2, 1.5], np.float32))
    return n.bn(n.node("Resize", [n.conv(image(n), 4, 6), "", scales], mode="linear"), 6)


@graph()
def conv_resize_to_another_size_bn(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    front = n.node("Slice", [n.node("Shape", [x]), n.constant(np.array([0])), n.constant(np.array([2]))])
    sizes = n.node("Concat", [front, n.constant(np.array([9, 7]))], axis=0)
    kind = {"mode": "cubic", "coordinate_transformation_mode": "align_corners"}
    return n.bn(n.node("Resize", [x, "", "", sizes], **kind), 6)


@graph(((2, 4, 8, 8),), ((3, 4, 8, 8),))
def bn_flatten_gemm(n: Net) -> str:
    x = n.bn(n.conv(n.bn(n.input(["batch", 4, 8, 8]), 4), 4, 6), 6)
    return n.node("Gemm", [n.node("Flatten", [n.bn(n.node("Sigmoid", [x]), 6)]), n.weight(216, 3)])


@graph(((2, 5),), ((4, 5),))
def gemm_with_alpha_and_beta_bn(n: Net) -> str:
    x = n.node("Gemm", [n.input(["n", 5]), n.weight(7, 5), n.weight(7)], alpha=0.5, beta=2.0, transB=1)
    return n.bn(x, 7)


@graph(((2, 5),), ((4, 5),))
def matmul_add_bn(n: Net) -> str:
    return n.bn(n.node("Add", [n.node("MatMul", [n.input(["n", 5]), n.weight(5, 7)]), n.weight(7)]), 7)


@graph(((2, 5),), ((4, 5),))
def bn_matmul(n: Net) -> str:
    return n.node("MatMul", [n.bn(n.input(["n", 5]), 5), n.weight(5, 7)])


@graph(((2, 6, 5),), ((3, 6, 5),))
def matmul_transpose_bn(n: Net) -> str:
    x = n.node("MatMul", [n.input(["n", "t", 5]), n.weight(5, 7)])
    return n.bn(n.node("Transpose", [x], perm=[0, 2, 1]), 7)


@graph()
def repvgg_identity_branch(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    x = n.node("Relu", [x])
    large, small = n.bn(n.conv(x, 6, 6, bias=False, pads=[1] * 4), 6), n.bn(n.conv(x, 6, 6, 1, bias=False), 6)
    return n.node("Relu", [n.node("Add", [n.node("Add", [large, small]), n.bn(x, 6)])])


@graph()
def identity_branch_that_a_sum_begins_with_zero(n: Net) -> str:
    x = n.node("Relu", [n.conv(image(n), 4, 6)])
    total = n.node("Mul", [n.node("Add", [n.bn(x, 6), n.constant(np.float32(0))]), n.constant(np.float32(1))])
    return n.node("Add", [total, n.bn(n.conv(x, 6, 6, bias=False, pads=[1] * 4), 6)])


@graph()
def bn_written_as_sub_div_mul_add(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    x = n.node("Sub", [x, n.weight(1, 6, 1, 1)])
    x = n.node("Div", [x, n.weight(6, 1, 1, positive=True)])
    return n.node("Add", [n.node("Mul", [x, n.weight(6, 1, 1)]), n.weight(1, 6, 1, 1)])


@graph()
def conv_pool_mul_add(n: Net) -> str:
    x = n.node("MaxPool", [n.conv(image(n), 4, 6)], kernel_shape=[2, 2])
    return n.node("Add", [n.node("Mul", [n.weight(1, 6, 1, 1, positive=True), x]), n.weight(1, 6, 1, 1)])


@graph()
def conv_reflect_pad_bn(n: Net) -> str:
    pads = n.constant(np.array([0, 0, 1, 2, 0, 0, 2, 1]))
    return n.bn(n.node("Pad", [n.conv(image(n), 4, 6), pads], mode="reflect"), 6)


@graph(affines=1)
def conv_pad_with_zeros_bn(n: Net) -> str:
    pads = n.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    return n.bn(n.node("Pad", [n.conv(image(n), 4, 6), pads]), 6)


@graph()
def conv_split_bn_concat(n: Net) -> str:
    parts = n.node("Split", [n.conv(image(n), 4, 6), n.constant(np.array([2, 4]))], 2, axis=1)
    return n.node("Concat", [n.bn(parts[0], 2), n.bn(parts[1], 4)], axis=1)


@graph()
def conv_slice_bn(n: Net) -> str:
    places = [n.constant(np.array([value])) for value in (1, 5, 1)]
    return n.bn(n.node("Slice", [n.conv(image(n), 4, 6), *places]), 4)


@graph()
def conv_gather_of_channels_bn(n: Net) -> str:
    order = n.constant(np.array([5, 0, 3, 1, 2, 4]))
    return n.bn(n.node("Gather", [n.conv(image(n), 4, 6), order], axis=1), 6)


@graph()
def channel_shuffle_bn(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    shape = n.node("Shape", [x])
    size = [n.node("Gather", [shape, n.constant(np.array([place]))]) for place in (0, 2, 3)]
    wide = n.node("Concat", [size[0], n.constant(np.array([2, 3])), *size[1:]], axis=0)
    x = n.node("Transpose", [n.node("Reshape", [x, wide])], perm=[0, 2, 1, 3, 4])
    return n.bn(n.node("Reshape", [x, shape]), 6)


@graph()
def conv_leaky_relu_scaled(n: Net) -> str:
    x = n.node("LeakyRelu", [n.conv(image(n), 4, 6)], alpha=0.2)
    return n.bn(x, 6, positive=True, shift=False)


@graph()
def conv_prelu_scaled(n: Net) -> str:
    x = n.node("PRelu", [n.conv(image(n), 4, 6), n.weight(6, 1, 1)])
    return n.bn(x, 6, positive=True, shift=False)


@graph()
def instance_norm_bn(n: Net) -> str:
    return n.bn(n.node("InstanceNormalization", [n.conv(image(n), 4, 6), n.weight(6), n.weight(6)]), 6)


@graph(((2, 6, 5),), ((3, 6, 5),))
def layer_norm_transpose_bn(n: Net) -> str:
    x = n.node("LayerNormalization", [n.input(["n", "t", 5]), n.weight(5), n.weight(5)])
    return n.bn(n.node("Transpose", [x], perm=[0, 2, 1]), 5)


@graph()
def conv_dropout_identity_bn(n: Net) -> str:
    return n.bn(n.node("Identity", [n.node("Dropout", [n.conv(image(n), 4, 6)])]), 6)


@graph(((2, 4, 8, 8),), ((3, 4, 8, 8),))
def conv_unsqueeze_squeeze_bn(n: Net) -> str:
    axes = n.constant(np.array([2]))
    x = n.node("Unsqueeze", [n.conv(image(n), 4, 6), axes])
    return n.bn(n.node("Squeeze", [x, n.constant(np.array([-3]))]), 6)


@graph()
def weight_of_a_constant_node(n: Net) -> str:
    value = helper.make_tensor("value", n.type, [6, 4, 1, 1], n.numbers(24).tolist())
    weight = n.node("Constant", [], value=value)
    return n.bn(n.node("Conv", [image(n), weight]), 6)


@graph()
def shared_weights(n: Net) -> str:
    x, weight = image(n), n.weight(4, 4, 1, 1)
    first = n.bn(n.node("Conv", [x, weight]), 4)
    return n.node("Conv", [n.node("Relu", [first]), weight])


@graph(left=1)
def training_mode(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    held = [n.weight(6), n.weight(6), n.weight(6), n.weight(6, positive=True)]
    name = n.name("bn")
    n.nodes.append(
        helper.make_node("BatchNormalization", [x, *held], [name, f"{name}.m", f"{name}.v"], name, training_mode=1)
    )
    return name


@graph(affines=1)
def bn_alone(n: Net) -> str:
    return n.node("Sigmoid", [n.bn(image(n), 4)])


@graph(affines=1)
def conv_read_twice(n: Net) -> str:
    x = n.conv(image(n), 4, 6)
    return n.node("Mul", [n.bn(x, 6), n.node("Sigmoid", [x])])
