"""Models that no one should write, and someone has: aliasing, coincident sizes, state, code that hides from a tracer.

Each is folded with and without example inputs. The fold must compute the same function, twice in a row, or be refused
with a :class:`bnfold.BnfoldError`; it must leave the model as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.fold.api import Folding
from tests.fold.support import ALGEBRA, Net, TwoInputNet, double, error_of_peak, run, set_affine, values

Built = tuple[Any, ...]  # the model, then its inputs


@dataclass(frozen=True)
class Case:
    """A model, where it is known to go wrong, and other inputs to run on than those it was folded with."""

    build: Callable[[], Built]
    wrong: dict[bool, str] = field(default_factory=dict)  # with examples or without: why it fails today
    others: Callable[[], list[Built]] | None = None
    negative: float = 0.5


CASES: dict[str, Case] = {}


def odd(
    *, with_examples: str = "", without: str = "", both: str = "", others: Any = None, negative: float = 0.5
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a model into the table; a sentence says why it is known to fail."""
    wrong = {True: with_examples or both, False: without or both}

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        CASES[build.__name__] = Case(build, {key: why for key, why in wrong.items() if why}, others, negative)
        return build

    return enter


def parameters() -> Iterator[Any]:
    for name, case in CASES.items():
        for examples in (True, False):
            why = case.wrong.get(examples)
            marks = [pytest.mark.xfail(strict=True, reason=why)] if why else []
            yield pytest.param(name, examples, marks=marks, id=f"{name}-{'examples' if examples else 'bare'}")


def conv(inputs: int = 3, outputs: int = 4, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=options.pop("padding", size // 2), **options)


def images(*shape: int) -> Tensor:
    return values(*(shape or (2, 3, 8, 8)))


# --- an op that works along the channels -------------------------------------------------------------------------


@odd(negative=0.0)
def max_pool_over_the_features_of_a_linear_layer() -> Built:
    return (
        Net(
            lambda s, x: s.bn(s.pool(s.fc(x)).transpose(1, 2)),
            fc=nn.Linear(6, 8),
            pool=nn.MaxPool1d(3, 1, 1),
            bn=nn.BatchNorm1d(8),
        ),
        values(2, 5, 6),
    )


@odd(negative=0.0)
def max_pool_2d_over_the_features_of_a_linear_layer() -> Built:
    return (
        Net(
            lambda s, x: s.bn(s.pool(s.fc(x)).permute(0, 3, 1, 2)),
            fc=nn.Linear(6, 8),
            pool=nn.MaxPool2d(3, 1, 1),
            bn=nn.BatchNorm2d(8),
        ),
        values(2, 4, 5, 6),
    )


@odd()
def average_pool_over_the_features_of_a_linear_layer() -> Built:
    return (
        Net(
            lambda s, x: s.bn(s.pool(s.fc(x)).transpose(1, 2)),
            fc=nn.Linear(6, 8),
            pool=nn.AvgPool1d(3, 1, 1, count_include_pad=False),
            bn=nn.BatchNorm1d(8),
        ),
        values(2, 5, 6),
    )


@odd()
def interpolation_between_the_features_of_a_linear_layer() -> Built:
    return (
        Net(
            lambda s, x: s.bn(F.interpolate(s.fc(x), scale_factor=1.1, mode="linear").transpose(1, 2)),
            fc=nn.Linear(6, 8),
            bn=nn.BatchNorm1d(8),
        ),
        values(2, 5, 6),
    )


@odd()
def padding_that_shifts_the_features_of_a_linear_layer_by_one() -> Built:
    net = Net(lambda s, x: s.bn(F.pad(s.fc(x), (1, -1)).transpose(1, 2)), fc=nn.Linear(6, 8), bn=nn.BatchNorm1d(8))
    return _without_shift(net), values(2, 5, 6)


@odd()
def padding_that_shifts_the_channels_of_a_convolution_by_one() -> Built:
    net = Net(lambda s, x: s.bn(F.pad(s.conv(x), (0, 0, 0, 0, 1, -1))), conv=conv(), bn=nn.BatchNorm2d(4))
    return _without_shift(net), images()


@odd()
def padding_with_channels_of_zeros_between_two_batchnorms() -> Built:
    net = Net(
        lambda s, x: s.bn(F.pad(s.first(torch.tanh(x)), (0, 0, 0, 0, 0, 3))),
        first=nn.BatchNorm2d(3),
        bn=nn.BatchNorm2d(6),
    )
    return _without_shift(net), images()


@odd()
def a_mean_over_the_channels() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).mean(-3, keepdim=True)), conv=conv(), bn=nn.BatchNorm2d(1)), images()


@odd()
def a_mean_that_leaves_height_where_the_channels_were() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).mean(1)), conv=conv(3, 8), bn=nn.BatchNorm1d(8)), images()


@odd()
def a_mean_over_everything() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).mean().reshape(1, 1)), conv=conv(3, 1), bn=nn.BatchNorm1d(1)), images()


def _without_shift(net: nn.Module) -> nn.Module:
    """Set the last BatchNorm's shift to zero, and keep it so."""
    net = double(net)
    net.prepared = True  # type: ignore[assignment]
    set_affine(net.bn, shift=0.0)
    return net


# --- readers that are easily missed ------------------------------------------------------------------------------


@odd(negative=0.0)
def the_values_of_a_pool_with_indices_taken_twice() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        both = s.pool(s.conv(x))
        return s.bn(both[0]) + both[0]

    pool = nn.MaxPool2d(2, return_indices=True)
    return Net(forward, conv=conv(), pool=pool, bn=nn.BatchNorm2d(4)), images()


@odd(negative=0.0)
def the_first_sample_of_a_pool() -> Built:
    return (
        Net(
            lambda s, x: s.bn(s.pool(s.conv(x))[0]),
            conv=nn.Conv1d(3, 8, 3, padding=1),
            pool=nn.MaxPool1d(2),
            bn=nn.BatchNorm1d(8),
        ),
        values(2, 3, 16),
    )


@odd()
def a_piece_of_a_split_taken_twice() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        pieces = torch.split(s.conv(x), [3, 1], dim=1)
        return s.bn(pieces[0]), pieces[0]

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(3)), images()


@odd()
def a_split_returned_whole_as_well() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        pieces = torch.split(s.conv(x), [3, 1], dim=1)
        return s.bn(pieces[0]), pieces

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(3)), images()


@odd()
def overlapping_slices() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.conv(x)
        return s.first(y[:, :3]) + s.second(y[:, 1:])

    return Net(forward, conv=conv(), first=nn.BatchNorm2d(3), second=nn.BatchNorm2d(3)), images()


@odd()
def a_slice_and_the_whole() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.conv(x)
        return s.bn(y[:, :2]).sum() + y

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(2)), images()


@odd()
def batchnorm_of_a_value_and_the_value_both_returned() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        return y, s.bn(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def batchnorm_returned_and_used() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        return y, torch.tanh(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


# --- memory that is written to -----------------------------------------------------------------------------------


@odd()
def a_relu_in_place_on_the_batchnorm_that_is_returned_too() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        return y, F.relu_(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_relu_in_place_on_a_view_of_the_convolution_before_the_batchnorm() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        y.view(y.shape[0], -1).relu_()
        return s.bn(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def an_in_place_layer_whose_result_nobody_takes() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        s.relu(y)
        return s.bn(y)

    return Net(forward, conv=conv(), relu=nn.ReLU(inplace=True), bn=nn.BatchNorm2d(4)), images()


@odd()
def an_in_place_functional_whose_result_nobody_takes() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        F.relu(y, inplace=True)
        return y * 2

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def in_place_addition_after_an_alias_was_taken() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        alias = y.view(y.size(0), -1)
        y += s.other(x)
        return s.bn(y), alias

    return Net(forward, conv=conv(), other=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def in_place_addition_to_the_batchnorm_with_another_name_for_it() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        same = y
        y += s.other(x)
        return y * 2 + same

    return Net(forward, conv=conv(), other=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def in_place_addition_of_two_convolutions() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).add_(s.other(x))), conv=conv(), other=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def in_place_addition_to_the_model_s_input() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        x += 1
        return s.bn(s.conv(x))

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_sample_written_to_before_the_batchnorm() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        y[0].zero_()
        return s.bn(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def values_assigned_to_a_channel_of_the_batchnorm() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        y[:, 0] = 0
        return y

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def an_out_argument() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y, z = s.conv(x), s.other(x)
        torch.add(y, y, out=z)
        return s.bn(z)

    return Net(forward, conv=conv(), other=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def an_addition_to_the_data_of_a_value() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        y.data += 1
        return s.bn(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def an_addition_to_the_data_of_a_value_by_another_name() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        data = y.data
        data += 1
        return s.bn(y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def an_addition_in_place_to_the_batchnorm_of_a_constant() -> Built:
    net = Net(lambda s, x: s.bn(s.token).add_(x), token=nn.Parameter(values(2, 4)), bn=nn.BatchNorm1d(4))
    return net, values(2, 4, seed=5)


@odd()
def a_sum_accumulated_in_zeros_made_in_forward() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        total = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
        total += s.bn(s.conv(x))
        return total

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


# --- state -------------------------------------------------------------------------------------------------------


@odd()
def a_buffer_that_counts_calls() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        s.calls += 1
        return s.bn(s.conv(x)) * s.calls

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), calls=torch.zeros(())), images()


@odd()
def a_moving_average_of_the_output() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        s.average.mul_(0.9).add_(y.mean((0, 2, 3)))
        return y + s.average.view(1, -1, 1, 1)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), average=torch.zeros(4)), images()


@odd()
def a_functional_batchnorm_that_updates_its_statistics() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        return F.batch_norm(s.conv(x), s.mean, s.var, training=True)

    return Net(forward, conv=conv(), mean=values(4), var=values(4).abs() + 0.5), images()


@odd()
def a_list_that_collects_features() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        s.seen.append(y)
        return y

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), seen=[]), images()


@odd()
def an_attribute_that_keeps_the_last_features() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        s.last = s.bn(s.conv(x))
        return torch.tanh(s.last)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


# --- code that sees a traced value for what it is not --------------------------------------------------------------


@odd()
def a_branch_on_isinstance() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        return y * 2 if isinstance(y, Tensor) else y

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


_OTHER_FILE: dict[str, Any] = {"torch": torch}
exec(  # a file that holds no layer
    compile(
        "def twice(y): return y * 2 if isinstance(y, torch.Tensor) else y\n"
        "def first(y): return y[0] * 2 if isinstance(y, (tuple, list)) else y[1]\n"
        "def sized(y, n): return y * 2 if isinstance(n, int) and not isinstance(n, torch.Tensor) else y\n",
        "elsewhere.py",
        "exec",
    ),
    _OTHER_FILE,
)


@odd()
def a_branch_on_isinstance_in_another_file() -> Built:
    return Net(lambda s, x: _OTHER_FILE["twice"](s.bn(s.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_branch_on_isinstance_of_a_tuple() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        return _OTHER_FILE["first"](s.bn(s.conv(x)).split(2, dim=1))

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_branch_on_isinstance_of_the_tuple_of_a_layer() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.lstm(s.bn(s.conv(x)).flatten(2))
        return y[0] * 2 if isinstance(y, tuple) else y

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), lstm=nn.LSTM(64, 5, batch_first=True)), images()


@odd()
def a_branch_on_isinstance_of_a_size() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        return _OTHER_FILE["sized"](y, y.shape[2] + 1)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_branch_on_is_tensor() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(s.conv(x))
        return y * 2 if torch.is_tensor(y) else y

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_factor_drawn_by_numpy() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x)) * float(np.random.rand()), conv=conv(), bn=nn.BatchNorm2d(4)), images()


# --- sizes that coincide -----------------------------------------------------------------------------------------


@odd()
def a_vector_added_along_the_width() -> Built:
    net = TwoInputNet(
        lambda s, x, v: s.bn(s.conv(x) + s.first(torch.tanh(s.fc(v)))),
        conv=conv(),
        bn=nn.BatchNorm2d(4),
        first=nn.BatchNorm1d(4),
        fc=nn.Linear(5, 4),
    )
    return net, values(1, 3, 1, 4), values(1, 5)


@odd()
def a_matrix_added_along_height_and_width() -> Built:
    net = TwoInputNet(lambda s, x, v: s.bn(s.conv(x) + s.fc(v)), conv=conv(), bn=nn.BatchNorm2d(4), fc=nn.Linear(5, 4))
    return net, values(2, 3, 4, 4), values(4, 5)


@odd()
def one_sample_added_to_a_batch() -> Built:
    net = TwoInputNet(lambda s, x, v: s.bn(s.conv(x) + s.other(v)), conv=conv(), other=conv(), bn=nn.BatchNorm2d(4))
    return net, values(2, 3, 4, 4), values(1, 3, 1, 1)


@odd()
def linear_on_3d_where_the_channels_are_the_middle() -> Built:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), values(2, 5, 6)


@odd(
    others=lambda: [(values(2, 5, 6),)],
)
def linear_on_2d_then_run_on_3d() -> Built:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), values(2, 6)


@odd()
def linear_on_4d_with_all_sizes_equal() -> Built:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm2d(4)), values(4, 4, 4, 6)


@odd(
    others=lambda: [(values(3, 8),)],
)
def conv1d_then_run_without_a_batch_where_length_equals_channels() -> Built:
    return nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)), values(2, 3, 8)


@odd()
def conv1d_without_a_batch_where_length_equals_channels() -> Built:
    return nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)), values(3, 8)


@odd()
def conv2d_without_a_batch() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).unsqueeze(0)), conv=conv(), bn=nn.BatchNorm2d(4)), values(3, 8, 8)


@odd(
    others=lambda: [(values(8, 8, 8),)],
)
def instance_norm_then_run_without_a_batch() -> Built:
    return Net(lambda s, x: s.norm(torch.tanh(x)), norm=_instance_norm(nn.InstanceNorm2d, 8)), values(2, 8, 8, 8)


@odd()
def instance_norm_without_a_batch() -> Built:
    return Net(lambda s, x: s.norm(torch.tanh(x)), norm=_instance_norm(nn.InstanceNorm2d, 8)), values(8, 7, 8)


@odd(others=lambda: [(values(3, 8, 8),)])
def instance_norm_after_a_convolution_then_run_without_a_batch() -> Built:
    return nn.Sequential(conv(), _instance_norm(nn.InstanceNorm2d, 4)), images()


def _instance_norm(kind: Any, channels: int) -> nn.Module:
    layer = kind(channels, affine=True, track_running_stats=True)
    with torch.no_grad():
        layer.running_mean.copy_(values(channels, seed=1))
        layer.running_var.copy_(values(channels, seed=2).abs() + 0.2)
        layer.weight.copy_(values(channels, seed=3))
        layer.bias.copy_(values(channels, seed=4))
    return layer


@odd()
def batch_and_channels_swapped_where_they_are_equal() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).transpose(0, 1)), conv=conv(), bn=nn.BatchNorm2d(4)), values(4, 3, 8, 8)


@odd()
def height_where_the_channels_were_and_as_many() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).permute(0, 2, 1, 3)), conv=conv(3, 8), bn=nn.BatchNorm2d(8)), images()


@odd()
def a_view_that_cuts_the_channels_elsewhere() -> Built:
    net = Net(lambda s, x: s.bn(s.conv(x).view(x.size(0), 8, 4, 8)), conv=conv(), bn=nn.BatchNorm2d(8))
    return net, images()


@odd()
def a_view_that_moves_samples_into_channels() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).view(1, -1, 8, 8)), conv=conv(), bn=nn.BatchNorm2d(8)), images()


@odd()
def a_view_of_a_conv_as_if_channels_were_last() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x).view(-1, 4)), conv=nn.Conv1d(3, 4, 2), bn=nn.BatchNorm1d(4)), values(2, 3, 5)


@odd()
def a_squeeze_that_takes_the_batch_along() -> Built:
    net = Net(lambda s, x: s.bn(s.conv(x).squeeze().reshape(-1, 4)), conv=nn.Conv1d(3, 4, 8), bn=nn.BatchNorm1d(4))
    return net, values(1, 3, 8)


@odd()
def groups_of_channels_moved_into_the_batch() -> Built:
    net = Net(
        lambda s, x: s.bn(s.conv(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(0, 1)),
        conv=conv(3, 6),
        bn=nn.BatchNorm2d(2),
    )
    return net, images()


@odd(others=lambda: [(values(0, 3, 8, 8),)])
def a_batch_of_none() -> Built:
    return nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm2d(4)), images()


@odd(others=lambda: [(images(),)])
def folded_on_a_batch_of_none() -> Built:
    net = nn.Sequential(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    return net, values(0, 3, 8, 8)


@odd()
def one_pixel() -> Built:
    return nn.Sequential(conv(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)), values(2, 3, 1, 1)


# --- layout ------------------------------------------------------------------------------------------------------


@odd()
def a_view_after_the_batchnorm_of_a_slice_of_channels() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x)[:, :2]).view(-1), conv=conv(), bn=nn.BatchNorm2d(2)), images()


@odd()
def a_view_after_the_batchnorm_of_a_slice_of_rows() -> Built:
    return Net(lambda s, x: s.bn(s.conv(x)[:, :, 1:]).view(-1), conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_view_after_the_batchnorm_of_a_transposed_value() -> Built:
    net = Net(lambda s, x: s.bn(s.fc(x).transpose(1, 2)).view(-1), fc=nn.Linear(6, 8), bn=nn.BatchNorm1d(8))
    return net, values(2, 5, 6)


# --- layers whose own code is not what they are called for ---------------------------------------------------------


@odd()
def a_convolution_whose_forward_was_replaced() -> Built:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    net[0].forward = _twice(net[0].forward)
    return net, images()


@odd()
def a_batchnorm_whose_forward_was_replaced() -> Built:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    net[1].forward = _twice(net[1].forward)
    return net, images()


def _twice(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x) * 2


@odd()
def a_batchnorm_with_a_variance_and_no_mean() -> Built:
    net = double(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    net[1].running_mean = None
    return net, images()


@odd()
def batchnorm_after_a_group_norm_without_weights() -> Built:
    return nn.Sequential(conv(), nn.GroupNorm(2, 4, affine=False), nn.BatchNorm2d(4)), images()


@odd()
def batchnorm_after_an_instance_norm_without_weights() -> Built:
    return nn.Sequential(conv(), nn.InstanceNorm2d(4), nn.BatchNorm2d(4)), images()


@odd()
def batchnorm_after_a_layer_norm_without_weights() -> Built:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.BatchNorm1d(8)), values(3, 6)


@odd()
def a_compiled_model_inside() -> Built:
    return nn.Sequential(torch.compile(nn.Sequential(conv(), nn.BatchNorm2d(4)), backend="eager")), images()


@odd()
def a_torchscript_model_inside() -> Built:
    inner = double(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    return nn.Sequential(torch.jit.trace(inner, images())), images()


# --- forward, into the layer after --------------------------------------------------------------------------------


@odd(negative=0.0)
def max_pool_over_the_features_before_a_linear_layer() -> Built:
    net = Net(
        lambda s, x: s.fc(s.pool(s.bn(torch.tanh(x)).permute(0, 2, 3, 1))),
        bn=nn.BatchNorm2d(8),
        pool=nn.MaxPool2d(3, 1, 1),
        fc=nn.Linear(8, 5),
    )
    return net, values(2, 8, 8, 8)


@odd()
def padding_that_shifts_the_channels_before_a_convolution_by_one() -> Built:
    net = Net(
        lambda s, x: s.conv(F.pad(s.bn(torch.tanh(x)), (0, 0, 0, 0, 1, -1))), bn=nn.BatchNorm2d(3), conv=conv(padding=0)
    )
    return _without_shift(net), images()


@odd()
def a_convolution_after_the_batchnorm_whose_forward_was_replaced() -> Built:
    net = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), conv(padding=0))
    net[2].forward = _on_more(net[2].forward)
    return net, images()


def _on_more(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x + 1)


@odd()
def the_batchnorm_s_input_written_to_before_the_convolution_reads() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        before = torch.tanh(x)
        y = s.bn(before)
        before.view(-1).mul_(2)
        return s.conv(y)

    return Net(forward, bn=nn.BatchNorm2d(3), conv=conv(padding=0)), images()


@odd()
def the_batchnorm_s_output_written_to_after_the_convolution_read_it() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(torch.tanh(x))
        return s.conv(y), y.add_(1)

    return Net(forward, bn=nn.BatchNorm2d(3), conv=conv(padding=0)), images()


@odd()
def the_model_s_input_written_to_after_the_batchnorm() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(x)
        x.mul_(2)
        return s.conv(y)

    return Net(forward, bn=nn.BatchNorm2d(3), conv=conv(padding=0)), images()


@odd()
def a_convolution_whose_weight_and_input_are_the_batchnorm() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.bn(torch.tanh(x))
        return F.conv2d(y, y)

    return Net(forward, bn=nn.BatchNorm2d(3)), images()


@odd(
    others=lambda: [(values(4, 6, 6),)],
)
def linear_after_a_batchnorm_on_2d_then_run_on_3d() -> Built:
    return nn.Sequential(nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 3)), values(4, 6)


@odd()
def linear_after_a_batchnorm_on_3d_with_equal_sizes() -> Built:
    return nn.Sequential(nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 3)), values(4, 6, 6)


@odd()
def two_batchnorms_in_a_row_joined_along_the_batch_with_a_plain_value() -> Built:
    net = Net(
        lambda s, x: s.conv(torch.cat([torch.tanh(x), s.second(s.first(torch.sigmoid(x)))], 0)),
        first=nn.BatchNorm2d(3),
        second=nn.BatchNorm2d(3),
        conv=conv(padding=0),
    )
    return net, images()


@odd()
def a_batchnorm_joined_along_the_rows_with_its_own_pool() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.bn(torch.sigmoid(x))
        return s.conv(torch.cat([y, F.avg_pool2d(y, 1), torch.tanh(x)], 2))

    return Net(forward, bn=nn.BatchNorm2d(3), conv=conv(padding=0)), images()


@odd()
def a_batchnorm_into_a_zero_padded_convolution() -> Built:
    return nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), conv()), images()


@odd()
def a_batchnorm_flattened_across_samples_into_a_linear_layer() -> Built:
    net = Net(lambda s, x: s.fc(s.bn(torch.tanh(x)).view(-1, 96)), bn=nn.BatchNorm2d(3), fc=nn.Linear(96, 5))
    return net, images()


# --- outputs and calls -------------------------------------------------------------------------------------------


@odd()
def outputs_of_every_kind() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        return {"bn": s.bn(s.conv(x)), "none": None, "nested": [x, (x, None)], "number": 3}

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_batchnorm_called_by_keyword() -> Built:
    return Net(lambda s, x: s.bn(input=s.conv(input=x)), conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def the_same_value_added_to_itself_through_a_dropout() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        return s.bn(y + s.dropout(y))

    return Net(forward, conv=conv(), dropout=nn.Dropout(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_value_added_to_itself() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        return s.bn(y + y)

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)), images()


@odd()
def a_cat_with_a_repeated_part() -> Built:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.conv(x)
        return s.bn(torch.cat([y, s.other(x), y], 1))

    return Net(forward, conv=conv(), other=conv(3, 2), bn=nn.BatchNorm2d(10)), images()


# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "examples"), list(parameters()))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*jit.*")
def test_an_odd_model_keeps_its_function_or_is_refused(name: str, examples: bool) -> None:
    case = CASES[name]
    built, *inputs = case.build()
    model = built.eval() if getattr(built, "prepared", False) else double(built, negative=case.negative)
    before = _state(model)

    folding = _folded_or_refused(model, tuple(inputs) if examples else None)
    assert _state(model) == before
    if folding is None:
        return

    for batch in [tuple(inputs), tuple(inputs), *(case.others() if case.others else [])]:
        expected, raised = _outcome(copy.deepcopy(model) if _copies(model) else model, batch)
        got, error = _outcome(folding.module, batch)
        if raised is None and error is None:
            assert error_of_peak(expected, got) <= ALGEBRA
        else:  # a run that the fold refuses with a sentence of its own is safe; one that fails elsewhere is not
            assert raised is not None or str(error).startswith(("expected ", "argument ")), f"{error}"
    assert _state(model) == before


def _folded_or_refused(model: nn.Module, examples: Built | None) -> Folding | None:
    try:
        return bnfold.fold(model, examples)
    except bnfold.BnfoldError:
        return None


def _outcome(model: nn.Module, inputs: Built) -> tuple[Any, Exception | None]:
    try:
        return run(model, *inputs), None
    except Exception as error:
        return None, error


def _copies(model: nn.Module) -> bool:
    """Whether runs of the model itself may change it, so that each takes a fresh copy."""
    return not any(isinstance(part, torch.jit.ScriptModule) or "forward" in part.__dict__ for part in model.modules())


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a model holds, by value: tensors as bytes, anything else as it prints."""
    held: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for key, value in module.__dict__.items():
            if key not in ("_parameters", "_buffers", "_modules"):
                held[f"{name}:{key}"] = repr(value)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        held[name] = (
            tensor.requires_grad,
            tensor.dtype,
            tensor.stride(),
            tensor.detach().contiguous().numpy().tobytes(),
        )
    return held


def test_a_list_that_holds_itself_is_left_as_it_is() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    kept: Any = [3]
    kept.append(kept)
    model.kept = kept
    assert bnfold.fold(model, torch.ones(2, 3, 8, 8, dtype=torch.float64)).plan.summary["fold"] == 1
    assert len(kept) == 2
    assert kept[1] is kept


def test_example_inputs_that_do_not_fit_are_told_and_not_taken_for_none() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144)))
    with pytest.raises(bnfold.CaptureError, match="Sequential itself does not run on the example inputs: Input type"):
        bnfold.plan(model, torch.ones(2, 3, 8, 8))
    assert bnfold.plan(model, torch.ones(2, 3, 8, 8, dtype=torch.float64)).notes == ()
