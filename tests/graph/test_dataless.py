"""What is known of a call without torch's own kernel is what that kernel makes: shape, type, layout."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from bnfold.graph.dataless import Dataless


def _same(known: torch.Tensor, real: torch.Tensor) -> None:
    assert known.is_meta
    assert (known.size(), known.stride(), known.dtype) == (real.size(), real.stride(), real.dtype)


def test_a_convolution_is_known_as_it_comes_out() -> None:
    """Shape and strides, for strides, paddings, dilations and groups of every kind, in one to three dimensions."""
    known = 0
    classes = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    settings = itertools.product((1, 2, 3), (1, 3), (1, 2), (0, 1, 2), (1, 2), (1, 2))
    for rank, kernel, stride, padding, dilation, groups in settings:
        layer = classes[rank](4, 6, kernel, stride, padding, dilation, groups).eval()
        x = torch.randn(2, 4, *(7, 9, 8)[:rank])
        found = Dataless().layer(layer, (x.to("meta"),), {})
        _same(found, layer(x))
        known += 1
    assert known == 144


def test_a_convolution_that_is_not_as_most_are_is_left_to_torch() -> None:
    """Inputs without a batch or in another order, other paddings, and what does not fit."""
    x = torch.empty(2, 4, 8, 8, device="meta")
    conv = nn.Conv2d(4, 6, 3)
    last = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    left = [
        (conv, torch.empty(4, 8, 8, device="meta")),
        (conv, x.to(memory_format=torch.channels_last)),
        (conv, x.transpose(2, 3)),
        (conv, torch.empty(2, 3, 8, 8, device="meta")),
        (conv, torch.empty(2, 4, 2, 2, device="meta")),
        (conv, torch.empty(0, 4, 8, 8, device="meta")),
        (conv, x.double()),
        (last, x),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), x),
        (nn.Conv2d(4, 6, 3, padding="same"), x),
        (nn.Conv2d(4, 6, 1), torch.empty(2, 4, 1, 1, device="meta")),
    ]
    for layer, value in left:
        assert Dataless().layer(layer, (value,), {}) is None, layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Dataless().layer(conv, (x,), {}) is None


def test_an_average_over_cells_is_known_as_it_comes_out() -> None:
    """In one to three dimensions, to one cell and to several, as a layer and as a function."""
    classes = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
    functions = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    for rank, dtype in itertools.product(classes, (torch.float32, torch.float64)):
        x = torch.randn(2, 4, *(7, 9, 8)[:rank], dtype=dtype)
        for to in (1, 3, 7, (1, 5, 2)[:rank], (None, 2, 9)[:rank] if rank > 1 else 2):
            layer = classes[rank](to)
            _same(Dataless().layer(layer, (x.to("meta"),), {}), layer(x))
            _same(Dataless().call(functions[rank], (x.to("meta"), to), {}), functions[rank](x, to))


def test_an_average_that_is_not_as_most_are_is_left_to_torch() -> None:
    x = torch.empty(2, 4, 8, 8, device="meta")
    odd = [x[0], x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:0], x.int(), x[:, :, :1, :1]]
    for value in odd:
        assert Dataless().layer(nn.AdaptiveAvgPool2d(1), (value,), {}) is None
    assert Dataless().layer(nn.AdaptiveAvgPool2d((2, 0)), (x,), {}) is None


def test_a_concatenation_is_known_as_it_comes_out() -> None:
    """Along every dimension; parts in another order go to torch, whose strides are then those of the parts."""
    a, b = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    for dim in range(-4, 4):
        _same(Dataless().call(torch.cat, ([a.to("meta"), b.to("meta")], dim), {}), torch.cat([a, b], dim))
    _same(Dataless().call(torch.cat, ((a.to("meta"), b.to("meta")),), {"dim": 1}), torch.cat([a, b], 1))
    _same(Dataless().call(torch.cat, ([a.to("meta"), b.to("meta")],), {"axis": 1}), torch.cat([a, b], axis=1))
    last = [part.to(memory_format=torch.channels_last) for part in (a, b)]
    _same(Dataless().call(torch.cat, ([part.to("meta") for part in last], 1), {}), torch.cat(last, 1))
    mixed = [a, b.double()]
    _same(Dataless().call(torch.cat, ([part.to("meta") for part in mixed], 1), {}), torch.cat(mixed, 1))
