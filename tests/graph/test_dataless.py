"""What is known of a call without torch's own kernel is what that kernel makes: shape, type, layout."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnfold.graph.dataless import Dataless, DatalessMode
from bnfold.graph.known_results import CALLS

ROOT = Path(__file__).resolve().parents[2]


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
        (conv, torch.empty(0, 4, 8, 8, device="meta")),
        (conv, x.double()),
        (last, x),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), x),
        (nn.Conv2d(4, 6, 3, padding="same"), x),
        (nn.Conv2d(1, 6, 3), torch.empty(2, 1, 8, 8, device="meta").to(memory_format=torch.channels_last)),
    ]
    for layer, value in left:
        assert Dataless().layer(layer, (value,), {}) is None, layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Dataless().layer(conv, (x,), {}) is None


def test_a_convolution_of_one_channel_or_one_cell_is_known_as_it_comes_out() -> None:
    """What is in both orders at once is in the order that its strides say."""
    for layer, shape in (
        (nn.Conv2d(1, 6, 3, padding=1), (2, 1, 9, 8)),
        (nn.Conv2d(4, 6, 1), (2, 4, 1, 1)),
        (nn.Conv2d(1, 1, 1), (1, 1, 1, 1)),
        (nn.Conv2d(4, 1, 1), (2, 4, 5, 1)),
        (nn.Conv3d(1, 2, 1), (1, 1, 3, 4, 5)),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)),
    ):
        x = torch.randn(shape)
        _same(Dataless().layer(layer, (x.to("meta"),), {}), layer(x))


def test_a_convolution_by_its_function_is_known_as_it_comes_out() -> None:
    x = torch.randn(2, 4, 9, 8)
    weight, bias = torch.randn(6, 2, 3, 3), torch.randn(6)
    for settings in (((2, 1), (1, 1), (1, 2), 2), (2, 1, 1, 2)):
        args = (x.to("meta"), weight, bias, *settings)
        known = CALLS[F.conv2d](args, {})
        assert known is not None
        _same(known, F.conv2d(x, weight, bias, *settings))
    assert CALLS[F.conv2d]((x.to("meta"), weight, bias, 1, "same", 1, 2), {}) is None
    assert CALLS[F.conv2d]((x.to("meta"), weight), {"groups": 2}) is None


def test_what_fits_no_layer_raises_as_it_does_in_torch() -> None:
    """A search asks why, and a model may catch it."""
    x = torch.empty(2, 4, 2, 2)
    for layer in (nn.Conv2d(3, 6, 1), nn.Conv2d(4, 6, 3), nn.MaxPool2d(3), nn.AvgPool2d(4)):
        with pytest.raises(RuntimeError):
            layer(x)
        assert Dataless().layer(layer, (x.to("meta"),), {}) is None  # its own call raises, which a search watches
        with pytest.raises(RuntimeError), DatalessMode(Dataless()):
            layer(x.to("meta"))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_pool_is_known_as_it_comes_out(rank: int) -> None:
    """Windows, strides, paddings and dilations of every kind, rounded up and down, as layers and as functions."""
    x = torch.randn(2, 4, *(7, 10, 8)[:rank])
    largest, average = (getattr(nn, f"{kind}Pool{rank}d") for kind in ("Max", "Avg"))
    known = 0
    for kernel, stride, padding, up in itertools.product((1, 2, 3), (None, 1, 2, 3), (0, 1), (False, True)):
        layers = [average(kernel, stride, padding, ceil_mode=up)]
        layers += [largest(kernel, stride, padding, dilation, ceil_mode=up) for dilation in (1, 2)]
        for layer in layers:
            try:
                real = layer(x)
            except RuntimeError:
                continue  # more padding than half a window, say
            _same(Dataless().layer(layer, (x.to("meta"),), {}), real)
            known += 1
    assert known > 100
    function = getattr(F, f"max_pool{rank}d")
    settings = {"stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True, "return_indices": False}
    result = CALLS[function]((x.to("meta"), 3), settings)
    assert result is not None
    _same(result, function(x, 3, **settings))
    function = getattr(F, f"avg_pool{rank}d")
    for more in ((), (2,), (2, 1), (2, 1, True), (2, 1, True, False)):
        result = CALLS[function]((x.to("meta"), 3, *more), {})
        assert result is not None
        _same(result, function(x, 3, *more))


def test_a_pool_that_is_not_as_most_are_is_left_to_torch() -> None:
    x = torch.empty(2, 4, 8, 8, device="meta")
    for value in (x[0], x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:0], x.int()):
        assert Dataless().layer(nn.MaxPool2d(2), (value,), {}) is None
    for layer in (
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(2, padding=2),
        nn.AvgPool2d(2, divisor_override=0),
    ):
        assert Dataless().layer(layer, (x,), {}) is None
    assert CALLS[F.max_pool2d]((x, 2), {"return_indices": True}) is None


def test_a_mean_is_known_as_it_comes_out() -> None:
    """Over every choice of dimensions; what is not as it mostly is goes to torch."""
    x = torch.randn(2, 3, 4, 5)
    for dim in ((2, 3), (-1, -2), [0], 1, -3, (0, 1, 2, 3)):
        for keep in (False, True):
            known = CALLS[torch.mean]((x.to("meta"), dim), {"keepdim": keep})
            assert known is not None
            _same(known, x.mean(dim, keepdim=keep))
            assert CALLS[torch.Tensor.mean]((x.to("meta"), dim, keep), {}).shape == known.shape
    meta = x.to("meta")
    odd: list[tuple[tuple[object, ...], dict[str, object]]] = [
        ((meta,), {}),
        ((meta, 4), {}),
        ((meta, (1, -3)), {}),
        ((meta, 1), {"dtype": torch.float64}),
        ((meta.int(), 1), {}),
        ((meta.transpose(1, 2), 1), {}),
    ]
    for args, kwargs in odd:
        assert CALLS[torch.mean](args, kwargs) is None


def test_a_network_of_the_usual_layers_folds_without_sympy() -> None:
    """It takes a second to import, and torch's kernels on the meta device do so."""
    code = (
        "import sys, bnfold; from examples.seed_network import Net; "
        "print(len(bnfold.fold(Net().eval()).plan), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


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
