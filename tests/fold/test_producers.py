"""Every layer with weights that may stand before a BatchNorm takes it, as a graph was traced and as it was exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bnfold
from tests.fold.support import Net, double, error_of_peak, folds, run, values

Built = tuple[nn.Module, Tensor]
WAYS = ("symbolic", "export")
CASES: dict[str, Callable[[], Built]] = {}
REFUSED: dict[str, tuple[str, Callable[[], Built]]] = {}


def image(channels: int = 4, dims: int = 2, side: int = 6) -> Tensor:
    return values(2, channels, *[side] * dims)


def words(*shape: int) -> Tensor:
    return torch.randint(0, 10, shape, generator=torch.Generator().manual_seed(1))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(values(*shape, seed=5))


def norm(dims: int, channels: int) -> nn.Module:
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels)


def _convolutions(d: int) -> None:
    conv, transposed = getattr(nn, f"Conv{d}d"), getattr(nn, f"ConvTranspose{d}d")
    for groups in (1, 2, 4):
        CASES[f"conv{d}d in {groups} groups"] = lambda groups=groups: (  # type: ignore[misc]
            nn.Sequential(conv(4, 8, 3, groups=groups, bias=groups > 1), norm(d, 8)),
            image(dims=d),
        )
        CASES[f"transposed conv{d}d in {groups} groups"] = lambda groups=groups: (  # type: ignore[misc]
            nn.Sequential(
                transposed(4, 8, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=groups > 1), norm(d, 8)
            ),
            image(dims=d),
        )
    CASES[f"transposed conv{d}d, depthwise"] = lambda: (
        nn.Sequential(transposed(4, 4, 3, groups=4), norm(d, 4)),
        image(dims=d),
    )
    function = getattr(F, f"conv_transpose{d}d")
    CASES[f"transposed conv{d}d as a function"] = lambda: (
        Net(lambda s, x: s.bn(function(x, s.w, None, 2, groups=2)), w=weight(4, 3, *[3] * d), bn=norm(d, 6)),
        image(dims=d),
    )


for _dims in (1, 2, 3):
    _convolutions(_dims)


def case(name: str, forward: Callable[[Any, Any], Any], x: Tensor, **parts: Any) -> None:
    CASES[name] = lambda: (Net(forward, **parts), x)


case("linear on (N, C)", lambda s, x: s.bn(s.fc(x)), values(4, 5), fc=nn.Linear(5, 6), bn=norm(1, 6))
case(
    "linear on (N, L, C), transposed",
    lambda s, x: s.bn(s.fc(x).transpose(1, 2)),
    values(4, 7, 5),
    fc=nn.Linear(5, 6),
    bn=norm(1, 6),
)
case(
    "linear on (N, H, W, C), permuted",
    lambda s, x: s.bn(s.fc(x).permute(0, 3, 1, 2)),
    values(2, 3, 4, 5),
    fc=nn.Linear(5, 6),
    bn=norm(2, 6),
)
case(
    "linear on (N, L, C), flattened",
    lambda s, x: s.bn(s.fc(x).flatten(0, 1)),
    values(4, 7, 5),
    fc=nn.Linear(5, 6, bias=False),
    bn=norm(1, 6),
)
case("embedding of (N,)", lambda s, x: s.bn(s.table(x)), words(7), table=nn.Embedding(10, 6), bn=norm(1, 6))
case(
    "embedding of (N, L), with padding",
    lambda s, x: s.bn(s.table(x).transpose(1, 2)),
    words(3, 7),
    table=nn.Embedding(10, 6, padding_idx=0),
    bn=norm(1, 6),
)
case("embedding as a function", lambda s, x: s.bn(F.embedding(x, s.w)), words(7), w=weight(10, 6), bn=norm(1, 6))
case(
    "embedding whose weight is also the last layer's",
    lambda s, x: F.linear(torch.tanh(s.bn(s.table(x))), s.table.weight),
    words(7),
    table=nn.Embedding(10, 6),
    bn=norm(1, 6),
)
case("group norm", lambda s, x: s.bn(s.gn(x)), image(), gn=nn.GroupNorm(2, 4), bn=norm(2, 4))
case(
    "group norm as a function",
    lambda s, x: s.bn(F.group_norm(x, 2, s.w, s.b)),
    image(),
    w=weight(4),
    b=weight(4),
    bn=norm(2, 4),
)
case("layer norm", lambda s, x: s.bn(s.ln(x)), values(4, 6), ln=nn.LayerNorm(6), bn=norm(1, 6))
case(
    "layer norm of (N, L, C)",
    lambda s, x: s.bn(s.ln(x).transpose(1, 2)),
    values(4, 5, 6),
    ln=nn.LayerNorm(6),
    bn=norm(1, 6),
)
case(
    "layer norm as a function",
    lambda s, x: s.bn(torch.layer_norm(x, (6,), s.w)),
    values(4, 6),
    w=weight(6),
    bn=norm(1, 6),
)
case("instance norm", lambda s, x: s.bn(s.n(x)), image(), n=nn.InstanceNorm2d(4, affine=True), bn=norm(2, 4))
case("a parameter", lambda s, x: x + s.bn(s.w * 2), image(), w=weight(2, 4, 6, 6), bn=norm(2, 4))
case(
    "another BatchNorm",
    lambda s, x: s.bn(s.first(s.conv(x))),
    image(),
    conv=nn.Conv2d(4, 4, 3),
    first=norm(2, 4),
    bn=norm(2, 4),
)
case(
    "weight norm",
    lambda s, x: s.bn(s.conv(x)),
    image(),
    conv=parametrizations.weight_norm(nn.Conv2d(4, 5, 3)),
    bn=norm(2, 5),
)
case(
    "spectral norm",
    lambda s, x: s.bn(s.conv(x)),
    image(),
    conv=parametrizations.spectral_norm(nn.Conv2d(4, 5, 3)),
    bn=norm(2, 5),
)
case(
    "an orthogonal weight",
    lambda s, x: s.bn(s.fc(x)),
    values(4, 5),
    fc=parametrizations.orthogonal(nn.Linear(5, 5)),
    bn=norm(1, 5),
)
case(
    "a weight that is computed from parameters",
    lambda s, x: s.bn(F.conv2d(x, s.w - s.w.mean((1, 2, 3), keepdim=True))),
    image(),
    w=weight(5, 4, 3, 3),
    bn=norm(2, 5),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_batchnorm_folds_into_it(name: str, way: str) -> None:
    model, x = CASES[name]()
    folding = folds(double(model), x, capture=way)
    assert {decision.action for decision in folding.plan} == {"fold"}, folding.plan[0].detail


REFUSED["linear on (N, L, C), a BatchNorm over L"] = (
    "channel-dimension",
    lambda: (nn.Sequential(nn.Linear(5, 6), norm(1, 7)), values(4, 7, 5)),
)
REFUSED["the same, and L equals C"] = (
    "channel-dimension",
    lambda: (nn.Sequential(nn.Linear(5, 7), norm(1, 7)), values(4, 7, 5)),
)
REFUSED["layer norm, a BatchNorm over L"] = (
    "channel-dimension",
    lambda: (nn.Sequential(nn.LayerNorm(6), norm(1, 5)), values(4, 5, 6)),
)
REFUSED["layer norm over two dimensions"] = (
    "unknown-op",
    lambda: (nn.Sequential(nn.LayerNorm((5, 6)), norm(1, 5)), values(4, 5, 6)),
)
REFUSED["a weight that is computed from the input"] = (
    "computed-weight",
    lambda: (
        Net(lambda s, x: s.bn(F.conv2d(x, s.w * x.mean())), w=weight(5, 4, 3, 3), bn=norm(2, 5)),
        image(),
    ),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_it_does_not_fold(name: str, way: str) -> None:
    reason, build = REFUSED[name]
    model, x = build()
    folding = folds(double(model), x, capture=way)
    assert [(decision.action, decision.reason) for decision in folding.plan] == [("affine", reason)]


@pytest.mark.parametrize("way", WAYS)
def test_an_embedding_that_renormalises_its_weight_when_called_does_not_fold(way: str) -> None:
    model = double(nn.Sequential(nn.Embedding(10, 6, max_norm=0.5), norm(1, 6)))
    (decision,) = bnfold.plan(model, (words(7),), capture=way)  # a run would change the model
    assert decision.action == "affine"


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norms_live_in_hooks_and_are_refused(wrap: Any) -> None:
    model = double(nn.Sequential(wrap(nn.Conv2d(4, 5, 3)), norm(2, 5)))
    folding = folds(model, image())
    assert [(decision.action, decision.reason) for decision in folding.plan] == [("affine", "hooks")]
    assert "carries hooks" in folding.plan[0].detail


# --- other spellings of a BatchNorm -----------------------------------------------------------------------------------


def native(x: Tensor, bn: nn.BatchNorm2d) -> Any:
    return torch.native_batch_norm(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps)


SPELLINGS: dict[str, Any] = {
    "native": lambda x, bn: native(x, bn)[0],
    "aten native": lambda x, bn: torch.ops.aten.native_batch_norm(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps
    )[0],
    "aten no training": lambda x, bn: torch.ops.aten._native_batch_norm_legit_no_training(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, 0.1, bn.eps
    )[0],
    "aten packet": lambda x, bn: torch.ops.aten.batch_norm(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, True
    ),
}


class Spelled(nn.Module):
    def __init__(self, spelling: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.spelling = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), spelling

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.spelling(self.conv(x), self.bn))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_the_operators_of_decomposed_graphs_fold(spelling: str, capture: str) -> None:
    net, x = double(Spelled(SPELLINGS[spelling])), values(2, 3, 8, 8)
    folding = bnfold.fold(net, x, capture=capture)
    into = ("conv",) if capture == "symbolic" else ("conv2d",)
    assert [(d.batchnorm, d.action, d.into) for d in folding.plan] == [("bn", "fold", into)]
    assert error_of_peak(run(net, x), run(folding.module, x)) <= 1e-12


def test_one_whose_saved_statistics_are_read_is_left() -> None:
    net, x = double(Spelled(lambda x, bn: native(x, bn)[0] + native(x, bn)[1].sum())), values(2, 3, 8, 8)
    folding = bnfold.fold(net, x)
    assert "is read for more than its output, and stays as it is." in folding.plan.notes[0]
    assert torch.equal(run(net, x), run(folding.module, x))


def test_a_normalisation_is_told_in_words() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.LayerNorm(7), nn.BatchNorm2d(4)
    (decision,) = folds(double(nn.Sequential(*layers)), values(2, 3, 9, 9)).plan
    assert decision.reason == "channel-dimension"
    assert "normalisation `1` has its channels in another dimension" in decision.detail
