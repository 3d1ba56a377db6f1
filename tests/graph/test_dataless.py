"""What is known of a call without torch's own kernel is what that kernel makes: shape, type, layout."""

from __future__ import annotations

import itertools

import torch
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
