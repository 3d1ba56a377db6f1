"""Questions that real code asks of a value in ``forward``, each in a small network that answers wrongly if they are.

``QUESTIONS`` maps a sentence to a :class:`Question`. Every network has a convolution and a BatchNorm, runs in float64,
and computes another function, or stops, where its question is answered in another way than in a run on tensors.
:func:`judge` folds a network and compares the folded module with the model at five shapes; ``python -m
tests.graph.questions`` prints the table of all outcomes, and a network that ends its process only ends its own line.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import copy
import functools
import itertools
import json
import math
import operator
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from tests.networks import randomise

try:
    from bnfold.errors import OtherInputError
except ImportError:
    from bnfold.errors import OtherInputError

ROOT = Path(__file__).parents[2]
EXAMPLE = (2, 3, 32, 32)
SHAPES = (EXAMPLE, (1, 3, 32, 32), (3, 3, 32, 32), (2, 3, 48, 40), (2, 3, 12, 12))
MODES: dict[str, tuple[bool, dict[str, Any]]] = {  # whether example inputs are given, and options of the fold
    "given": (True, {}),
    "found": (False, {}),
    "symbolic": (False, {"capture": "symbolic"}),
}
WIDTH = 6  # channels behind the convolution
TOLERANCE = 1e-9  # of the peak, in float64

ANSWER = "[answer] "  # what a worker's lines begin with
RIGHT, REFUSED, WRONG, CRASH = "right", "refused", "wrong", "crash"


@dataclass(frozen=True)
class Question:
    """One network.

    Attributes:
        text: what it asks.
        build: makes the network; its weights come from a fixed seed.
        stops_at: the shapes that the network itself does not take.
        of_data: the answer depends on the numbers in a tensor, so that no graph can hold it.
    """

    text: str
    build: Callable[[], nn.Module]
    stops_at: tuple[tuple[int, ...], ...] = ()
    of_data: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one network at one shape: ``right``, ``refused``, ``wrong`` or ``crash``, and a word on why."""

    kind: str
    detail: str = ""


QUESTIONS: dict[str, Question] = {}


class Asks(nn.Module):
    """``forward(x) = function(self, x)``; ``self.features`` is a convolution and its BatchNorm."""

    def __init__(self, function: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.function = function
        self.conv, self.bn = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.head = nn.Conv2d(WIDTH, WIDTH, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network in eval mode and float64, always with the same numbers, and forget what was cached."""
    for cache in CACHES:
        cache.cache_clear()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        network = make()
    return randomise(network, 6).double()


def entering(table: dict[str, Question]) -> Callable[..., Callable[[Any], Any]]:
    """Return a decorator that enters networks into a table."""

    def asks(text: str, *, stops_at: Iterable[tuple[int, ...]] = (), of_data: bool = False) -> Callable[[Any], Any]:
        """Enter a network: a class of modules, or a function of an :class:`Asks` and its input."""

        def enter(network: Any) -> Any:
            make = network if isinstance(network, type) else functools.partial(Asks, network)
            if text in table:
                raise ValueError(f"{text!r} is asked twice")
            table[text] = Question(text, functools.partial(seeded, make), tuple(stops_at), of_data)
            return network

        return enter

    return asks


asks = entering(QUESTIONS)


# --- what is it? -------------------------------------------------------------------------------------------------


@asks("type(x) is torch.Tensor")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if type(x) is torch.Tensor else y


@asks("type(y) is torch.Tensor, of a layer's output")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) + y if type(y) is torch.Tensor else y


@asks("type(y) in (torch.Tensor, nn.Parameter)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if type(y) in (torch.Tensor, nn.Parameter) else y


@asks("a table of handlers by type(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return {torch.Tensor: s.head, list: sum}.get(type(y), torch.neg)(y)


@asks("y.__class__.__name__ == 'Tensor'")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if y.__class__.__name__ == "Tensor" else y


@asks("isinstance(x, torch.Tensor)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else y


@asks("isinstance(x, (list, tuple))")
def _(s: Asks, x: Tensor) -> Tensor:
    xs = x if isinstance(x, (list, tuple)) else [x, x * 2]
    return torch.cat([s.features(x) for x in xs], 1)


@asks("isinstance(y, Mapping)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y["out"] if isinstance(y, Mapping) else s.head(y)


@asks("isinstance(y, Iterable)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if isinstance(y, Iterable) else y


@asks("torch.jit.isinstance(y, torch.Tensor)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) + y if torch.jit.isinstance(y, torch.Tensor) else y


@asks("issubclass(type(y), torch.Tensor)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if issubclass(type(y), torch.Tensor) else y


@asks("torch.is_tensor(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if torch.is_tensor(y) else y


@asks("isinstance(y, nn.Parameter)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if isinstance(y, nn.Parameter) or not isinstance(s.conv.weight, nn.Parameter) else s.head(y)


@asks("hasattr(y, 'missing')")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if hasattr(y, "missing") else s.head(y)


@asks("hasattr(y, 'shape')")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if hasattr(y, "shape") and hasattr(y, "detach") else y


@asks("hasattr(y, 'tensors'), as of a nested input")
def _(s: Asks, x: Tensor) -> Tensor:
    x = x.tensors if hasattr(x, "tensors") else x
    return s.features(x)


@asks("getattr(y, 'mask', None) is None")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if getattr(y, "mask", None) is None else y


@asks("an attribute that a tensor lacks, in a try")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    try:
        return y.logits
    except AttributeError:
        return s.head(y)


@asks("an attribute that the code itself sets on a tensor")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    y.scale = 3.0
    return y * getattr(y, "scale", 1.0)


@asks("callable(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if callable(y) else s.head(y)


@asks("isinstance(self.bn, nn.BatchNorm2d)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if isinstance(s.bn, nn.BatchNorm2d) and type(s.conv) is nn.Conv2d else y


@asks("y is x, after a layer that may be an identity")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    z = y if s.bn.training else y.contiguous()  # the same object: it is contiguous
    return s.head(z) if z is y else z


@asks("id(x) == id(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if id(x) == id(y) or len({id(y), id(y)}) != 1 else s.head(y)


@asks("y in a dict with tensors for keys, hash(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    known = {x: 1.0, y: 2.0}
    return y * known[y] if y in known and hash(y) == hash(y) else -y


@asks("y in a set of what was seen")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    seen = {id(x)}
    for z in (x, y, y):
        if id(z) in seen:
            continue
        seen.add(id(z))
        y = y + s.head(z)
    return y


# --- numbers of its data -----------------------------------------------------------------------------------------


@asks("try: int(y.sum()) except", of_data=True)
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    try:
        repeats = int(y.sum().abs()) % 5 + 1
    except Exception:
        repeats = 1
    return y * repeats


@asks("try: y.mean().item() except RuntimeError", of_data=True)
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    try:
        mean = y.mean().item()
    except RuntimeError:
        mean = 0.0
    return y - mean


@asks("if y.max() > 0", of_data=True)
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if y.max() > 0 else y


# --- sizes -------------------------------------------------------------------------------------------------------


@asks("x.shape[2] < 16: raise", stops_at=[(2, 3, 12, 12)])
def _(s: Asks, x: Tensor) -> Tensor:
    if x.shape[2] < 16:
        raise ValueError("too small")
    return s.features(x)


@asks("x.shape[2] < 16, and another way")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if x.shape[2] < 16 else s.head(y)


@asks("assert on a size, with min(x.shape[2:])", stops_at=[(2, 3, 12, 12)])
def _(s: Asks, x: Tensor) -> Tensor:
    assert min(x.shape[2:]) >= 16, f"{x.shape} is too small"
    return s.features(x)


@asks("x.shape[2] % 8 != 0: raise", stops_at=[(2, 3, 12, 12)])
def _(s: Asks, x: Tensor) -> Tensor:
    if x.shape[2] % 8 or x.shape[3] % 8:
        raise ValueError("sizes must be multiples of 8")
    return s.features(x)


@asks("torch._assert on the number of channels")
def _(s: Asks, x: Tensor) -> Tensor:
    torch._assert(x.shape[1] == s.conv.in_channels, "wrong channels")
    return s.features(x)


@asks("x.size(0) > 2")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if x.size(0) > 2 else y


@asks("x.size(0) == 1, and a squeeze")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x).mean((2, 3))
    return y.squeeze(0) if x.size(0) == 1 else y


@asks("x.ndim == 4")
def _(s: Asks, x: Tensor) -> Tensor:
    x = x if x.ndim == 4 else x.unsqueeze(0)
    return s.features(x)


@asks("y.dim() and len(y.shape)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) * y.dim() if len(y.shape) == 4 else y


@asks("len(x)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * len(x)


@asks("for image in x")
def _(s: Asks, x: Tensor) -> Tensor:
    return torch.stack([s.features(image[None])[0] * (index + 1) for index, image in enumerate(x)])


@asks("next(iter(x))")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) + next(iter(x)).mean()


@asks("isinstance(x.shape[2], int)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if isinstance(x.shape[2], int) else y


@asks("type(x.shape[2]) is int")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if type(x.shape[2]) is int else y


@asks("isinstance(x.shape, torch.Size)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if isinstance(x.shape, torch.Size) and isinstance(x.size(), tuple) else y


@asks("b, c, h, w = x.shape")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    b, c, h, w = y.shape
    return y.view(b, c // 2, 2, h * w).transpose(1, 2).reshape(b, c, h, w)


@asks("*lead, h, w = x.shape")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    *lead, h, w = y.shape
    return y.reshape(*lead, h * w).softmax(-1).reshape(*lead, h, w)


@asks("x.shape == y.shape")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    z = F.interpolate(F.max_pool2d(y, 4), scale_factor=4.0)
    return y + z if y.shape == z.shape and x.shape != y.shape else y


@asks("x.shape[2:] != y.shape[2:], and an interpolate")
def _(s: Asks, x: Tensor) -> Tensor:
    y = F.max_pool2d(s.features(x), 8, ceil_mode=True)
    y = F.interpolate(y, scale_factor=8.0)
    if y.shape[2:] != x.shape[2:]:
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
    return s.head(y)


@asks("x.shape[-1] in (32, 48)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if x.shape[-2] in (32, 48) else y


@asks("x.shape[2] == x.shape[3]")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y + y.transpose(2, 3) if x.shape[2] == x.shape[3] else y


@asks("match x.shape")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    match tuple(x.shape):
        case (_, _, 32, 32):
            return s.head(y)
        case (_, 3, h, w) if h > w:
            return y.flip(2)
    return y


@asks("max(h, w)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    side = max(y.shape[2], y.shape[3])
    return F.pad(y, (0, side - y.shape[3], 0, side - y.shape[2]))


@asks("padding to a multiple of 32")
def _(s: Asks, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    down, right = (32 - h % 32) % 32, (32 - w % 32) % 32
    y = s.features(F.pad(x, (0, right, 0, down)))
    return F.max_pool2d(y, 2)[:, :, : h // 2, : w // 2]


@asks("padding only where a size is odd")
def _(s: Asks, x: Tensor) -> Tensor:
    y = F.max_pool2d(s.features(x), 4)
    if y.shape[2] % 2 == 1 or y.shape[3] % 2 == 1:
        y = F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2))
    return F.pixel_unshuffle(y, 2)


@asks("h // 2 in slices")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y[:, :, : x.shape[2] // 2] - y[:, :, x.shape[2] // 2 :].flip(2)


@asks("int(h / 2)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x)[:, :, : int(x.shape[2] / 2)]


@asks("round(h * 0.3), math.ceil and math.floor")
def _(s: Asks, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    return s.features(x)[:, :, round(h * 0.3) : math.ceil(h * 0.9), math.floor(w / 5) :]


@asks("divmod(h, 5), h & 1, -h, abs(h - w)")
def _(s: Asks, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    whole, rest = divmod(h, 5)
    return s.features(x) * (whole + 1) - (rest + (h & 1) + abs(h - w) - -h)


@asks("math.sqrt(x.shape[1])")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y / math.sqrt(y.shape[1])


@asks("math.sqrt(h * w), as of a row of tokens")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)[:, :, : x.shape[3], : x.shape[2]].flatten(2)
    side = int(math.sqrt(y.shape[2]))
    return y.view(y.shape[0], WIDTH, side, side) / math.sqrt(side)


@asks("h ** -0.5 and math.log2(h)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * x.shape[2] ** -0.5 + math.log2(x.shape[3])


@asks("sum(x.shape[2:]), sorted, math.prod")
def _(s: Asks, x: Tensor) -> Tensor:
    low, high = sorted(x.shape[2:])
    return s.features(x) * sum(x.shape[2:]) / math.prod(x.shape[2:]) + (high - low)


@asks("bisect in a list of sizes")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * (1 + bisect.bisect([16, 40, 64], x.shape[2]))


@asks("range(h // 4)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return torch.stack([y[:, :, 4 * row].mean(-1) * (row + 1) for row in range(y.shape[2] // 4)], 1)


@asks("[0] * h, a list as long as a size")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    weights = [1.0] * x.shape[0]
    weights[0] = 2.0
    return y * torch.tensor(weights, dtype=y.dtype).view(-1, 1, 1, 1)


@asks("while h > 4: h //= 2")
def _(s: Asks, x: Tensor) -> Tensor:
    y, h = s.features(x), x.shape[2]
    while h > 4:
        y, h = y * 0.5 + s.head(y), h // 2
    return y


@asks("a dict keyed by shape")
def _(s: Asks, x: Tensor) -> Tensor:
    scale = {(32, 32): 2.0, (48, 40): 3.0}.get(tuple(x.shape[2:]), 1.0)
    return s.features(x) * scale


@asks("x.shape in a dict of torch.Size")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    known = {torch.Size(EXAMPLE): 5.0}
    return y * known[x.shape] if x.shape in known else y


@asks("f'{h}x{w}' as a key")
def _(s: Asks, x: Tensor) -> Tensor:
    scale = {"32x32": 2.0, "48x40": 3.0}
    return s.features(x) * scale.get(f"{x.shape[2]}x{x.shape[3]}", 1.0)


@asks("str(h), and its number of digits")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * len(str(x.shape[0] * 6)) + int(str(x.shape[2]))


@asks("a size as an index into a list")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * [1.0, 2.0, 3.0, 4.0][x.shape[0]]


@functools.lru_cache
def positions(h: int, w: int, like: torch.dtype) -> Tensor:
    rows, columns = torch.arange(h, dtype=like), torch.arange(w, dtype=like)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


@asks("lru_cache keyed by (h, w)")
def _(s: Asks, x: Tensor) -> Tensor:
    grid = positions(x.shape[2], x.shape[3], x.dtype)
    return s.features(x) + grid.mean(0)


@functools.lru_cache(maxsize=8)
def pattern(shape: tuple[int, ...]) -> str:
    return "square" if shape[-1] == shape[-2] else "wide"


@asks("a cache tried by hash, and by hand on TypeError, as einops does")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    try:
        kind = pattern(tuple(x.shape))
    except TypeError:  # sizes that have no hash
        kind = pattern.__wrapped__(tuple(x.shape))
    return s.head(y) if kind == "square" else y


@asks("a local dict with a size as key")
def _(s: Asks, x: Tensor) -> Tensor:
    levels: dict[int, list[Tensor]] = defaultdict(list)
    y = s.features(x)
    for z in (y, F.max_pool2d(y, 2), y.abs()):
        levels[z.shape[2]].append(z)
    return torch.cat([sum(levels[size]) for size in sorted(levels)][-1:], 1) * len(levels)


CACHES = [positions, pattern]


# --- tensors made from sizes -------------------------------------------------------------------------------------


@asks("torch.arange(h), positions added")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    rows = torch.arange(y.shape[2], dtype=y.dtype, device=y.device)
    return y + rows[:, None]


@asks("torch.linspace(-1, 1, w), a grid to sample at")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    b, _, h, w = y.shape
    rows, columns = torch.linspace(-1, 1, h, dtype=y.dtype), torch.linspace(-1, 1, w, dtype=y.dtype)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flip(-1).expand(b, h, w, 2)
    return F.grid_sample(y, grid * 0.9, align_corners=False)


@asks("x.new_zeros(x.shape) and a slice assigned to")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    shifted = y.new_zeros(y.shape)
    shifted[:, :2, 1:] = y[:, :2, :-1]
    shifted[:, 2:] = y[:, 2:]
    return shifted


@asks("x += y in place, on a view")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    left = y[..., : y.shape[3] // 2]
    left += 1
    left *= 2
    return s.head(y)


@asks("in place on the output of the BatchNorm, seen by another name")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    before = y
    y += x.mean(1, keepdim=True)
    y.clamp_(min=0)
    return before - s.head(y)


@asks("torch.full((1,), h)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * torch.full((1,), float(x.shape[2]), dtype=x.dtype)


@asks("torch.tensor([h, w])")
def _(s: Asks, x: Tensor) -> Tensor:
    sizes = torch.tensor([x.shape[2], x.shape[3]], dtype=x.dtype)
    return s.features(x) / sizes.prod()


@asks("torch.tensor(x.shape).numpy()")
def _(s: Asks, x: Tensor) -> Tensor:
    sizes = torch.tensor(x.shape[2:]).numpy()
    return s.features(x)[:, :, : int(sizes.min() // 2)]


@asks("np.ceil, np.prod and np.array of sizes")
def _(s: Asks, x: Tensor) -> Tensor:
    h, w = np.array(x.shape[2:])
    return s.features(x)[:, :, : int(np.ceil(h / 3)), : int(w) // 2] / float(np.prod(x.shape[1:]))


@asks("np.prod(x.shape[1:]).item() and other methods of numpy's numbers")
def _(s: Asks, x: Tensor) -> Tensor:
    count, side = np.prod(x.shape[1:]).item(), np.maximum(x.shape[2], 20)
    return s.features(x) * count / side.astype(float)


@asks("np.linspace and np.zeros of a size")
def _(s: Asks, x: Tensor) -> Tensor:
    rows = np.zeros(x.shape[2]) + np.linspace(0, 1, x.shape[2])
    return s.features(x) + torch.from_numpy(rows)[:, None]


@asks("a list of constants as a tensor, and x.tolist()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    for factor in torch.tensor([2, 3]).tolist():
        y = y * factor + s.head(y)
    return y


@asks("a constant tensor asked for a number")
def _(s: Asks, x: Tensor) -> Tensor:
    rates = torch.linspace(0, 0.1, 4)
    return s.features(x) * (2.0 if rates[-1].item() > 0.05 else 1.0)


@asks("torch.zeros(()) as the start of a sum")
def _(s: Asks, x: Tensor) -> Tensor:
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for part in s.features(x).chunk(3, 1):
        total = total + part
    return total


@asks("y.new_ones(x.shape[:1] + (6, 1, 1))")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y - y.new_ones(x.shape[:1] + (WIDTH, 1, 1)).cumsum(0)  # noqa: RUF005 sizes are added on purpose


@asks("a mask from a comparison with arange(len(x))")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    first = torch.arange(len(x), device=x.device) < 1
    return torch.where(first[:, None, None, None], y, -y)


# --- other questions about a tensor ------------------------------------------------------------------------------


@asks("bool(x.numel())")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) if bool(x.numel()) else x


@asks("x.shape.numel()")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * x.shape.numel() + torch.Size(x.shape[2:]).numel()


@asks("x.nelement() * x.element_size()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if x.nelement() * x.element_size() >= 2 * 3 * 32 * 32 * 8 else y


@asks("x.is_contiguous()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    z = y.transpose(2, 3)
    return s.head(y) if x.is_contiguous() and not z.is_contiguous() else y


@asks("x.is_contiguous(memory_format=torch.channels_last)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if x.is_contiguous(memory_format=torch.channels_last) else s.head(y)


@asks("x.stride()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y.as_strided(y.shape, y.stride()) + x.stride()[2] - x.stride(-1)


@asks("try: y.view(...) except RuntimeError")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x).permute(0, 2, 3, 1)
    try:
        return y.view(x.shape[0], -1)
    except RuntimeError:
        return -y.reshape(x.shape[0], -1)


@asks("try: a cat of sizes that do not fit, except RuntimeError")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    z = F.max_pool2d(y, 2)
    try:
        return torch.cat([y, z], 1)
    except RuntimeError:
        return torch.cat([y, F.interpolate(z, size=y.shape[2:])], 1)


@asks("try: layer(y, mask=...) except TypeError")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    for layer in (s.head, torch.nn.functional.relu):
        try:
            y = layer(y, lengths=None)
        except TypeError:  # noqa: PERF203 as real code does
            y = layer(y)
    return y


@asks("x.dtype == torch.float64")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if x.dtype == torch.float64 and y.dtype in (torch.float64,) else y


@asks("a dict keyed by dtype, torch.finfo(x.dtype)")
def _(s: Asks, x: Tensor) -> Tensor:
    scale = {torch.float32: 1.0, torch.float64: 2.0}[x.dtype]
    return s.features(x) * scale + (1 if torch.finfo(x.dtype).bits == 64 else 0)


@asks("x.is_floating_point()")
def _(s: Asks, x: Tensor) -> Tensor:
    x = x if x.is_floating_point() else x / 255
    return s.features(x) if torch.is_floating_point(x) and not x.is_complex() else x


@asks("x.device.type == 'cpu'")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if x.device.type == "cpu" else y


@asks("x.device == self.conv.weight.device")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if y.device == s.conv.weight.device == torch.device("cpu") else y


@asks("str(x.device), f'{x.dtype}'")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if str(x.device).startswith("cpu") and f"{x.dtype}".endswith("64") else y


@asks("x.is_cuda, x.is_meta, x.is_mps, x.is_sparse")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if x.is_cuda or x.is_meta or x.is_mps or x.is_sparse or x.is_quantized else s.head(y)


@asks("x.get_device(), x.layout")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(y) if x.get_device() == -1 and x.layout == torch.strided else y


@asks("x.requires_grad, y.grad_fn")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if x.requires_grad or y.grad_fn is not None else s.head(y)


@asks("torch.is_grad_enabled()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if torch.is_grad_enabled() and y.requires_grad else s.head(y)


@asks("self.training")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return (s.head(y), y) if s.training else s.head(y)


@asks("torch.jit.is_scripting(), torch.jit.is_tracing()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if torch.jit.is_scripting() or torch.jit.is_tracing() else s.head(y)


@asks("torch.compiler.is_compiling()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if torch.compiler.is_compiling() or torch.compiler.is_exporting() else s.head(y)


@asks("torch.onnx.is_in_onnx_export()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if torch.onnx.is_in_onnx_export() else s.head(y)


@asks("torch.fx is tracing")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if torch.fx._symbolic_trace.is_fx_tracing() or isinstance(x, torch.fx.Proxy) else s.head(y)


@asks("next(self.parameters()).dtype")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x.to(next(s.parameters()).dtype))
    return s.head(y) if next(iter(s.parameters())).shape[0] == WIDTH else y


@asks("self.conv.weight.shape, and its numbers in a sum")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * s.conv.weight.shape[1] + s.head.weight.sum() + s.bn.running_mean.mean()


# --- copies and conversions --------------------------------------------------------------------------------------


@asks("copy.deepcopy(x)")
def _(s: Asks, x: Tensor) -> Tensor:
    z = copy.deepcopy(x)
    z.mul_(2)
    return s.features(x) + z.mean(1, keepdim=True)


@asks("copy.copy of a list of values")
def _(s: Asks, x: Tensor) -> Tensor:
    ys = [s.features(x)]
    more = copy.copy(ys)
    more.append(s.head(more[-1]))
    return torch.cat(ys + more, 1)


@asks("torch.as_tensor(x)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(torch.as_tensor(x))
    return s.head(torch.as_tensor(y, dtype=x.dtype)) + y


@asks("x.data")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x.data)
    return s.head(y.data) + y.detach()


@asks("x.T, x.mT, x.H and other attributes that are tensors")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y.mT + s.head(y.mH) + y[0, 0].T.real.mean()


@asks("with torch.no_grad()")
def _(s: Asks, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = s.features(x)
        weight = y.mean((2, 3), keepdim=True).sigmoid()
    return s.head(y * weight)


@asks("@torch.no_grad() on a method")
class NoGradMethod(Asks):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@asks("torch.autocast(enabled=False)")
def _(s: Asks, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = s.features(x.double())
    return s.head(y) if not torch.is_autocast_enabled("cpu") else y


@asks("torch.vmap")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return torch.vmap(lambda image: image / (image.abs().sum() + 1))(y)


@asks("a torch.jit.script function")
def _(s: Asks, x: Tensor) -> Tensor:
    return _swish()(s.features(x)) + 1


@functools.cache
def _swish() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(swish)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@asks("torch.autograd.Function.apply")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(Doubling.apply(s.features(x)))


@asks("torch.utils.checkpoint.checkpoint")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.utils.checkpoint.checkpoint(s.features, x, use_reentrant=False))


@asks("functools.partial and operator functions")
def _(s: Asks, x: Tensor) -> Tensor:
    pool = functools.partial(F.max_pool2d, kernel_size=2)
    ys = list(map(pool, [s.features(x), x]))
    return operator.mul(ys[0], functools.reduce(operator.add, ys[1].unbind(1))[:, None])


@asks("itertools and enumerate over chunks")
def _(s: Asks, x: Tensor) -> Tensor:
    parts = s.features(x).chunk(3, dim=1)
    pairs = itertools.chain(itertools.pairwise(parts), [(parts[-1], parts[0])])
    return torch.cat([a - i * b for i, (a, b) in enumerate(pairs)], 1)


@asks("a generator, and next() with a default")
def _(s: Asks, x: Tensor) -> Tensor:
    def levels() -> Iterator[Tensor]:
        y = s.features(x)
        while y.shape[-1] > 4:
            yield y
            y = F.avg_pool2d(y, 2)

    some = levels()
    return next(some) + F.interpolate(next(some), size=x.shape[2:]) * len(list(some))


@asks("warnings.warn where a size is unusual")
def _(s: Asks, x: Tensor) -> Tensor:
    if x.shape[2] != 32:
        warnings.warn(f"{x.shape[2]} is no usual height", stacklevel=1)
    return s.features(x)


@asks("try, finally and a context manager of its own")
def _(s: Asks, x: Tensor) -> Tensor:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ValueError))
        y = s.features(x)
        if x.shape[0] == 3:
            raise ValueError
        y = y + s.head(y)
    return y * 2


# --- arguments, state, outputs -----------------------------------------------------------------------------------


@asks("forward(self, x, *args, **kwargs)")
class TakesAnything(Asks):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.features(x)
        if isinstance(x, dict) or args or kwargs.get("augment"):
            return y
        return self.predict(y, *args, **kwargs)

    def predict(self, y: Tensor, scale: float = 2.0, **_: Any) -> Tensor:
        return self.head(y) * scale


@asks("forward(self, *inputs) and len(inputs)")
class TakesSeveral(Asks):
    def forward(self, *inputs: Tensor) -> Tensor:
        if len(inputs) == 1:
            return self.head(self.features(inputs[0]))
        return torch.cat([self.features(x) for x in inputs])


@asks("arguments with defaults, mask is None")
class HasDefaults(Asks):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 0.5, names: tuple[str, ...] = ()) -> Any:
        y = self.features(x) * scale
        y = y if mask is None else y * mask
        return y if names else self.head(y)


@asks("anchors cached on the module while the shape stays the same, as YOLO does")
class CachesAnchors(Asks):
    shape: Any = None
    anchors = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if self.shape != y.shape:
            rows, columns = torch.arange(y.shape[2]) + 0.5, torch.arange(y.shape[3]) + 0.5
            self.anchors = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).to(y)
            self.shape = y.shape
        return y + self.anchors.sum(0)


@asks("a grid cached in a dict on the module, by size")
class CachesGrids(Asks):
    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = (x.shape[2], x.shape[3])
        if key not in self.grids:
            self.grids[key] = torch.arange(x.shape[2] * x.shape[3], dtype=x.dtype).view(key)
        return self.features(x) + self.grids[key]


@asks("a buffer as large as the largest input, sliced")
class SlicesItsBuffer(Asks):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(64.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if h > self.places.shape[0]:
            raise ValueError("too large")
        return self.features(x) + self.places[:h, None] - self.places[:w]


@asks("a position embedding, interpolated where the size is another")
class InterpolatesItsPositions(Asks):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, WIDTH, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.features(x), 4)
        places = self.places
        if places.shape[-2:] != y.shape[-2:]:
            places = F.interpolate(places, size=y.shape[-2:], mode="bilinear", align_corners=False)
        return y + places


@asks("the last features kept on the module")
class KeepsFeatures(Asks):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = {"features": self.features(x)}
        y = self.head(self.kept["features"])
        return y + self.kept.pop("features")


@asks("a counter on the module")
class CountsCalls(Asks):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.features(x)
        return self.head(y) if self.calls >= 1 else y


@asks("nn.ModuleList, nn.ModuleDict and getattr(self, name)")
class NamesItsParts(Asks):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({f"level{i}": nn.Conv2d(WIDTH, WIDTH, 1) for i in range(2)})
        self.gate_level1 = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        for name, part in self.parts.items():
            gate = getattr(self, f"gate_{name}", None)
            y = part(y) if gate is None else gate(part(y)) * y
        return y


@asks("a list and a deque of values as state")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    state: deque[Tensor] = deque([y], maxlen=2)
    for _ in range(3):
        state.append(s.head(state[-1]) + state[0])
    return torch.cat(list(state), 1)


class Pair(NamedTuple):
    out: Tensor
    features: Tensor


@dataclass
class Result:
    out: Tensor
    size: int = 0
    features: Tensor | None = None


@asks("an output that is a NamedTuple")
def _(s: Asks, x: Tensor) -> Pair:
    y = s.features(x)
    return Pair(features=y, out=s.head(y))


@asks("an output that is a dataclass")
def _(s: Asks, x: Tensor) -> Result:
    y = s.features(x)
    return Result(s.head(y), size=x.shape[2], features=y)


@asks("an output that is a dict with a list in it")
def _(s: Asks, x: Tensor) -> dict[str, Any]:
    y = s.features(x)
    return {"out": s.head(y), "levels": [y, F.max_pool2d(y, 2)], "size": tuple(x.shape[2:]), "none": None}


@asks("an output that is an OrderedDict")
def _(s: Asks, x: Tensor) -> OrderedDict[str, Tensor]:
    result = OrderedDict()
    result["out"] = s.head(s.features(x))
    result["aux"] = result["out"].mean((2, 3))
    return result


@asks("an output with the input and a size in it")
def _(s: Asks, x: Tensor) -> tuple[Any, ...]:
    return s.features(x), x, x.shape[0], float(x.shape[3]) / 2


@asks("a dataclass inside of forward, and isinstance of it")
def _(s: Asks, x: Tensor) -> Tensor:
    state = Result(s.features(x), size=x.shape[2])
    y = state.out if isinstance(state, Tensor) else s.head(state.out)
    return y * state.size if is_dataclass(state) else y


# --- the judge ---------------------------------------------------------------------------------------------------


def image(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(expected: Any, got: Any, where: str = "the output", tolerance: float = TOLERANCE) -> str | None:
    """Say in what one output differs from another, or return None."""
    if isinstance(expected, Tensor):
        if not isinstance(got, Tensor):
            return f"{where} is a {type(got).__name__}"
        if (got.shape, got.dtype, got.device) != (expected.shape, expected.dtype, expected.device):
            return f"{where} is {tuple(got.shape)} of {got.dtype}, not {tuple(expected.shape)} of {expected.dtype}"
        if not expected.numel():
            return None
        a, b = expected.detach().double(), got.detach().double()
        error, peak = float((a - b).abs().max()), float(a.abs().max())
        return None if error <= tolerance * peak else f"{where} is off by {error / (peak or 1):.1e} of its peak"
    if type(expected) is not type(got):
        return f"{where} is a {type(got).__name__}, not a {type(expected).__name__}"
    if is_dataclass(expected):
        names = [field.name for field in fields(expected)]
        parts = [(f"{where}.{name}", getattr(expected, name), getattr(got, name)) for name in names]
    elif isinstance(expected, Mapping):
        if list(expected) != list(got):
            return f"{where} has the keys {list(got)}"
        parts = [(f"{where}[{key!r}]", value, got[key]) for key, value in expected.items()]
    elif isinstance(expected, (tuple, list)):
        if len(expected) != len(got):
            return f"{where} has {len(got)} parts, not {len(expected)}"
        parts = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(expected, got, strict=True))]
    else:
        return None if expected == got else f"{where} is {got!r}, not {expected!r}"
    return next(filter(None, (difference(a, b, name, tolerance) for name, a, b in parts)), None)


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def compare(model: nn.Module, folded: nn.Module, x: Tensor, *, stops: bool = False) -> Outcome:
    """Compare a folded module with its model on one input.

    Args:
        model: the reference.
        folded: what the fold made of it.
        x: given to each in a copy of its own.
        stops: the model is known not to take it.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = model(x.clone())
        except Exception as error:
            if not stops:
                return Outcome(CRASH, f"the model itself does not run after the fold: {described(error)}")
            expected = None
        else:
            if stops:
                raise AssertionError("a network takes a shape that it is said to stop at")
        try:
            got = folded(x.clone())
        except Exception as error:
            if stops:
                return Outcome(RIGHT)
            return Outcome(REFUSED if isinstance(error, OtherInputError) else CRASH, described(error))
    if stops:
        return Outcome(WRONG, "it answers where the model stops")
    differs = difference(expected, got)
    return Outcome(WRONG, differs) if differs else Outcome(RIGHT)


def judge(question: Question, mode: str, shapes: Sequence[tuple[int, ...]] = SHAPES) -> dict[tuple[int, ...], Outcome]:
    """Fold a network, with example inputs or without, and compare it with the model at every shape.

    Args:
        question: the network.
        mode: a key of ``MODES``.
        shapes: of the inputs to compare on.
    """
    given, options = MODES[mode]
    reference, model = question.build(), question.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folded = bnfold.fold(model, image(EXAMPLE) if given else None, **options).module
        except bnfold.BnfoldError as error:
            return dict.fromkeys(shapes, Outcome(REFUSED, f"fold: {described(error)}"))
        except Exception as error:
            return dict.fromkeys(shapes, Outcome(CRASH, f"fold: {described(error)}"))
    outcomes = {}
    for number, shape in enumerate(shapes):
        x, stops = image(shape, 20 + number), shape in question.stops_at
        outcomes[shape] = compare(reference, folded, x, stops=stops)
        if outcomes[shape].kind == RIGHT:  # and the model that was folded is still the same function
            unchanged = compare(reference, model, x, stops=stops)
            if unchanged.kind != RIGHT:
                outcomes[shape] = Outcome(WRONG, f"the fold changed the model: {unchanged.detail}")
    return outcomes


# --- one process for many, and another where it dies -------------------------------------------------------------


def survive(module: str, names: Sequence[str], *, limit: float = 120.0) -> dict[str, Any]:
    """Run ``python -m module --work`` on names, and start it anew behind each one that ends it or takes too long.

    The worker reads names as JSON lines, and answers each with one line, ``[name, result]``; see :func:`work`.

    Returns:
        By name what the worker said, or a sentence on how its process ended.
    """
    results: dict[str, Any] = {}
    command = [sys.executable, "-W", "ignore", "-m", module, "--work"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    while missing := [name for name in names if name not in results]:
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            process.stdin.write("".join(json.dumps(name) + "\n" for name in missing))
            process.stdin.close()
            clock = _Clock(process, limit)
            for line in process.stdout:
                if line.startswith(ANSWER):
                    name, result = json.loads(line.removeprefix(ANSWER))
                    results[name] = result
                    clock.wind()
            code = process.wait()
        left = next((name for name in missing if name not in results), None)
        if left is not None:
            ended = f"took more than {limit:.0f} s" if clock.rang else f"ended the process (exit code {code})"
            results[left] = f"{left}: {ended}"
    return results


class _Clock:
    """Ends a process that has not answered for a time."""

    def __init__(self, process: subprocess.Popen[str], limit: float) -> None:
        self.process, self.limit, self.rang = process, limit, False
        self.wind()
        threading.Thread(target=self._watch, daemon=True).start()

    def wind(self) -> None:
        self.last = time.monotonic()

    def _watch(self) -> None:
        while self.process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - self.last > self.limit:
                self.rang = True
                self.process.kill()
                return


def work(answer: Callable[[str], Any]) -> None:
    """Be a worker of :func:`survive`: answer each name that stands on a line of the input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        name = json.loads(line)
        print(ANSWER + json.dumps([name, answer(name)]), flush=True)


LETTERS = {RIGHT: ".", REFUSED: "r", WRONG: "W", CRASH: "C"}


def _answer(job: str) -> list[list[str]]:
    mode, _, text = job.partition(": ")
    return [[outcome.kind, outcome.detail] for outcome in judge(QUESTIONS[text], mode).values()]


def outcomes_of_all(names: Iterable[str] = ()) -> dict[str, dict[str, list[Outcome]]]:
    """Judge networks in processes of their own: by question, by mode, the outcome at each of ``SHAPES``."""
    chosen = list(names) or list(QUESTIONS)
    jobs = [f"{mode}: {text}" for text in chosen for mode in MODES]
    found = survive("tests.graph.questions", jobs)
    table: dict[str, dict[str, list[Outcome]]] = {text: {} for text in chosen}
    for job, result in found.items():
        mode, _, text = job.partition(": ")
        dead = isinstance(result, str)
        table[text][mode] = [Outcome(CRASH, result)] * len(SHAPES) if dead else [Outcome(*pair) for pair in result]
    return table


def main() -> None:
    """Print the table of outcomes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help="questions; all of them by default")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-v", "--verbose", action="store_true", help="print why, for each that is not right")
    options = parser.parse_args()
    if options.work:
        work(_answer)
        return
    table = outcomes_of_all(options.names)
    print(f"{'. right, r refused, W wrong, C crash':72} " + "".join(f"{mode:10}" for mode in MODES))
    for text, row in table.items():
        letters = ["".join(LETTERS[outcome.kind] for outcome in row[mode]) for mode in MODES]
        print(f"{text[:71]:72} " + "".join(f"{found:10}" for found in letters))
        if options.verbose:
            for mode in MODES:
                for detail in dict.fromkeys(outcome.detail for outcome in row[mode] if outcome.detail):
                    print(f"    {mode}: {detail}")
    print(f"\n{len(table)} questions at {len(SHAPES)} shapes: {', '.join('x'.join(map(str, s)) for s in SHAPES)}")
    for mode in MODES:
        worst = Counter(_worst(row[mode]) for row in table.values())
        told = ", ".join(f"{worst[kind]} {word}" for kind, word in _WORST.items())
        print(f"{mode:9} {told}")


_WORST = {
    CRASH: "crash",
    WRONG: "wrong",
    "fold": "not folded",
    REFUSED: "refused at another size",
    RIGHT: "right at every shape",
}


def _worst(outcomes: Sequence[Outcome]) -> str:
    if outcomes[0].detail.startswith("fold:") and outcomes[0].kind == REFUSED:
        return "fold"
    return next(kind for kind in (CRASH, WRONG, REFUSED, RIGHT) if any(o.kind == kind for o in outcomes))


if __name__ == "__main__":
    main()
