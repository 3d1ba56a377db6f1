"""What is known of a call without torch's kernels is what a real run gives, and a call that raises is left to torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.graph.dataless import Dataless
from bnfold.graph.known_results import CALLS

X = torch.rand(2, 4, 6, 5)
LAST = X.to(memory_format=torch.channels_last)
FOUR, FIVE = torch.rand(4), torch.rand(5)
WEIGHT = torch.rand(3, 5)
SETTINGS = (1, 0, 1, 1)  # of a convolution: stride, padding, dilation, groups

KNOWN: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = (  # calls that networks are made of
    (F.relu, (X,), {"inplace": False}),
    (F.relu, (LAST,), {}),
    (F.elu, (X, 0.5), {}),
    (F.celu, (X,), {"alpha": 2.0, "inplace": False}),
    (F.leaky_relu, (X, 0.1, False), {}),
    (F.hardtanh, (X, 0.0, 6.0, False), {}),
    (F.softplus, (X, 1, 20), {}),
    (F.gelu, (X,), {"approximate": "tanh"}),
    (torch.sigmoid, (X,), {}),
    (F.logsigmoid, (X,), {}),
    (F.logsigmoid, (LAST,), {}),
    *((f, (x, 1), {}) for f in (F.softmax, F.log_softmax, torch.softmax, torch.Tensor.log_softmax) for x in (X, LAST)),
    (F.softmax, (X,), {"dim": -1, "_stacklevel": 5}),
    (torch.softmax, (X.double(),), {"dim": 0, "dtype": None}),
    *((f, (X, 2), {}) for f in (operator.add, torch.sub, torch.Tensor.mul, operator.truediv)),
    (torch.add, (X, 0.5), {}),
    (torch.Tensor.add, (X, torch.rand(4, 1, 1)), {}),
    (torch.Tensor.add_, (X, 2), {}),
    (torch.Tensor.mul_, (X, X), {}),
    (F.batch_norm, (X, FOUR, FOUR), {}),
    (F.batch_norm, (X, FOUR, FOUR, FOUR, FOUR, False, 0.1, 1e-5), {}),
    (F.batch_norm, (LAST, FOUR, FOUR), {"weight": FOUR, "bias": None, "training": False}),
    (F.layer_norm, (X, (5,), FIVE, FIVE), {"eps": 1e-6}),
    (F.layer_norm, (LAST, [6, 5]), {}),
    (F.linear, (X, WEIGHT, torch.rand(3)), {}),
    (F.linear, (X, WEIGHT, None), {}),
    (F.dropout, (X, 0.5, False), {}),
    (F.dropout, (X,), {"p": 0.2, "training": False, "inplace": False}),
    (F.conv2d, (X, torch.rand(3, 4, 1, 1), torch.rand(3), *SETTINGS), {}),
    (F.conv2d, (X, torch.rand(3, 4, 3, 3), None, (2, 1), [1, 1], 2, 1), {}),
    (F.avg_pool3d, (X[None], 2, 2), {}),
)
LEFT: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = (  # calls that are not as they mostly are
    (torch.Tensor.softmax, (X, 1, torch.float64), {}),
    (torch.softmax, (X, 1, torch.float64), {}),
    (torch.softmax, (X, 1), {"dtype": torch.float64}),
    (F.softmax, (X, 1, 3, torch.float64), {}),
    (F.log_softmax, (X, 1, 3, torch.float64), {}),
    (torch.sigmoid, (X,), {"out": torch.empty(0, dtype=torch.float64)}),
    (torch.exp, (X,), {"out": torch.empty(0)}),
    *((f, (X, 1j), {}) for f in (operator.add, operator.sub, operator.mul, operator.truediv, torch.mul)),
    *((f, (X, True), {}) for f in (operator.add, torch.mul)),
    (torch.Tensor.mul_, (X, True), {}),
    (torch.Tensor.add, (X, X), {"alpha": 2}),
    (torch.Tensor.add_, (X, X.double()), {}),
    (F.linear, (X, WEIGHT, torch.rand(1)), {}),
    (F.batch_norm, (X, FOUR, FOUR), {"training": True}),
    (F.batch_norm, (X.bfloat16(), FOUR, FOUR), {}),
    (F.conv2d, (X, torch.rand(3, 4, 1, 1).to(memory_format=torch.channels_last), None, *SETTINGS), {}),
    (F.conv2d, (X[0], torch.rand(3, 4, 1, 1), None, *SETTINGS), {}),
)
RAISES: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = (  # torch takes none of these
    (F.softmax, (X, 4), {}),
    (torch.log_softmax, (X,), {"dim": -5}),
    (torch.softmax, (X, 1), {"_stacklevel": 3}),
    (F.gelu, (X,), {"approximate": "none at all"}),
    (F.hardtanh, (X,), {"min_val": 2.0, "max_val": 1.0}),
    (F.celu, (X, 0.0), {}),
    (torch.sigmoid, (X,), {"inplace": True}),
    (torch.Tensor.sub, (X, True), {}),
    (torch.Tensor.sub_, (X, True), {}),
    (torch.Tensor.add_, (X, 1j), {}),
    (torch.Tensor.mul_, (X, 1j), {}),
    (F.linear, (X, WEIGHT, torch.rand(2)), {}),
    (F.linear, (X, WEIGHT, torch.rand(3).double()), {}),
    (F.batch_norm, (X, FOUR, FIVE), {}),
    (F.batch_norm, (X, FOUR, FOUR.double()), {}),
    (F.batch_norm, (X, FOUR, FOUR, FIVE, FOUR), {}),
    (F.batch_norm, (X, FOUR, FOUR), {"bias": FIVE}),
    (F.layer_norm, (X, (5,), FOUR), {}),
    (F.layer_norm, (X, ()), {}),
    (F.dropout, (X, 2.0, False), {}),
    (F.conv2d, (X, torch.rand(3, 4, 1, 1), torch.rand(2), *SETTINGS), {}),
    (F.conv2d, (X, torch.rand(3, 4, 1, 1), torch.rand(3).double(), *SETTINGS), {}),
    (F.conv2d, (X, torch.rand(3, 4, 1, 1), None, -1, 0, 1, 1), {}),
    (F.conv2d, (X, torch.rand(3, 4, 1, 1), None, 1, 0, 0, 1), {}),
    (F.avg_pool3d, (torch.rand(2, 4, 1, 1, 1), 2, 2, 1), {}),
    (F.avg_pool3d, (torch.rand(2, 4, 1, 1, 1), 2, 2, 0, True), {}),
    (F.adaptive_avg_pool1d, (X[0], None), {}),
    (F.adaptive_avg_pool1d, (X[0], (None,)), {}),
)
LAYERS_LEFT: tuple[tuple[nn.Module, Tensor], ...] = (  # of which a real run raises or warns
    (nn.Dropout1d().eval(), X),
    (nn.Dropout2d().eval(), X[0, 0]),
    (nn.Dropout3d().eval(), X[0, 0]),
    (nn.AdaptiveAvgPool1d(None), X[0]),  # type: ignore[arg-type]
    (nn.AvgPool3d(2, padding=1), torch.rand(2, 4, 1, 1, 1)),
)


def _described(call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> str:
    told = [tuple(arg.shape) if isinstance(arg, Tensor) else arg for arg in call[1]]
    return f"{call[0].__name__}{told}{list(call[2])}"


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    return value


def _known(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return CALLS[function](tuple(map(_on_meta, args)), {key: _on_meta(value) for key, value in kwargs.items()})


def _real(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        result: Tensor = function(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args), **kwargs)
    return result


def _look(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.size()), tensor.stride(), tensor.dtype


@pytest.mark.parametrize("call", KNOWN, ids=_described)
def test_an_everyday_call_is_known_as_it_comes_out(call: Any) -> None:
    known = _known(*call)
    assert known is not None
    assert known.is_meta
    assert _look(known) == _look(_real(*call))


@pytest.mark.parametrize("call", LEFT, ids=_described)
def test_a_call_that_is_not_as_it_mostly_is_is_left_to_torch(call: Any) -> None:
    _real(*call)  # torch takes it
    assert _known(*call) is None


@pytest.mark.parametrize("call", RAISES, ids=_described)
def test_a_call_that_torch_does_not_take_is_left_to_torch(call: Any) -> None:
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError)):
        _real(*call)
    assert _known(*call) is None


@pytest.mark.parametrize(("layer", "x"), LAYERS_LEFT, ids=lambda value: type(value).__name__)
def test_a_layer_that_does_not_take_its_input_is_left_to_torch(layer: nn.Module, x: Tensor) -> None:
    assert Dataless().layer(layer, (_on_meta(x),), {}) is None


def _batch_norm_with(name: str, value: Tensor) -> nn.Module:
    layer = nn.BatchNorm2d(4).eval()
    setattr(layer, name, nn.Parameter(value) if name in ("weight", "bias") else value)
    return layer


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("value", [FIVE, FOUR.double()], ids=["of another size", "of another type"])
def test_a_batchnorm_with_a_part_that_does_not_fit_is_left_to_torch(name: str, value: Tensor) -> None:
    layer = _batch_norm_with(name, value)
    with pytest.raises(RuntimeError):
        layer(X)
    assert Dataless().layer(layer, (_on_meta(X),), {}) is None
    assert Dataless().layer(_batch_norm_with(name, FOUR), (_on_meta(X),), {}) is not None


@pytest.mark.parametrize("settings", [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"stride": 2, "dilation": 2}])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_layer_with_a_number_for_a_setting_is_known_as_it_comes_out(rank: int, settings: dict[str, int]) -> None:
    """A network is dilated by setting ``conv.dilation = 2`` after it was made."""
    layers: list[nn.Module] = [getattr(nn, f"Conv{rank}d")(4, 6, 3).eval()]
    layers += [getattr(nn, f"MaxPool{rank}d")(3)]
    if "dilation" not in settings:
        layers += [getattr(nn, f"AvgPool{rank}d")(3)]
    x = torch.rand(2, 4, *(9, 8, 7)[:rank])
    for layer in layers:
        for name, value in settings.items():
            setattr(layer, name, value)
        known = Dataless().layer(layer, (_on_meta(x),), {})
        assert _look(known) == _look(layer(x))


def _orders(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A tensor in the order of its dimensions, in that of channels last, and as a transposed one, a cut one."""
    x = torch.rand(shape)
    yield x
    if len(shape) == 4:
        yield x.to(memory_format=torch.channels_last)
        yield x.contiguous(memory_format=torch.channels_last)
    yield x.transpose(1, -1)
    yield x[:, :, ::2] if len(shape) > 2 else x[:, ::2]


SHAPES = (
    (2, 4, 6, 5),
    (1, 1, 6, 5),
    (2, 1, 6, 5),
    (1, 4, 1, 1),
    (1, 1, 1, 1),
    (2, 4, 1, 5),
    (2, 4, 6),
    (1, 1, 6),
    (4, 1),
)
OF_ONE: tuple[Callable[[Any], Any], ...] = (F.relu, F.relu6, F.gelu, F.hardtanh, F.softsign, F.logsigmoid, torch.exp)
OF_TWO: tuple[Callable[[Any, Any], Any], ...] = (torch.add, operator.mul, operator.truediv)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_strides_of_dimensions_of_size_one_are_those_of_a_real_run(shape: tuple[int, ...]) -> None:
    """They decide between the order of the dimensions and channels last, and code may ask for them."""
    known = 0
    for x in _orders(shape):
        calls: list[Any] = [(f, (x,), {}) for f in OF_ONE]
        calls += [(f, (x, other), {}) for f in OF_TWO for other in (2, x, torch.rand(x.size()), x[:, :1], x.mean())]
        calls += [(F.softmax, (x, 1), {}), (torch.mean, (x, -1, True), {}), (torch.cat, ([x, x], 1), {})]
        calls += [(F.batch_norm, (x, torch.rand(x.size(1)), torch.rand(x.size(1))), {})]
        calls += [(F.layer_norm, (x, (x.size(-1),)), {}), (F.linear, (x, torch.rand(3, x.size(-1))), {})]
        if x.dim() > 2:
            rank = x.dim() - 2
            calls += [(getattr(F, f"avg_pool{rank}d"), (x, 1), {}), (getattr(F, f"max_pool{rank}d"), (x, 1), {})]
            calls += [(getattr(F, f"adaptive_avg_pool{rank}d"), (x, 1), {})]
            weight = torch.rand(3, x.size(1), *(1,) * rank)
            calls += [(getattr(F, f"conv{rank}d"), (x, weight, None, *SETTINGS), {})]
        for function, args, kwargs in calls:
            parts = (list(map(_on_meta, args[0])), *args[1:]) if function is torch.cat else args
            found = _known(function, parts, kwargs)
            if found is not None:
                known += 1
                told = f"{function.__name__} of {tuple(x.size())} with strides {x.stride()}"
                assert _look(found) == _look(function(*args, **kwargs)), told
    assert known >= 20
