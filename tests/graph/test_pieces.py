"""Models that decide on data: the parts of them that can be recorded, runs of neighbours in a Sequential among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnfold
from bnfold.fold.api import Folding
from tests.fold.support import ALGEBRA, Net, assert_same_function, double, error_of_peak, run, values

IMAGE = (2, 3, 8, 8)


class Asks(nn.Module):
    """Decides on the values of its input: nothing that holds it can be recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else x * 0.5 - 1


def pair(channels: int, more: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, more, 3, padding=1), nn.BatchNorm2d(more)


def folded(model: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """Fold in pieces, and compare on the inputs and on others that take other ways through the model."""
    folding = bnfold.fold(model, inputs, **options)
    assert folding.plan.capture == "piecewise"
    for scale in (1.0, -1.0, 3.0):
        assert_same_function(model, folding, *(scale * value for value in inputs))
    return folding


def actions(folding: Folding) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {d.batchnorm: (d.action, d.into) for d in folding.plan}


# --- neighbours in a Sequential ---------------------------------------------------------------------------------------


def test_neighbours_in_a_sequential_are_one_piece() -> None:
    features = nn.Sequential(*pair(3, 4), Asks(), *pair(4, 5), nn.ReLU())
    model = double(Net(lambda s, x: s.features(x), features=features))
    folding = folded(model, values(*IMAGE))
    assert actions(folding) == {
        "features.1": ("fold", ("features.0",)),
        "features.4": ("fold", ("features.3",)),
    }
    assert folding.plan[1].detail == "features.4 folded into features.3."
    assert folding.plan.notes == ("captured in 2 pieces: features.0 to features.1 and features.3 to features.4",)
    assert len(folding.module.features) == 6
    assert isinstance(folding.module.features, nn.Sequential)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folding.module.modules())
    assert_same_function(model, folding, values(5, 3, 6, 7))  # sizes stay free


def test_what_stands_in_a_place_keeps_its_plain_attributes() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        x = s.features(x)
        return x * s.features[1].num_features + s.features[0].out_channels

    model = double(Net(forward, features=nn.Sequential(*pair(3, 4), Asks())))
    folded(model, values(*IMAGE))


def test_the_model_itself_may_be_the_sequential() -> None:
    model = double(nn.Sequential(*pair(3, 4), nn.ReLU(), Asks(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert actions(folded(model, values(*IMAGE))) == {"1": ("fold", ("0",)), "5": ("fold", ("4",))}


def test_runs_hold_blocks_and_runs_in_what_cannot_be_recorded_are_found() -> None:
    block = nn.Sequential(*pair(4, 4), nn.ReLU(inplace=True))
    mixed = nn.Sequential(*pair(4, 4), Asks(), *pair(4, 4))
    features = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), block, mixed)
    model = double(Net(lambda s, x: s.features(x), features=features))
    assert actions(folded(model, values(*IMAGE))) == {
        "features.1.0": ("fold", ("features.0",)),
        "features.2.1": ("fold", ("features.2.0",)),
        "features.3.1": ("fold", ("features.3.0",)),
        "features.3.4": ("fold", ("features.3.3",)),
    }


def test_a_block_beside_layers_without_weights_stays_in_its_own_place() -> None:
    features = nn.Sequential(nn.ReLU(), nn.Sequential(*pair(3, 4)), nn.Dropout(), Asks())
    model = double(Net(lambda s, x: s.features(x), features=features))
    folding = folded(model, values(*IMAGE))
    assert "features.1.0.weight" in folding.module.state_dict()
    assert isinstance(folding.module.features[0], nn.ReLU)


def test_one_activation_in_several_places() -> None:
    relu = nn.ReLU(inplace=True)
    features = nn.Sequential(*pair(3, 4), relu, *pair(4, 4), relu, Asks(), relu, *pair(4, 4))
    model = double(Net(lambda s, x: s.features(x), features=features))
    assert {action for action, _ in actions(folded(model, values(*IMAGE))).values()} == {"fold"}


def test_a_call_without_a_value_does_not_use_a_missing_bias() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        return s.features(F.interpolate(x, size=None, scale_factor=2.0))

    features = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), Asks())
    assert {d.action for d in folded(double(Net(forward, features=features)), values(*IMAGE)).plan} == {"fold"}


def test_a_convolution_in_several_places() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    features = nn.Sequential(conv, nn.BatchNorm2d(4), Asks(), nn.BatchNorm2d(4), conv, Asks(), *pair(4, 4), conv)
    model = double(Net(lambda s, x: s.features(s.stem(x)), stem=nn.Conv2d(3, 4, 1), features=features))
    assert actions(folded(model, values(*IMAGE)))["features.7"] == ("fold", ("features.6",))


def test_keep_and_overflow_name_layers_of_a_run() -> None:
    model = double(Net(lambda s, x: s.features(x), features=nn.Sequential(*pair(3, 4), Asks(), *pair(4, 5))))
    folding = folded(model, values(*IMAGE), keep=["features.4"])
    assert actions(folding) == {"features.1": ("fold", ("features.0",)), "features.4": ("keep", ())}
    with torch.no_grad():
        model.features[4].weight.fill_(1e300)
        model.features[3].weight.mul_(1e300)
    folding = bnfold.fold(model, values(*IMAGE))
    assert {d.batchnorm: d.reason for d in folding.plan} == {"features.1": None, "features.4": "weight-not-finite"}


def test_denormals_are_counted_where_a_run_stands() -> None:
    model = double(Net(lambda s, x: s.features(x), features=nn.Sequential(*pair(3, 4), Asks()))).float()
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] = 1e-40  # was there before
    assert bnfold.fold(model, values(*IMAGE).float()).denormals() == {}


def _reads_inside(s: Any, x: Tensor) -> Any:
    return s.features(x) + s.features[0](x).mean()


def _calls_forward_inside(s: Any, x: Tensor) -> Any:
    return s.features(x) + s.features[1].forward(x[:, :1].repeat(1, 4, 1, 1)).mean()


def _reads_a_weight(s: Any, x: Tensor) -> Any:
    return s.features(x) + F.conv2d(x, s.features[0].weight, padding=1)


def _views_a_weight(s: Any, x: Tensor) -> Any:
    return s.features(x) * s.features[0].weight.data.mean()


def _reads_inside_on_other_values(s: Any, x: Tensor) -> Any:
    y = s.features(x)
    return y + s.features[0](x) if float(x[0, 0, 0, 0]) > -50 else y


def _goes_by_itself(s: Any, x: Tensor) -> Any:
    for layer in s.features:
        x = layer(x)
    return x


@pytest.mark.parametrize(
    "forward",
    [
        _reads_inside,
        _calls_forward_inside,
        _reads_a_weight,
        _views_a_weight,
        _reads_inside_on_other_values,
        _goes_by_itself,
    ],
)
@pytest.mark.parametrize("asks", [True, False], ids=["a run", "a part"])
def test_who_else_uses_a_layer_forbids_the_piece(forward: Callable[..., Any], asks: bool) -> None:
    features = nn.Sequential(*pair(3, 4), *([Asks()] if asks else []))

    def whole(s: Any, x: Tensor) -> Any:
        s.stem(x)
        y = forward(s, x)
        return y if float(y.sum()) > 0 else y - 1

    model = double(Net(whole, features=features, stem=nn.Sequential(*pair(3, 3))))
    x = values(*IMAGE)
    x[0, 0, 0, 0] = -100.0  # in another order of the values, which is tried too, it stands elsewhere
    folding = bnfold.fold(model, x)
    assert actions(folding) == {"stem.1": ("fold", ("stem.0",)), "features.1": ("affine", ())}
    assert_same_function(model, folding, x)
    assert_same_function(model, folding, x + 200)


def test_a_subclass_with_a_forward_of_its_own_has_no_runs() -> None:
    class Doubles(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            for layer in self:
                x = layer(x) * 2
            return x

    model = double(
        Net(lambda s, x: s.stem(s.body(x)), body=Doubles(*pair(3, 4), Asks()), stem=nn.Sequential(*pair(4, 4)))
    )
    assert actions(folded(model, values(*IMAGE))) == {"stem.1": ("fold", ("stem.0",)), "body.1": ("affine", ())}


def test_a_layer_with_hooks_keeps_them_in_a_run() -> None:
    features = nn.Sequential(*pair(3, 4), *pair(4, 4), Asks())
    model = double(Net(lambda s, x: s.features(x), features=features))
    model.features[0].register_forward_hook(lambda _module, _args, output: output * 2)
    folding = bnfold.fold(model, values(*IMAGE))
    assert actions(folding)["features.3"] == ("fold", ("features.2",))
    assert actions(folding)["features.1"][0] != "fold"
    assert error_of_peak(run(model, values(*IMAGE)), run(folding.module, values(*IMAGE))) <= ALGEBRA


def test_a_sequential_with_a_hook_that_calls_its_layers_has_no_runs() -> None:
    model = double(
        Net(
            lambda s, x: s.features(s.stem(x)),
            features=nn.Sequential(*pair(4, 4), Asks()),
            stem=nn.Sequential(*pair(3, 4)),
        )
    )
    model.features.register_forward_hook(lambda module, args, output: output + module[0](args[0]))
    folding = bnfold.fold(model, values(*IMAGE))
    assert actions(folding) == {"stem.1": ("fold", ("stem.0",)), "features.1": ("affine", ())}
    assert error_of_peak(run(model, values(*IMAGE)), run(folding.module, values(*IMAGE))) <= ALGEBRA


# --- pieces are compared in the model's own run -----------------------------------------------------------------------


class Switched(nn.Module):
    """Does what the model that holds it has told it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = pair(3, 3)
        self.inner = nn.Sequential(*pair(3, 3))
        self.twice = False

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        y = self.bn(self.conv(x))
        return self.bn(self.conv(y)) if self.twice else y


def test_a_part_that_its_caller_switches_is_no_piece_and_its_parts_are() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        s.part.twice = float(x.sum()) > -1e30
        return s.part(x)

    model = double(Net(forward, part=Switched()))
    assert actions(folded(model, values(*IMAGE))) == {
        "part.inner.1": ("fold", ("part.inner.0",)),
        "part.bn": ("affine", ()),
    }


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(*pair(3, 3))

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] > 6:
            x = x[..., :-1]
        return self.block(x)


@pytest.mark.parametrize("check", [True, False])
def test_a_piece_that_refuses_a_size_of_the_model_s_own_calls_is_none(check: bool) -> None:
    def forward(s: Any, x: Tensor) -> Any:
        x = s.part(x)
        while float(x.abs().max()) > 0 and x.shape[-1] > 4:
            x = s.part(x)[..., 1:]
        return x

    model = double(Net(forward, part=Small()))
    folding = folded(model, values(*IMAGE), check=check)
    assert actions(folding) == {"part.block.1": ("fold", ("part.block.0",))}
    assert list(folding.captured.pieces) == ["part.block"]


def test_the_comparison_is_timed_and_left_out_on_request() -> None:
    model = double(Net(lambda s, x: s.features(x), features=nn.Sequential(*pair(3, 4), Asks())))
    assert bnfold.fold(model, values(*IMAGE)).seconds["check"] > 0
    assert "check" not in bnfold.fold(model, values(*IMAGE), check=False).seconds


def test_where_there_is_no_piece_the_message_names_the_line() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = pair(3, 3)

        def forward(self, x: Tensor) -> Any:
            return self.bn(self.conv(x)) if bool(x.sum() > 0) else x

    model = double(Net(lambda s, x: s.part(x), part=Mixed()))
    for way in ("auto", "piecewise"):
        with pytest.raises(bnfold.CaptureError, match=r"test_pieces\.py:\d+") as caught:
            bnfold.fold(model, values(*IMAGE), capture=way)
        assert str(caught.value).count("test_pieces.py") == 1
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(
            "Put each convolution and its BatchNorm into an nn.Sequential of their own, which then folds by itself."
        )


# --- a detector -------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Backbone, proposals by a threshold, and a head that is called for each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*pair(3, 6), nn.ReLU(), nn.MaxPool2d(2), *pair(6, 6), nn.ReLU())
        self.score = nn.Conv2d(6, 1, 1)
        self.refine = nn.Sequential(*pair(6, 6), Asks(), *pair(6, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classes = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            features = self.backbone(image[None])
            scores = self.score(features)[0, 0]
            best = float(scores.max())
            places = (scores > best - 1).nonzero()[:5]
            answers = []
            for row, column in places.tolist():
                crop = features[..., max(row - 2, 0) : row + 3, max(column - 1, 0) : column + 3]
                answers.append(self.classes(self.refine(crop)))
            found.append({"places": places, "classes": torch.cat(answers)})
        return found


def test_a_detector_with_a_loop_over_what_it_found_folds_whole() -> None:
    model = double(Detector())
    images = [values(3, 16, 16), values(3, 12, 20, seed=5)]
    folding = bnfold.fold(model, (images,))
    assert folding.plan.capture == "piecewise"
    assert actions(folding) == {
        "backbone.1": ("fold", ("backbone.0",)),
        "backbone.5": ("fold", ("backbone.4",)),
        "refine.1": ("fold", ("refine.0",)),
        "refine.4": ("fold", ("refine.3",)),
        "classes.2": ("fold", ("classes.1",)),
    }
    for given in (images, [values(3, 18, 14, seed=seed) for seed in range(3)]):
        assert error_of_peak(run(model, given), run(folding.module, given)) <= ALGEBRA


# The others are repetitions.
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 12))])
def test_random_sequentials_of_layers_blocks_and_questions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    def layers(depth: int) -> list[nn.Module]:
        found: list[nn.Module] = []
        for _ in range(3 + pick(4)):
            kind = pick(7 if depth else 6)
            if kind < 5:
                one = (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3, 1, 1), Asks())[kind]
                found.append(one)
            elif kind == 5:
                found += pair(4, 4)
            else:
                found.append(nn.Sequential(*layers(depth - 1)))
        return found

    model = double(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Asks(), *layers(2)), seed=seed)
    folding = folded(model, values(2, 3, 6, 6, seed=seed))
    assert len(folding.plan) == sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
