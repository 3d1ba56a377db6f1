"""Random models of branches that are added: what merging is for, and what it must leave alone.

A :class:`BranchNet` is a stem and a few blocks. A block adds branches of its input, or of an earlier value:
convolutions with kernels of 1 to 7 (even ones too), strides, dilations, groups and padding modes, pools, sequences, the
value itself, BatchNorms, multiplications by constants. Branches whose shapes do not agree are drawn again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.fold.support import double

__all__ = ["BranchNet", "random_branches"]

Branch = Callable[["BranchNet", Tensor], Tensor]
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class BranchNet(nn.Module):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.constants = nn.ParameterList()
        self.blocks: list[Callable[[BranchNet, list[Tensor]], Tensor]] = []
        self.told: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        values = [torch.relu(self.layers[0](x))]
        for block in self.blocks:
            values.append(block(self, values))
        return values[-1]


class _Maker:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.dims = self.draw.choice([1, 2, 2, 2, 2, 3])
        self.channels = self.draw.choice([2, 4, 6])
        self.size = 9 if self.dims < 3 else 5
        self.net = BranchNet()
        self.layer(CONVS[self.dims](3, self.channels, 1))
        self.shapes = [(2, self.channels, *[self.size] * self.dims)]

    def layer(self, layer: nn.Module) -> Branch:
        self.net.layers.append(layer)
        index = len(self.net.layers) - 1
        return lambda net, x: net.layers[index](x)

    # --- branches -------------------------------------------------------------------------------------------------

    def conv(self, inputs: int, *, stride: int = 1, outputs: int | None = None, point: bool = False) -> Branch:
        draw = self.draw
        kernel = 1 if point else draw.choice([1, 1, 2, 3, 3, 3, 4, 5, 7])
        outputs = outputs or inputs
        dilation = draw.choice([1, 1, 1, 2])
        groups = draw.choice([g for g in (1, 1, 2, inputs) if inputs % g == 0 and outputs % g == 0])
        reach = dilation * (kernel - 1)
        padding: Any = draw.choice([reach // 2] * 5 + [(reach + 1) // 2, 0, 1])
        if stride == 1 and draw.random() < 0.1:
            padding = "same"
        mode = draw.choice(["zeros"] * 4 + ["reflect", "replicate", "circular"])
        size: Any = kernel
        if self.dims == 2 and draw.random() < 0.15 and kernel % 2 and padding != "same":
            other = draw.choice([1, 3])
            size, padding = (kernel, other), (reach // 2, dilation * (other - 1) // 2)
        bias = draw.random() < 0.6
        layer = CONVS[self.dims](
            inputs, outputs, size, stride, padding, dilation, groups=groups, bias=bias, padding_mode=mode
        )
        return self.layer(layer)

    def norm(self, channels: int) -> Branch:
        return self.layer(NORMS[self.dims](channels))

    def pool(self, stride: int) -> Branch:
        draw = self.draw
        kernel = draw.choice([1, 2, 3, 3, 5])
        options: dict[str, Any] = {"count_include_pad": draw.random() < 0.7, "ceil_mode": draw.random() < 0.2}
        if self.dims > 1 and draw.random() < 0.2:
            options["divisor_override"] = draw.choice([2, 5])
        return self.layer(POOLS[self.dims](kernel, stride, draw.choice([kernel // 2, kernel // 2, 0]), **options))

    def branch(self, inputs: int, stride: int, outputs: int) -> tuple[str, Branch]:
        kinds = ["conv"] * 6 + ["sequence", "sequence", "pooled", "pool", "identity", "norm", "twice"]
        kind = self.draw.choice(kinds)
        if kind == "conv":
            made = self.conv(inputs, stride=stride, outputs=outputs)
        elif kind == "sequence":
            middle = self.draw.choice([inputs, 2 * inputs])
            pair = self.draw.choice([(True, False), (False, True), (True, True)])
            first = self.conv(inputs, point=pair[0], outputs=middle)
            second = self.conv(middle, stride=stride, point=pair[1], outputs=outputs)
            between = self.norm(middle) if self.draw.random() < 0.3 else None
            made = _chained(first, between, second)
        elif kind == "pooled":
            made = _chained(self.pool(stride), None, self.conv(inputs, point=True, outputs=outputs))
        elif kind == "pool":
            made = self.pool(stride)
        elif kind == "norm":
            made = self.norm(inputs)
        elif kind == "twice":
            index = len(self.net.layers) - 1
            made = lambda net, x: net.layers[index](x)  # noqa: E731
        else:
            made = lambda net, x: x  # noqa: E731
        if self.draw.random() < 0.4:
            made = _chained(made, None, self.norm(outputs))
        if self.draw.random() < 0.15:
            made = self.scaled(made, outputs)
        return kind, made

    def scaled(self, branch: Branch, channels: int) -> Branch:
        kind = self.draw.choice(["number", "channels", "batched", "negated", "divided"])
        if kind in ("channels", "batched"):
            shape = (channels, *[1] * self.dims)
            self.net.constants.append(nn.Parameter(torch.randn(shape if kind == "channels" else (1, *shape))))
            index = len(self.net.constants) - 1
            return lambda net, x: net.constants[index] * branch(net, x)
        if kind == "negated":
            return lambda net, x: -branch(net, x)
        if kind == "divided":
            return lambda net, x: branch(net, x) / 3
        return lambda net, x: 0.7 * branch(net, x)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def block(self) -> None:
        draw = self.draw
        stride = draw.choice([1, 1, 1, 2])
        main = len(self.shapes) - 1
        inputs = self.shapes[main][1]
        outputs = inputs if stride == 1 and draw.random() < 0.8 else draw.choice([inputs, 4])
        wanted: tuple[int, ...] | None = None
        chosen: list[tuple[int, Branch, int]] = []
        names = []
        for _ in range(draw.choice([6, 10, 16])):
            read = main if draw.random() < 0.9 else draw.randrange(main + 1)
            kind, branch = self.branch(self.shapes[read][1], stride, outputs)
            shape = self.shape_of(branch, self.shapes[read])
            if shape is None or (wanted is not None and shape != wanted):
                continue
            wanted = shape
            names.append(f"{kind} of v{read}")
            chosen.append((read, branch, draw.choice([1, 1, 1, -1])))
        if wanted is None:
            return
        way, extra = draw.choice(["plain", "plain", "in place", "nested", "read twice"]), draw.random()
        after = self.norm(wanted[1]) if extra < 0.4 else None
        activate = draw.random() < 0.7
        self.net.blocks.append(_block(chosen, way, after, activate=activate))
        self.net.told.append(f"v{len(self.shapes)} = {way}: {names}")
        self.shapes.append(wanted)

    def shape_of(self, branch: Branch, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        with torch.no_grad():
            try:
                value = branch(self.net.eval(), torch.zeros(shape))
            except (RuntimeError, ValueError):
                return None
        return tuple(value.shape) if 0 < value.numel() < 20_000 and value.dim() == len(shape) else None


def _chained(first: Branch, between: Branch | None, second: Branch) -> Branch:
    if between is None:
        return lambda net, x: second(net, first(net, x))
    return lambda net, x: second(net, between(net, first(net, x)))


def _block(
    chosen: list[tuple[int, Branch, int]], way: str, after: Branch | None, *, activate: bool
) -> Callable[[BranchNet, list[Tensor]], Tensor]:
    def run(net: BranchNet, values: list[Tensor]) -> Tensor:
        terms = [(branch(net, values[read]), sign) for read, branch, sign in chosen]
        if way == "nested" and len(terms) > 2:
            middle = len(terms) // 2
            total = _total(terms[:middle], in_place=False) + _total(terms[middle:], in_place=False)
        else:
            total = _total(terms, in_place=way == "in place")
        if way == "read twice":
            total = total + terms[0][0].mean()
        if after is not None:
            total = after(net, total)
        return torch.relu(total) if activate else total

    return run


def _total(terms: list[tuple[Tensor, int]], *, in_place: bool) -> Tensor:
    total = terms[0][0] if terms[0][1] > 0 else -terms[0][0]
    if in_place:
        total = total.clone() if len(terms) % 2 else total * 1
    for value, sign in terms[1:]:
        if in_place:
            if sign > 0:
                total += value
            else:
                total -= value
        else:
            total = total + value if sign > 0 else total - value
    return total


def random_branches(seed: int) -> tuple[BranchNet, Tensor]:
    """Return a random model in eval mode and float64, and a batch for it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        maker = _Maker(seed)
        for _ in range(maker.draw.choice([1, 2, 3])):
            maker.block()
        for layer in maker.net.layers:  # a bias of zero allows more
            if isinstance(layer, tuple(CONVS.values())) and layer.bias is not None and maker.draw.random() < 0.2:
                nn.init.zeros_(layer.bias)
    net: BranchNet = double(maker.net, seed=seed)
    shape = (2, 3, *maker.shapes[0][2:])
    if maker.dims == 2:  # what a fold without inputs tries first, as timm's models say it; 224 pixels take their time
        net.default_cfg = {"input_size": (3, 13, 13)}  # type: ignore[assignment]
    return net, torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
