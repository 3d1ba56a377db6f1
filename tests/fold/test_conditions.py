"""Each refusal is needed: where the plan says why not, moving the affine anyway changes the output.

A case is a model, the reason that the plan must give, and the forbidden move done by hand. Nothing stands after the
BatchNorm, so that it cannot go forward instead. The explicit affine in its place must leave the function as it was; the
forbidden move must not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import bnfold
from bnfold import affine_of
from tests.fold.support import Net, assert_same_function, double, error_of_peak, folds, run, set_affine, values

Forward = Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Refused:
    """A model that must not fold.

    Attributes:
        reason: the code that the plan must give.
        build: the model in eval mode and float64, and its input.
        moved: the same model's forward with the affine moved where it may not go.
        says: part of the sentence.
    """

    reason: str
    build: Callable[[], tuple[Any, Tensor]]
    moved: Forward
    says: str


CASES: dict[str, Refused] = {}


def refused(name: str, reason: str, forward: Forward, moved: Forward, says: str, **options: Any) -> None:
    """Enter a model ``forward`` with a conv 3 -> 4, a BatchNorm and the parts given."""
    channels, negative = options.pop("channels", 4), options.pop("negative", 0.5)
    prepare, shape = options.pop("prepare", None), options.pop("shape", (2, 3, 9, 9))
    norm = options.pop("norm", nn.BatchNorm2d)

    def build() -> tuple[Any, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(5)
            parts = {key: value() for key, value in options.items()}
            parts.setdefault("conv", nn.Conv2d(3, 4, 3, padding=1))
            net = double(Net(forward, bn=norm(channels), **parts), negative=negative)
        if prepare is not None:
            prepare(net)
        return net, values(*shape)

    CASES[name] = Refused(reason, build, moved, says)


def conv_with_bn(s: Any) -> nn.Module:
    """The convolution with the BatchNorm in it, by torch's own algebra."""
    return fuse_conv_bn_eval(s.conv, s.bn)


def over_pool(s: Any, x: Tensor) -> Tensor:
    return s.op(conv_with_bn(s)(x))


def through(s: Any, x: Tensor) -> Tensor:
    return s.bn(s.op(s.conv(x)))


def first_negative(net: Any) -> None:
    set_affine(net.bn, scale=torch.tensor([-1.0, 1.0, 0.5, 2.0], dtype=torch.float64))


# --- slices and places of channels -------------------------------------------------------------------------------


def _affine_on_the_last_two(bn: Any, y: Tensor) -> Tensor:
    return torch.cat([y[:, :2], affine_of(bn)(y[:, 2:])], 1)


for _name, _op in {
    "a step": lambda y: y[:, ::2],
    "a step backward from the end": lambda y: y[..., ::2, :, :],
    "a start that is only known when it runs": lambda y: y[:, : y.shape[2] // 4],
}.items():
    refused(
        f"{_name} in a slice of the channels",
        "channel-dimension",
        lambda s, x, op=_op: s.bn(op(s.conv(x))),
        lambda s, x, op=_op: op(_affine_on_the_last_two(s.bn, s.conv(x))),
        "slices the channels with a step, or at a position known only at run time",
        channels=2,
    )
for _name, _op in {"flip": lambda y: y.flip(1), "roll": lambda y: torch.roll(y, 1, dims=-3)}.items():
    refused(
        f"{_name} along the channels",
        "channel-dimension",
        lambda s, x, op=_op: s.bn(op(s.conv(x))),
        lambda s, x, op=_op: op(conv_with_bn(s)(x)),
        "moves the channels",
    )


# --- channels by their numbers -----------------------------------------------------------------------------------


def _index_of(*numbers: int) -> Any:
    return {"index": lambda: torch.tensor(numbers)}


refused(
    "a channel selected twice, its copies unlike",
    "channels-disagree",
    lambda s, x: s.bn(s.conv(x)[:, s.index]),
    lambda s, x: bnfold.ChannelAffine(*(part[:2] for part in _numbers(s.bn)))(s.conv(x)[:, :2])[:, s.index[[0, 0, 0]]],
    "takes a channel several times, and its copies want different things",
    channels=3,
    **_index_of(1, 1, 0),
)
refused(
    "channels selected by the input",
    "computed-index",
    lambda s, x: s.bn(torch.index_select(s.conv(x), 1, x.mean((0, 2, 3)).argsort())),
    lambda s, x: torch.index_select(_affine_on_the_first(s.bn, s.conv(x)), 1, x.mean((0, 2, 3)).argsort()),
    "the channels that selection `index_select` takes are only known when it runs",
    channels=3,
)
refused(
    "channels selected by a mask",
    "unknown-op",
    lambda s, x: s.bn(s.conv(x)[:, s.mask]),
    lambda s, x: _affine_on_the_first(s.bn, s.conv(x))[:, s.mask],
    "takes channels by something else than a list of numbers of torch.bool",
    channels=3,
    mask=lambda: torch.tensor([True, False, True, True]),
)
refused(
    "channels that are not selected have another reader",
    "several-readers",
    lambda s, x: (s.bn((y := s.conv(x))[:, s.index]), torch.sigmoid(y)),
    lambda s, x: ((y := _affine_on_the_first(s.bn, s.conv(x)))[:, s.index], torch.sigmoid(y)),
    "is also read by `sigmoid`",
    channels=3,
    **_index_of(2, 0, 1),
)


def _numbers(bn: Any) -> tuple[Tensor, Tensor]:
    affine = affine_of(bn)
    return affine.scale, affine.shift


def _affine_on_the_first(bn: Any, y: Tensor) -> Tensor:
    channels = bn.num_features
    return torch.cat([affine_of(bn)(y[:, :channels]), y[:, channels:]], 1)


# --- channels that a reshape mixes -------------------------------------------------------------------------------


def _shuffled_wrongly(y: Tensor) -> Tensor:
    """As a channel shuffle, but the height takes part in it."""
    b, c, h, w = y.size()
    return y.view(b, c, h // 2, 2, w).transpose(1, 2).reshape(b, c, h, w)


refused(
    "a shuffle of channels and rows",
    "channel-dimension",
    lambda s, x: s.bn(_shuffled_wrongly(s.conv(x))),
    lambda s, x: _shuffled_wrongly(conv_with_bn(s)(x)),
    "mixes the channels with other dimensions",
    shape=(2, 3, 12, 12),
)
refused(
    "groups of channels in another order",
    "channel-dimension",
    lambda s, x: s.bn(s.conv(x).unflatten(1, (2, 2)).flip(1).flatten(1, 2)),
    lambda s, x: conv_with_bn(s)(x).unflatten(1, (2, 2)).flip(1).flatten(1, 2),
    "rearrangement `flip` has its channels in another dimension",
)

# --- signs, shifts, windows --------------------------------------------------------------------------------------

for _name, _layer in {
    "max pool": lambda: nn.MaxPool2d(2),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d(3),
    "padded max pool": lambda: nn.MaxPool2d(3, 2, 1),
}.items():
    says = "1 of 4 scales is negative and max pooling `op` stands before it"
    refused(
        f"{_name}, one scale negative", "negative-scale", through, over_pool, says, op=_layer, prepare=first_negative
    )
    says = "all 4 scales are negative and max pooling `op` stands before it"
    refused(f"{_name}, all scales negative", "negative-scale", through, over_pool, says, op=_layer, negative=1.0)

for _name, _layer in {"relu": nn.ReLU, "leaky relu": nn.LeakyReLU, "prelu": nn.PReLU}.items():
    says = "all 4 shifts are not zero and activation `op` stands before it"
    refused(f"{_name} and a shift", "nonzero-shift", through, over_pool, says, op=_layer, negative=0.0)
    refused(
        f"{_name} and a negative scale",
        "negative-scale",
        through,
        over_pool,
        "negative and activation `op` stands before it",
        op=_layer,
        prepare=lambda net: set_affine(net.bn, shift=0.0),
    )

says = "average pooling `op` counts padded zeros in (count_include_pad=True), and the shift is not zero"
refused(
    "average pool, padding counted in", "padding-counted-in", through, over_pool, says, op=lambda: nn.AvgPool2d(3, 2, 1)
)
refused(
    "average pool, padding counted in, ceil",
    "padding-counted-in",
    through,
    over_pool,
    says,
    op=lambda: nn.AvgPool2d(2, 2, 1, ceil_mode=True),
)
says = "divides by a fixed number also where a window is cut at the border, and the shift is not zero"
refused(
    "average pool, divisor with padding",
    "divisor-override",
    through,
    over_pool,
    says,
    op=lambda: nn.AvgPool2d(2, padding=1, divisor_override=3),
)
refused(
    "average pool, divisor with ceil",
    "divisor-override",
    through,
    over_pool,
    says,
    op=lambda: nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
)

for _name, _pad, _value in (("zeros", lambda: nn.ZeroPad2d(1), 0), ("ones", lambda: nn.ConstantPad2d(2, 1.0), 1)):
    says = f"padding `op` pads with {_value} and all 4 channels are shifted away from it"
    refused(f"padding with {_name}", "constant-padding", through, over_pool, says, op=_pad)

# --- who reads the value -----------------------------------------------------------------------------------------


def read_twice(s: Any, x: Tensor) -> Any:
    y = s.conv(x)
    return s.bn(y), torch.sigmoid(y)


def read_twice_moved(s: Any, x: Tensor) -> Any:
    y = conv_with_bn(s)(x)
    return y, torch.sigmoid(y)


refused("a second reader", "several-readers", read_twice, read_twice_moved, "is also read by `sigmoid`")


def returned(s: Any, x: Tensor) -> Any:
    y = s.conv(x)
    return y, s.bn(y)


def returned_moved(s: Any, x: Tensor) -> Any:
    y = conv_with_bn(s)(x)
    return y, y


refused("returned as well", "several-readers", returned, returned_moved, "is also read by the model's output")


def pooled_and_read(s: Any, x: Tensor) -> Any:
    y = s.conv(x)
    return s.bn(s.op(y)) + y.mean()


def pooled_and_read_moved(s: Any, x: Tensor) -> Any:
    y = conv_with_bn(s)(x)
    return s.op(y) + y.mean()


says = "the output of `conv` is also read by `mean`"
refused(
    "read behind the pool", "several-readers", pooled_and_read, pooled_and_read_moved, says, op=lambda: nn.AvgPool2d(2)
)


def with_indices(s: Any, x: Tensor) -> Any:
    pooled, indices = s.op(s.conv(x))
    return s.bn(pooled), indices


def with_indices_item(s: Any, x: Tensor) -> Any:
    both = s.op(s.conv(x))
    return s.bn(both[0]), both[1]


def with_indices_moved(s: Any, x: Tensor) -> Any:
    pooled, indices = s.op(conv_with_bn(s)(x))
    return pooled, indices.double()


def a_scale_of_zero(net: Any) -> None:  # makes ties: the first of a window's elements wins
    set_affine(net.bn, scale=torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64))


says = "the indices that max pooling `op` returns are used"
refused(
    "indices of the pool",
    "indices-used",
    with_indices_item,
    with_indices_moved,
    says,
    op=lambda: nn.MaxPool2d(2, return_indices=True),
    prepare=a_scale_of_zero,
)


def twice_the_same(s: Any, x: Tensor) -> Any:
    y = s.conv(x)
    return s.bn(y + y)


def twice_the_same_moved(s: Any, x: Tensor) -> Any:
    y = conv_with_bn(s)(x)
    return y + y


refused("a value added to itself", "same-term-twice", twice_the_same, twice_the_same_moved, "to itself")


def cat_twice(s: Any, x: Tensor) -> Any:
    y = s.conv(x)
    return s.bn(torch.cat([y, y], 1))


def cat_twice_moved(s: Any, x: Tensor) -> Any:
    affine = affine_of(s.bn)
    return torch.cat([(y := bnfold.ChannelAffine(affine.scale[:4], affine.shift[:4])(s.conv(x))), y], 1)


refused("a cat of a value with itself", "same-term-twice", cat_twice, cat_twice_moved, "twice", channels=8)


def through_two_ways(s: Any, x: Tensor) -> Any:
    y = s.conv(x)
    return s.bn(y - s.op(y))


def through_two_ways_moved(s: Any, x: Tensor) -> Any:
    y = conv_with_bn(s)(x)
    return y - s.op(y)


says = "the readers of the output of `conv` need different affines"
refused(
    "a value and its average, subtracted",
    "readers-disagree",
    through_two_ways,
    through_two_ways_moved,
    says,
    op=lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
)

# --- where the channels are --------------------------------------------------------------------------------------


def linear_3d(s: Any, x: Tensor) -> Any:
    return s.bn(s.fc(x))


def linear_3d_moved(s: Any, x: Tensor) -> Any:
    return fuse_linear_bn_eval(s.fc, s.bn)(x)


says = "linear layer `fc` has its channels in another dimension"
refused(
    "a Linear on 3-D input, channels in the middle",
    "channel-dimension",
    linear_3d,
    linear_3d_moved,
    says,
    fc=lambda: nn.Linear(3, 5),
    norm=nn.BatchNorm1d,
    channels=5,
    shape=(2, 5, 3),
)


def turned(s: Any, x: Tensor) -> Any:
    return s.bn(s.conv(x).transpose(1, 2))


def turned_moved(s: Any, x: Tensor) -> Any:
    return conv_with_bn(s)(x).transpose(1, 2)


says = "convolution `conv` has its channels in another dimension"
refused("height where the channels were", "channel-dimension", turned, turned_moved, says, shape=(2, 3, 4, 4))


def mean_of_channels(s: Any, x: Tensor) -> Any:
    return s.bn(s.conv(x).mean(1))


def mean_of_channels_moved(s: Any, x: Tensor) -> Any:
    return affine_of(s.bn)(s.conv(x)).mean(1)


says = "convolution `conv` has its channels in another dimension"
refused(
    "a mean over the channels",
    "channel-dimension",
    mean_of_channels,
    mean_of_channels_moved,
    says,
    norm=nn.BatchNorm1d,
    shape=(2, 3, 4, 4),
)


def flattened(s: Any, x: Tensor) -> Any:
    return s.bn(s.conv(x).flatten(1))


def flattened_moved(s: Any, x: Tensor) -> Any:
    affine = affine_of(s.bn)
    return bnfold.ChannelAffine(affine.scale[::16], affine.shift[::16])(s.conv(x)).flatten(1)


says = "mixes the channels with other dimensions"
refused(
    "a channel per pixel",
    "channel-dimension",
    flattened,
    flattened_moved,
    says,
    norm=nn.BatchNorm1d,
    channels=64,
    shape=(2, 3, 4, 4),
)


def unshuffled(s: Any, x: Tensor) -> Any:
    return s.bn(s.op(s.conv(x)))


def unshuffled_moved(s: Any, x: Tensor) -> Any:
    affine = affine_of(s.bn)
    return s.op(bnfold.ChannelAffine(affine.scale[::4], affine.shift[::4])(s.conv(x)))


says = "takes a channel several times, and its copies want different things"
refused(
    "a pixel unshuffle of unlike channels",
    "channels-disagree",
    unshuffled,
    unshuffled_moved,
    says,
    op=lambda: nn.PixelUnshuffle(2),
    channels=16,
    shape=(2, 3, 8, 8),
)


def stretched(s: Any, x: Tensor) -> Any:
    return s.bn(s.conv(x) + s.one(x))


def stretched_moved(s: Any, x: Tensor) -> Any:
    affine = affine_of(s.bn)
    return conv_with_bn(s)(x) + affine.scale[0] * s.one(x)


says = "sum `add` stretches one of its terms over the channels"
refused(
    "one channel added to all", "broadcast", stretched, stretched_moved, says, one=lambda: nn.Conv2d(3, 1, 3, padding=1)
)

# --- what stands before ------------------------------------------------------------------------------------------


def behind_a_curve(s: Any, x: Tensor) -> Any:
    return s.bn(torch.tanh(s.conv(x)))


def behind_a_curve_moved(s: Any, x: Tensor) -> Any:
    return torch.tanh(conv_with_bn(s)(x))


refused("tanh", "unknown-op", behind_a_curve, behind_a_curve_moved, "no affine moves through `tanh`")


def behind_a_gate(s: Any, x: Tensor) -> Any:
    return s.bn(s.conv(x) * s.gate(x).sigmoid())


def behind_a_gate_moved(s: Any, x: Tensor) -> Any:
    return conv_with_bn(s)(x) * s.gate(x).sigmoid()


says = "no affine moves through product `mul`"
refused("a gate", "unknown-op", behind_a_gate, behind_a_gate_moved, says, gate=lambda: nn.Conv2d(3, 4, 3, padding=1))


def on_the_input(s: Any, x: Tensor) -> Any:
    return s.bn(x)


def on_the_input_moved(s: Any, x: Tensor) -> Any:
    return x


says = "it reads the model's input `x`, and no weights stand before it"
refused("the model's input", "no-producer", on_the_input, on_the_input_moved, says, channels=3)


def weight_from_input(s: Any, x: Tensor) -> Any:
    return s.bn(F.conv2d(x, s.conv.weight * x.mean()))


def weight_from_input_moved(s: Any, x: Tensor) -> Any:
    return F.conv2d(x, s.conv.weight * affine_of(s.bn).scale.view(-1, 1, 1, 1))


says = "the weight of convolution `conv2d` is computed from the model's input"
refused("a weight computed from the input", "computed-weight", weight_from_input, weight_from_input_moved, says)


@pytest.mark.parametrize("name", CASES)
def test_the_plan_refuses_and_says_why_and_the_function_stays(name: str) -> None:
    case = CASES[name]
    net, x = case.build()
    folding = folds(net, x)
    (decision,) = folding.plan
    assert (decision.action, decision.reason) == ("affine", case.reason), decision.detail
    assert decision.direction is None
    assert decision.into == ()
    assert case.says in decision.detail
    assert decision.detail.startswith("bn became an explicit affine: ")
    assert decision.detail.endswith(".")


@pytest.mark.parametrize("name", CASES)
def test_moving_the_affine_anyway_changes_the_output(name: str) -> None:
    case = CASES[name]
    net, x = case.build()
    with torch.no_grad():
        expected, moved = net(x), case.moved(net, x)
    pairs = zip(expected, moved, strict=True) if isinstance(expected, tuple) else [(expected, moved)]
    errors = [float((right - other).abs().max() / right.double().abs().max()) for right, other in pairs]
    assert max(errors) > 1e-3


def test_two_outputs_of_a_pool_unpacked_need_example_inputs_and_are_refused_alike() -> None:
    net = double(
        Net(with_indices, conv=nn.Conv2d(3, 4, 3), op=nn.MaxPool2d(2, return_indices=True), bn=nn.BatchNorm2d(4)),
        negative=0.0,
    )
    folding = folds(net, values(2, 3, 9, 9))
    assert [(d.action, d.reason) for d in folding.plan] == [("affine", "indices-used")]


# --- refusals without a move to do by hand -------------------------------------------------------------------------


def test_without_example_inputs_what_needs_shapes_is_refused_with_a_sentence_that_says_so() -> None:
    net = double(Net(lambda s, x: s.bn(s.conv(x).flatten(2)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm1d(4)))
    x = values(2, 3, 9, 9)
    (bare,) = bnfold.plan(net, capture="symbolic")
    assert (bare.action, bare.reason) == ("affine", "shapes-unknown")
    assert "are not known without example inputs" in bare.detail
    (known,) = folds(net, x).plan
    assert known.action == "fold"


def test_a_linear_layer_without_example_inputs_may_have_its_channels_anywhere() -> None:
    net = double(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)))
    folding = bnfold.fold(net, capture="symbolic")
    assert [(d.action, d.reason) for d in folding.plan] == [("affine", "shapes-unknown")]
    for x in (values(2, 6), values(2, 5, 6)):  # both run, and the channels are not in the same place
        assert_same_function(net, folding, x)


def test_an_active_dropout_stops_the_affine() -> None:
    net = double(Net(lambda s, x: s.bn(F.dropout(s.conv(x), 0.5)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    folding = bnfold.fold(net, values(2, 3, 9, 9))
    (decision,) = folding.plan
    assert (decision.action, decision.reason) == ("affine", "active-dropout")
    x = values(2, 3, 9, 9)
    torch.default_generator.manual_seed(1)
    expected = run(net, x)
    torch.default_generator.manual_seed(1)
    assert error_of_peak(expected, run(folding.module, x)) == 0.0


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("kept-by-request", {"keep": "1"}),
        ("kept-by-request", {"keep": ("1",)}),
    ],
)
def test_the_caller_may_keep_a_batchnorm(reason: str, settings: dict[str, Any]) -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    folding = folds(net, values(2, 3, 9, 9), **settings)
    assert [(d.action, d.reason) for d in folding.plan] == [("keep", reason), ("fold", None)]
    assert isinstance(folding.module.get_submodule("1"), nn.BatchNorm2d)


def test_a_batchnorm_after_a_kept_one_does_not_pass_it() -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    folding = folds(net, values(2, 3, 9, 9), keep="1")
    assert [(d.action, d.reason) for d in folding.plan] == [("keep", "kept-by-request"), ("affine", "kept-batchnorm")]


def test_keeping_a_name_that_no_batchnorm_has_names_the_closest() -> None:
    net = double(Net(lambda s, x: s.norm1(s.conv(x)), conv=nn.Conv2d(3, 4, 3), norm1=nn.BatchNorm2d(4)))
    with pytest.raises(bnfold.UnknownNameError, match=r"no BatchNorm named 'norm2'. Did you mean norm1\?"):
        bnfold.plan(net, keep="norm2")
    with pytest.raises(bnfold.UnknownNameError, match="conv"):
        bnfold.plan(net, keep="conv")


@pytest.mark.parametrize("functional", [False, True])
def test_batch_statistics_are_kept_and_reported(functional: bool) -> None:
    if functional:
        net: nn.Module = Net(lambda s, x: F.batch_norm(s.conv(x), None, None, training=True), conv=nn.Conv2d(3, 4, 3))
    else:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    folding = folds(double(net), values(2, 3, 9, 9))
    assert [(d.action, d.reason) for d in folding.plan] == [("keep", "batch-statistics")]
    assert "the mean and variance of each batch" in folding.plan[0].detail


def test_buffers_present_are_used_though_track_running_stats_was_switched_off() -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    net[1].track_running_stats = False
    assert [d.action for d in folds(net, values(2, 3, 9, 9)).plan] == ["fold"]


def test_statistics_computed_from_the_input_are_kept() -> None:
    net = Net(
        lambda s, x: F.batch_norm(s.conv(x), s.mean, x.var() * s.var),
        conv=nn.Conv2d(3, 4, 3),
        mean=values(4),
        var=values(4).abs() + 0.1,
    )
    folding = folds(double(net), values(2, 3, 9, 9))
    assert [(d.action, d.reason) for d in folding.plan] == [("keep", "computed-statistics")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda bn: bn.running_var.fill_(-1.0), "running_var is negative in 4 of 4 channels"),
        (lambda bn: bn.running_var[1].fill_(float("nan")), "not finite in 1 of 4 channels"),
        (lambda bn: bn.running_var[:2].fill_(float("inf")), "not finite in 2 of 4 channels"),
        (lambda bn: bn.running_mean.fill_(float("inf")), "not finite in 4 of 4 channels"),
        (lambda bn: bn.bias.data.fill_(float("nan")), "not finite in 4 of 4 channels"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_statistics_that_are_not_finite_do_not_fold(
    dtype: torch.dtype, change: Callable[[Any], Any], says: str
) -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    change(net[1])
    folding = bnfold.fold(net)
    (decision,) = folding.plan
    assert decision.reason == "not-finite"
    assert decision.action != "fold"
    assert says in decision.detail
    assert "1" in decision.detail.split()[0]
    x = values(2, 3, 9, 9).to(dtype)
    assert error_of_peak(run(net, x), run(folding.module, x)) <= 1e-12


@pytest.mark.parametrize("behind", [False, True])
def test_variance_zero_without_eps_keeps_its_infinities(behind: bool) -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh() if behind else nn.Identity(), nn.BatchNorm2d(4, eps=0.0)))
    net[2].running_var.zero_()
    folding = bnfold.fold(net)
    x = values(2, 3, 9, 9)
    assert folding.plan[0].reason == "not-finite"
    assert torch.equal(run(net, x).nan_to_num(7.0, 8.0, 9.0), run(folding.module, x).nan_to_num(7.0, 8.0, 9.0))


def test_a_weight_that_would_overflow_float16_does_not_fold() -> None:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12)))
    net[1].running_var.fill_(1e-12)
    net[1].weight.data.fill_(300.0)
    net = net.half()
    folding = bnfold.fold(net)
    (decision,) = folding.plan
    assert (decision.action, decision.reason) == ("affine", "weight-not-finite")
    assert "torch.float16" in decision.detail
    x = values(2, 3, 5, 5).half()
    assert torch.equal(run(net, x), run(folding.module, x))
    assert not torch.isfinite(fuse_conv_bn_eval(net[0], net[1]).weight).all()


def overflowing_float32() -> nn.Module:
    net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float()
    net[0].weight.data.fill_(1e30)
    net[1].weight.data.fill_(1e9)
    return net


def test_a_weight_that_would_overflow_float32_does_not_fold() -> None:
    folding = bnfold.fold(overflowing_float32())
    assert [(d.action, d.reason) for d in folding.plan] == [("affine", "weight-not-finite")]


@pytest.mark.parametrize("model", ["one overflow in float32", "two BatchNorms that overflow float16 together"])
def test_plan_decides_what_fold_does(model: str) -> None:
    net = overflowing_float32()
    if model.startswith("two"):
        net = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
        for layer in (net[1], net[2]):
            layer.running_var.fill_(1.0)
            layer.weight.data.fill_(900.0)  # 0.19 * 900 fits into float16, 0.19 * 900 * 900 does not
        net = net.half()
    assert [d.action for d in bnfold.plan(net)] == [d.action for d in bnfold.fold(net).plan]
