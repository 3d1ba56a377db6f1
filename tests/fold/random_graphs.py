"""Random models with branches, sharing, aliasing and several outputs, made from a seed.

A :class:`RandomNet` is a list of steps that its ``forward`` runs one after the other; each step reads earlier values.
The steps are drawn while a real batch goes through them, so that every model runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fold.support import double

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Step:
    """``function(net, *values)`` where ``reads`` are positions of earlier values; it may return several."""

    name: str
    function: Callable[..., Any]
    reads: tuple[int, ...]


class RandomNet(nn.Module):
    """See the module's docstring. ``returns`` are the positions of the values that the model returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.returns: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Any:
        values: list[Any] = [x]
        for step in self.steps:
            values.append(step.function(self, *(values[index] for index in step.reads)))
        return tuple(values[index] for index in self.returns)

    def describe(self) -> str:
        """Return the program, a line per step."""
        lines = [f"v{i + 1} = {s.name}({', '.join(f'v{r}' for r in s.reads)})" for i, s in enumerate(self.steps)]
        return "\n".join([*lines, f"return {self.returns}", str(self.layers)])


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.net = RandomNet()
        self.shapes: list[tuple[int, ...]] = [(2, self.random.choice([3, 4]), 8, 8)]

    def layer(self, layer: nn.Module) -> Callable[..., Any]:
        """Add a layer, and return a call of it."""
        self.net.layers.append(layer)
        return self.call(len(self.net.layers) - 1)

    @staticmethod
    def call(index: int) -> Callable[..., Any]:
        return lambda net, value: net.layers[index](value)

    def shared(self, fits: Callable[[nn.Module], bool]) -> Callable[..., Any] | None:
        """Return a call of a layer that is there already, if one fits."""
        found = [index for index, layer in enumerate(self.net.layers) if fits(layer)]
        return self.call(self.random.choice(found)) if found else None

    def step(self) -> None:
        kinds = ["conv"] * 7 + ["bn"] * 12 + list(_KINDS)
        read = self.pick()
        name = self.random.choice(kinds)
        made = getattr(self, f"_{name}")(read, self.shapes[read])
        if made is None:
            return
        function, reads = made if isinstance(made, tuple) else (made, (read,))
        step = Step(name, function, reads)
        with torch.no_grad():
            try:
                value = self.try_out(step)
            except (RuntimeError, ValueError):
                return  # a window or a padding larger than the image
        if not isinstance(value, Tensor) or value.ndim != 4 or not 0 < value.numel() <= 40_000:
            return
        self.net.steps.append(step)
        self.shapes.append(tuple(value.shape))

    def try_out(self, step: Step) -> Any:
        return step.function(self.net.eval(), *(torch.zeros(self.shapes[index]) for index in step.reads))

    def pick(self) -> int:
        """Mostly one of the latest values."""
        count = len(self.shapes)
        return self.random.choice([count - 1, count - 1, max(count - 2, 0), self.random.randrange(count)])

    def partner(self, read: int, same: Callable[[tuple[int, ...]], bool]) -> int | None:
        found = [index for index, shape in enumerate(self.shapes) if same(shape) and index != read]
        return self.random.choice(found) if found else None

    # --- layers with weights --------------------------------------------------------------------------------------

    def _conv(self, _read: int, shape: tuple[int, ...]) -> Any:
        channels, draw = shape[1], self.random
        if draw.random() < 0.25:
            return self.shared(lambda layer: isinstance(layer, CONVOLUTIONS) and layer.in_channels == channels)
        size, groups = draw.choice([1, 3, 3]), draw.choice([1, 1, channels])
        mode = draw.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
        return self.layer(
            nn.Conv2d(
                channels,
                groups * draw.randint(1, 2) if groups > 1 else draw.choice([2, 3, 4, 8]),
                size,
                padding=size // 2,
                stride=draw.choice([1, 1, 1, 2]),
                groups=groups,
                bias=draw.random() < 0.5,
                padding_mode=mode,
            )
        )

    def _transposed(self, _read: int, shape: tuple[int, ...]) -> Any:
        channels, draw = shape[1], self.random
        groups = draw.choice([1, 1, channels])
        outputs = groups * draw.randint(1, 2) if groups > 1 else draw.choice([2, 4])
        return self.layer(nn.ConvTranspose2d(channels, outputs, 2, stride=draw.choice([1, 2]), groups=groups))

    def _linear(self, _read: int, shape: tuple[int, ...]) -> Any:
        call = self.layer(nn.Linear(shape[1], self.random.choice([2, 4])))
        return lambda net, v: call(net, v.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _bn(self, _read: int, shape: tuple[int, ...]) -> Any:
        if self.random.random() < 0.2:
            return self.shared(lambda layer: isinstance(layer, nn.BatchNorm2d) and layer.num_features == shape[1])
        eps = self.random.choice([1e-5, 1e-3, 1e-8])
        return self.layer(nn.BatchNorm2d(shape[1], eps=eps, affine=self.random.random() < 0.8))

    def _group_norm(self, _read: int, shape: tuple[int, ...]) -> Any:
        return self.layer(nn.GroupNorm(1, shape[1]))

    # --- ops that an affine may pass ------------------------------------------------------------------------------

    def _max_pool(self, _read: int, _shape: Any) -> Any:
        return self.layer(self.random.choice([nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(3)]))

    def _max_pool_indices(self, _read: int, _shape: Any) -> Any:
        item = self.random.choice([0, 0, 1])
        return lambda net, v: F.max_pool2d(v, 2, 1, return_indices=True)[item].to(v.dtype)

    def _average_pool(self, _read: int, _shape: Any) -> Any:
        pools = [
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 1, 1),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.AvgPool2d(2, 1, divisor_override=3),
            nn.AdaptiveAvgPool2d(2),
        ]
        return self.layer(self.random.choice(pools))

    def _pass(self, _read: int, _shape: Any) -> Any:
        return self.random.choice(
            [
                lambda net, v: F.dropout(v, 0.5, training=net.training),
                lambda net, v: v.clone(),
                lambda net, v: v.contiguous(),
                lambda net, v: v[:],
            ]
        )

    def _activation(self, _read: int, _shape: Any) -> Any:
        return self.random.choice(
            [
                lambda net, v: F.relu(v),
                lambda net, v: F.leaky_relu(v, 0.2),
                lambda net, v: torch.tanh(v),
                lambda net, v: v.clone().relu_(),
            ]
        )

    def _pad(self, _read: int, _shape: Any) -> Any:
        mode = self.random.choice(["constant", "reflect", "replicate", "circular"])
        return lambda net, v: F.pad(v, (1, 1, 1, 0), mode=mode)

    def _pad_channels(self, _read: int, _shape: Any) -> Any:
        return lambda net, v: F.pad(v, (0, 0, 0, 0, 0, 1))

    def _upsample(self, _read: int, shape: tuple[int, ...]) -> Any:
        mode = self.random.choice(["nearest", "bilinear", "bicubic"])
        return (lambda net, v: F.interpolate(v, scale_factor=2, mode=mode)) if shape[2] < 8 else None

    def _shuffle(self, _read: int, shape: tuple[int, ...]) -> Any:
        if shape[1] % 4 == 0:
            return self.random.choice([lambda net, v: F.pixel_shuffle(v, 2), lambda net, v: F.channel_shuffle(v, 2)])
        return lambda net, v: F.pixel_unshuffle(v, 2)

    def _turn(self, _read: int, shape: tuple[int, ...]) -> Any:
        _, channels, height, width = shape
        return self.random.choice(
            [
                lambda net, v: v.transpose(2, 3),
                lambda net, v: v.permute(0, 2, 1, 3),
                lambda net, v: v.flatten(2).unflatten(2, (width, height)),
                lambda net, v: v.reshape(v.shape[0], channels, -1, 1),
                lambda net, v: v.transpose(0, 1).contiguous().transpose(0, 1),
            ]
        )

    def _mean(self, _read: int, _shape: Any) -> Any:
        dims = self.random.choice([(2, 3), (2,), (-1,), (1,)])
        return lambda net, v: v.mean(dims, keepdim=True)

    # --- several values -------------------------------------------------------------------------------------------

    def _add(self, read: int, shape: tuple[int, ...]) -> Any:
        other = self.partner(read, lambda s: s == shape)
        if other is None:
            return None
        adds = [lambda net, a, b: a + b, lambda net, a, b: a - b, lambda net, a, b: torch.add(a, b)]
        return self.random.choice(adds), (read, other)

    def _add_in_place(self, read: int, shape: tuple[int, ...]) -> Any:
        other = self.partner(read, lambda s: s == shape)
        return None if other is None or read == 0 else (_added_in_place, (read, other))

    def _add_stretched(self, read: int, shape: tuple[int, ...]) -> Any:
        other = self.partner(read, lambda s: s != shape and all(a in (1, b) for a, b in zip(s, shape, strict=True)))
        return None if other is None else (lambda net, a, b: a + b, (read, other))

    def _gate(self, read: int, shape: tuple[int, ...]) -> Any:
        other = self.partner(read, lambda s: s == shape)
        return None if other is None else (lambda net, a, b: a * torch.sigmoid(b), (read, other))

    def _cat(self, read: int, shape: tuple[int, ...]) -> Any:
        dim = self.random.choice([1, 1, 1, -3, 2, 0])
        rest = [d for d in range(4) if d != dim % 4]
        other = self.partner(read, lambda s: all(s[d] == shape[d] for d in rest))
        if other is None:
            return lambda net, a: torch.cat([a, a], dim)
        if self.random.random() < 0.2:
            return lambda net, a, b: torch.cat([a, b, a], dim), (read, other)
        return lambda net, a, b: torch.cat((b, a), dim=dim), (read, other)

    def _slice(self, _read: int, shape: tuple[int, ...]) -> Any:
        channels = shape[1]
        start = self.random.randrange(channels)
        stop = self.random.randint(start + 1, channels)
        return self.random.choice(
            [
                lambda net, v: v[:, start:stop],
                lambda net, v: v.narrow(1, start, stop - start),
                lambda net, v: v[:, :, 1:],
                lambda net, v: v[:, -1:],
            ]
        )

    def _chunk(self, _read: int, shape: tuple[int, ...]) -> Any:
        piece = self.random.choice([0, -1])
        return self.random.choice(
            [
                lambda net, v: torch.chunk(v, 2, 1)[piece],
                lambda net, v: torch.split(v, 1, dim=1)[piece],
                _halves_swapped,
            ]
        )


def _halves_swapped(net: nn.Module, value: Tensor) -> Tensor:
    parts = value.chunk(2, dim=1)
    return torch.cat([parts[-1], parts[0]], 1)


def _added_in_place(net: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    a += b.clone()  # two views of one memory that overlap may not be added in place
    return a


_KINDS = tuple(
    name[1:]
    for name in vars(_Maker)
    if name.startswith("_") and not name.startswith("__") and name[1:] not in ("conv", "bn")
)


def random_net(seed: int, *, steps: int = 16) -> tuple[RandomNet, Tensor]:
    """Return a random model in eval mode and float64, its statistics randomised, and a batch for it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        maker = _Maker(seed)
        for _ in range(steps):
            maker.step()
        count = len(maker.shapes)
        others = [i for i in range(1, count) if maker.random.random() < 0.1]
        maker.net.returns = (*others, count - 1)
    net = double(maker.net, seed=seed, negative=maker.random.choice([0.0, 0.3]))
    assert isinstance(net, RandomNet)
    for layer in net.layers:  # the conditions of some rules hold by chance too seldom
        if isinstance(layer, nn.BatchNorm2d) and maker.random.random() < 0.2:
            assert layer.running_mean is not None
            layer.running_mean.zero_()
            if layer.affine:
                layer.bias.data.zero_()
    return net, torch.randn(maker.shapes[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
