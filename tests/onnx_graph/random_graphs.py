"""Random ONNX graphs: chains and branches of the operators that bnfold reads, with attributes of all kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.onnx_graph.support import Net

__all__ = ["random_graph"]

Shape = tuple[int, ...]


class _Grower:
    """Grows a graph. All shapes are those of one input; ``shape[0]`` is the batch."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.net = Net(seed + 1, int(self.random.choice([8, 9, 11, 12, 13, 15, 17, 18, 21])))
        self.free = bool(self.random.random() < 0.6)  # height and width stay open
        self.start: Shape = (2, 4, int(self.random.integers(7, 12)), int(self.random.integers(7, 12)))
        x = self.net.input(list(self.start))
        self.shapes: dict[str, Shape] = {x: self.start}
        self.latest = x

    def grown(self) -> onnx.ModelProto:
        for _ in range(int(self.random.integers(5, 15))):
            self.step()
        if self.random.random() < 0.3:
            self.head()
        more = [name for name in self.shapes if name not in ("x", self.latest) and self.chance(0.04)]
        outputs = [self.latest, *more]
        model = self.net.model(*outputs)
        dims = model.graph.input[0].type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if self.free:
            dims[2].dim_param, dims[3].dim_param = "height", "width"
        return model

    # --- choosing -------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def one(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def value(self) -> str:
        """A value, most often the latest, of four dimensions."""
        images = [name for name, shape in self.shapes.items() if len(shape) == 4]
        return self.latest if len(self.shapes[self.latest]) == 4 and self.chance(0.75) else self.one(*images)

    def like(self, value: str) -> list[str]:
        return [name for name, shape in self.shapes.items() if shape == self.shapes[value] and name != value]

    def put(self, name: Any) -> None:
        """Take the result of a node, where it has a shape that can be gone on with."""
        for each in name if isinstance(name, list) else [name]:
            shape = self._shape(each)
            if shape is None or min(shape) < 1 or np.prod(shape) > 20000:
                self.net.nodes.pop()
                return
        for each in name if isinstance(name, list) else [name]:
            shape = self._shape(each)
            assert shape is not None
            self.shapes[each] = shape
            self.latest = each

    def _shape(self, name: str) -> Shape | None:
        model = self.net.model(name)
        told = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shape = [d.dim_value for d in next(v for v in told.graph.output if v.name == name).type.tensor_type.shape.dim]
        return tuple(shape) if shape else None

    # --- steps ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        kinds = [
            *([self.conv] * 6 + [self.bn] * 8 + [self.activation] * 2 + [self.pool] * 3 + [self.average] * 3),
            *([self.transposed, self.joined, self.summed, self.summed, self.affine, self.affine, self.affine]),
            *([self.padded, self.resized, self.pixels, self.split, self.sliced, self.gathered, self.passed]),
            *([self.reshaped, self.turned, self.mean, self.normalised, self.shuffled, self.reparameterised]),
        ]
        self.one(*kinds)()

    def conv(self) -> None:
        x = self.value()
        i, group = self.shapes[x][1], 1
        if self.chance(0.3):
            group = self.one(*[size for size in range(1, i + 1) if i % size == 0])
        o, k = group * int(self.random.integers(1, 4)), self.one(1, 1, 3, 3, 2)
        more: dict[str, Any] = {"group": group}
        if self.chance(0.2):
            more["auto_pad"] = self.one("SAME_UPPER", "SAME_LOWER", "VALID")
        elif self.chance(0.6):
            more["pads"] = self.one([k // 2] * 4, [0, 0, 1, 1], [0] * 4, [1, 0, 1, 0])
        if self.chance(0.2):
            more["strides"] = [1, 2]
        elif self.chance(0.2) and "auto_pad" not in more:
            more["dilations"] = [2, 1]
        if self.chance(0.1) and o == i:
            k = 1
        self.put(self.net.conv(x, i, o, k, bias=self.chance(0.5), **more))

    def transposed(self) -> None:
        x = self.value()
        i, group = self.shapes[x][1], self.one(1, 1, 2)
        if i % group:
            return
        o, k = int(self.random.integers(1, 3)), self.one(1, 2, 3)
        more: dict[str, Any] = {"group": group, "strides": self.one([1, 1], [2, 1])}
        if k == 3 and self.chance(0.5):
            more["pads"] = self.one([1, 1, 1, 1], [1, 0, 0, 1])
        weights = [self.net.weight(i, o, k, k), *([self.net.weight(o * group)] if self.chance(0.5) else [])]
        self.put(self.net.node("ConvTranspose", [x, *weights], **more))

    def bn(self) -> None:
        x = self.value()
        self.put(self.net.bn(x, self.shapes[x][1], positive=self.chance(0.6), shift=self.chance(0.8)))

    def activation(self) -> None:
        x = self.value()
        kind = self.one("Relu", "Relu", "LeakyRelu", "PRelu", "Sigmoid")
        more = [self.net.weight(self.one(1, self.shapes[x][1]), 1, 1)] if kind == "PRelu" else []
        self.put(self.net.node(kind, [x, *more]))

    def pool(self) -> None:
        if self.chance(0.15):
            self.put(self.net.node("GlobalMaxPool", [self.value()]))
            return
        more: dict[str, Any] = {"kernel_shape": self.one([2, 2], [3, 3]), "strides": self.one([1, 1], [2, 2])}
        if self.chance(0.3):
            more["pads"] = self.one([1, 1, 1, 1], [0, 0, 1, 1])
        if self.net.opset >= 10 and self.chance(0.3):
            more["ceil_mode"] = 1
        self.put(self.net.node("MaxPool", [self.value()], **more))

    def average(self) -> None:
        more: dict[str, Any] = {"kernel_shape": self.one([2, 2], [3, 3]), "strides": self.one([1, 1], [2, 2])}
        if self.chance(0.5):
            more["pads"] = self.one([1, 1, 1, 1], [0, 0, 1, 1])
            more["count_include_pad"] = self.one(0, 1)
        elif self.net.opset >= 10 and self.chance(0.3):
            more["ceil_mode"] = 1
        self.put(self.net.node("AveragePool", [self.value()], **more))

    def mean(self) -> None:
        x = self.value()
        if self.net.opset >= 18:
            self.put(self.net.node("ReduceMean", [x, self.net.constant(np.array([2, -1]))], keepdims=1))
        else:
            self.put(self.net.node("ReduceMean", [x], axes=self.one([2, 3], [-1, 2], [3]), keepdims=1))

    def joined(self) -> None:
        x = self.value()
        fit = [n for n, s in self.shapes.items() if len(s) == 4 and s[2:] == self.shapes[x][2:]]
        parts = [x, self.one(*fit)]
        if self.chance(0.2):
            parts.append(self.one(*fit))
        self.put(self.net.node("Concat", parts, axis=self.one(1, -3)))

    def summed(self) -> None:
        x = self.value()
        if not self.like(x) and self.chance(0.8):
            channels = self.shapes[x][1]
            first = self.net.conv(x, channels, channels, 1)
            self.put(first)
        others = self.like(x)
        if others:
            kind = self.one("Add", "Add", "Sub", "Mul", "Sum")
            pair = [x, self.one(*others)]
            self.put(self.net.node(kind, pair if self.chance(0.5) else pair[::-1]))

    def reparameterised(self) -> None:
        x = self.value()
        channels = self.shapes[x][1]
        large = self.net.bn(self.net.conv(x, channels, channels, 3, bias=False, pads=[1] * 4), channels)
        small = self.net.bn(self.net.conv(x, channels, channels, 1, bias=False), channels)
        total = self.net.node("Add", [large, small])
        self.put(self.net.node("Add", [total, self.net.bn(x, channels)]))

    def affine(self) -> None:
        x = self.value()
        shape = self.shapes[x]
        channels = shape[1]
        kind, positive = self.one("Add", "Sub", "Mul", "Div"), self.chance(0.5)
        shapes = [(1, channels, 1, 1), (channels, 1, 1), (), (1,), (1, 1, 1)]
        if not self.free:
            shapes += [(shape[3],), (1, 1, shape[2], 1), shape[1:]]
        numbers = np.asarray(self.net.numbers(*self.one(*shapes), positive=positive or kind == "Div"))
        pair = [x, self.net.constant(numbers)]
        self.put(self.net.node(kind, pair[::-1] if kind != "Div" and self.chance(0.3) else pair))

    def padded(self) -> None:
        x, mode = self.value(), self.one("constant", "reflect", "edge")
        pads = self.one([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 2, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0])
        if mode == "reflect" and (pads[1] or min(self.shapes[x][2:]) < 3):
            return
        if self.net.opset < 11:
            self.put(self.net.node("Pad", [x], pads=pads, mode=mode))
        else:
            self.put(self.net.node("Pad", [x, self.net.constant(np.array(pads))], mode=mode))

    def resized(self) -> None:
        x = self.value()
        scales = np.array([1, 1, *self.one([2, 2], [1, 2])], np.float32)
        if self.net.opset == 9:
            self.put(self.net.node("Upsample", [x, self.net.constant(scales)]))
        elif self.net.opset >= 11:
            mode = self.one("nearest", "linear")
            more = {"mode": mode}
            if mode == "nearest":
                more |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            region = self.net.constant(np.zeros(0, np.float32)) if self.net.opset < 13 else ""
            self.put(self.net.node("Resize", [x, region, self.net.constant(scales)], **more))

    def pixels(self) -> None:
        x = self.value()
        _, channels, height, width = self.shapes[x]
        if channels % 4 == 0:
            mode = {"mode": self.one("DCR", "CRD")} if self.net.opset >= 11 else {}
            self.put(self.net.node("DepthToSpace", [x], blocksize=2, **mode))
        elif height % 2 == 0 and width % 2 == 0 and not self.free:
            self.put(self.net.node("SpaceToDepth", [x], blocksize=2))

    def split(self) -> None:
        x = self.value()
        channels = self.shapes[x][1]
        if channels < 2:
            return
        first = int(self.random.integers(1, channels))
        sizes = [first, channels - first]
        if self.net.opset < 13:
            self.put(self.net.node("Split", [x], 2, axis=1, split=sizes))
        else:
            self.put(self.net.node("Split", [x, self.net.constant(np.array(sizes))], 2, axis=1))

    def sliced(self) -> None:
        x = self.value()
        axis = self.one(1, 1, 2, -1)
        start, end, step = self.one((0, 2**63 - 1, 1), (1, 2**31 - 1, 1), (0, -1, 1), (-3, 2**63 - 1, 1))
        if self.net.opset < 10:
            self.put(self.net.node("Slice", [x], axes=[axis % 4], starts=[start], ends=[end]))
        else:
            step = self.one(step, 2)
            places = [self.net.constant(np.array([each])) for each in (start, end, axis, step)]
            self.put(self.net.node("Slice", [x, *places]))

    def gathered(self) -> None:
        x = self.value()
        channels = self.shapes[x][1]
        order = self.random.permutation(channels)
        if self.chance(0.3):
            order = self.random.integers(0, channels, max(1, channels - 1))
        self.put(self.net.node("Gather", [x, self.net.constant(order)], axis=1))

    def passed(self) -> None:
        self.put(self.net.node(self.one("Identity", "Dropout", "Neg"), [self.value()]))

    def reshaped(self) -> None:
        """To another shape and back."""
        x = self.value()
        _, channels, height, width = self.shapes[x]
        if self.free:
            wide, back = [0, channels, -1], None
        else:
            wide = self.one([0, channels, -1], [-1, channels, width, height], [0, 1, channels, height, width])
            back = [-1, channels, height, width]
        flat = self.net.node("Reshape", [x, self.net.constant(np.array(wide))])
        if self.chance(0.5):
            flat = self.net.bn(flat, channels if len(wide) < 5 else 1)
        if back is not None:
            self.put(self.net.node("Reshape", [flat, self.net.constant(np.array(back))]))
        else:
            shape = self.net.node("Shape", [x])
            self.put(self.net.node("Reshape", [flat, shape]))

    def shuffled(self) -> None:
        x = self.value()
        _, channels, height, width = self.shapes[x]
        if channels % 2 or self.free:
            return
        apart = [0, 2, channels // 2, height, width]
        wide = self.net.node("Reshape", [x, self.net.constant(np.array(apart))])
        turned = self.net.node("Transpose", [wide], perm=[0, 2, 1, 3, 4])
        self.put(self.net.node("Reshape", [turned, self.net.constant(np.array([0, channels, height, width]))]))

    def turned(self) -> None:
        """Channels last, something there, and back."""
        x = self.value()
        channels = self.shapes[x][1]
        last = self.net.node("Transpose", [x], perm=[0, 2, 3, 1])
        done = last
        kind = self.one("affine", "matmul", "nothing", "norm")
        if kind == "affine":
            done = self.net.node(self.one("Mul", "Add", "Sub"), [last, self.net.weight(channels)])
        elif kind == "matmul":
            done = self.net.node("MatMul", [last, self.net.weight(channels, channels)])
            if self.chance(0.6):
                done = self.net.node(
                    "Add", self.one([done, self.net.weight(channels)], [self.net.weight(channels), done])
                )
        elif kind == "norm" and self.net.opset >= 17:
            weights = [self.net.weight(channels), self.net.weight(channels)]
            done = self.net.node("LayerNormalization", [last, *weights])
        self.put(self.net.node("Transpose", [done], perm=[0, 3, 1, 2]))

    def normalised(self) -> None:
        x = self.value()
        channels = self.shapes[x][1]
        if min(self.shapes[x][2:]) < 2:
            return
        weights = [self.net.weight(channels), self.net.weight(channels)]
        self.put(self.net.node("InstanceNormalization", [x, *weights], epsilon=0.1))

    def head(self) -> None:
        """Flatten, and matrices."""
        x = self.value()
        if self.free or self.chance(0.5):
            x = self.net.node("GlobalAveragePool", [x])
        flat = self.net.node("Flatten", [x])
        shape = self._shape(flat)
        assert shape is not None
        size = shape[1]
        if self.chance(0.5):
            flat = self.net.bn(flat, size)
        if self.chance(0.5):
            more = {"alpha": self.one(1.0, 0.5), "beta": self.one(1.0, 2.0), "transB": 1}
            y = self.net.node("Gemm", [flat, self.net.weight(5, size), self.net.weight(5)], **more)
        else:
            y = self.net.node("MatMul", [flat, self.net.weight(size, 5)])
            if self.chance(0.6):
                y = self.net.node("Add", [y, self.net.weight(self.one(1, 5))])
        if self.chance(0.6):
            y = self.net.bn(y, 5)
        if self.chance(0.4):
            y = self.net.node("Mul", [self.net.node("Add", [y, self.net.weight(1, 5)]), self.net.weight(5)])
        self.shapes[y] = (2, 5)
        self.latest = y


def random_graph(seed: int) -> tuple[onnx.ModelProto, list[list[Shape]]]:
    """Return a random graph, and the shapes of its input for several runs."""
    grower = _Grower(seed)
    model = grower.grown()
    _, channels, height, width = grower.start
    shapes = [[grower.start], [(1, channels, height, width)]]
    if grower.free:
        shapes.append([(3, channels, height + 3, width + 2)])
    return model, shapes
