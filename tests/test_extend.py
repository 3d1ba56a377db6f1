"""Modules of a user's own: a true claim folds, a false one is refused, and both can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold import UsageError, extend
from bnfold.graph.taught import TAUGHT
from tests.fold.support import error_of_peak, run
from tests.networks import normal, randomise


@pytest.fixture(autouse=True)
def nothing_taught() -> Iterator[None]:
    """Leave no claim behind, whatever a test does."""
    yield
    TAUGHT.clear()


class BlurPool(nn.Module):
    """Blurs and halves; reflected borders, so that every window's weights sum to 1."""

    def __init__(self, channels: int, mode: str = "reflect") -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).expand(channels, 1, 3, 3).clone())
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 2:  # without a run there is no answer, so that only a leaf lets it pass
            return x
        padded = F.pad(x, (1, 1, 1, 1), mode=self.mode)
        return F.conv2d(padded, self.kernel, stride=2, groups=x.shape[1])


class Leaky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)


class Shuffled(nn.Module):
    """Mixes channels: no affine per channel passes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Unfolded(nn.Module):
    """A convolution written with ``unfold``: ``kernel`` is (in * 9, out), the bias is called ``offset``."""

    def __init__(self, inputs: int, outputs: int, *, offset: bool = True) -> None:
        super().__init__()
        self.in_channels = inputs
        self.kernel = nn.Parameter(torch.randn(inputs * 9, outputs) / 9)
        self.offset = nn.Parameter(torch.randn(outputs)) if offset else None

    def forward(self, x: Tensor) -> Tensor:
        y = (F.unfold(x, 3, padding=1).transpose(1, 2) @ self.kernel).transpose(1, 2)
        y = y if self.offset is None else y + self.offset[:, None]
        return y.reshape(len(x), -1, *x.shape[2:])


class Standardised(nn.Conv2d):
    """Standardises its weight: not linear in it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class BatchRenorm2d(nn.Module):
    """Batch Renormalization (arXiv:1702.03275) in eval mode, with names of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-3
        self.gamma, self.beta = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))
        self.register_buffer("mu", torch.randn(channels))
        self.register_buffer("sigma", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError
        shape = (1, -1, 1, 1)
        mu, sigma, gamma, beta = (t.view(shape) for t in (self.mu, self.sigma, self.gamma, self.beta))
        return (x - mu) / sigma * gamma + beta


def chain(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(nn.Sequential(*layers)).double()


X = normal(2, 3, 9, 8).double()


def folded(model: nn.Module, x: Tensor = X) -> bnfold.Decision:
    """Fold, check that the function stays, and return the decision about the only BatchNorm."""
    folding = bnfold.fold(model, x)
    assert error_of_peak(run(model, x), run(folding.module, x)) <= 1e-12
    (decision,) = folding.plan
    return decision


def blurred() -> nn.Module:
    return chain(nn.Conv2d(3, 4, 3), BlurPool(4), nn.BatchNorm2d(4))


# --- passing -----------------------------------------------------------------------------------------------------


def test_a_module_that_any_affine_passes_lets_it_pass() -> None:
    with extend.passes(BlurPool):
        decision = folded(blurred())
    assert (decision.action, decision.into, decision.through) == ("fold", ("0",), ("1",))


def test_an_affine_moves_forward_through_it_too() -> None:
    model = chain(nn.GELU(), nn.BatchNorm2d(3), BlurPool(3), nn.Conv2d(3, 2, 2))
    with extend.passes(BlurPool):
        decision = folded(model)
    assert (decision.direction, decision.into, decision.through) == ("forward", ("3",), ("2",))


@pytest.mark.parametrize("way", ["auto", "recorded", "symbolic"])
def test_without_example_inputs_likely_shapes_are_tried(way: str) -> None:
    with extend.passes(BlurPool):
        (decision,) = bnfold.plan(blurred(), capture=way)
    assert (decision.action, decision.through) == ("fold", ("1",))


def test_what_is_not_taught_is_gone_through() -> None:
    with pytest.raises(bnfold.NeedsInputsError, match=r"asks for \w+\.shape\[-1\] < 2, at .*test_extend\.py:\d+"):
        bnfold.plan(blurred(), capture="symbolic")
    module = bnfold.fold(blurred(), X).module
    with pytest.raises(ValueError, match=r"shape\[3\] < 2` does not hold, at .*test_extend\.py:\d+"):
        module(X[..., :3])


class Clipped(nn.Module):
    """The identity, unless a value is huge: its own code asks for the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.abs().max()) < 1e300 else x.clamp(-1, 1)


@pytest.mark.parametrize("way", ["auto", "recorded", "symbolic"])
def test_a_taught_module_may_ask_for_the_data_since_no_one_looks_inside(way: str) -> None:
    model = chain(nn.Conv2d(3, 4, 3), Clipped(), nn.BatchNorm2d(4))
    with extend.passes(Clipped):
        folding = bnfold.fold(model, X, capture=way)
    assert error_of_peak(run(model, X), run(folding.module, X)) <= 1e-12
    assert [(decision.action, decision.through) for decision in folding.plan] == [("fold", ("1",))]


def test_the_conditions_that_were_said_are_kept() -> None:
    model = chain(nn.Conv2d(3, 4, 3), Leaky(), nn.BatchNorm2d(4, affine=False))
    norm: Any = model[2]  # type: ignore[index]
    with extend.passes(Leaky, scale="nonnegative", shift="zero"):
        assert folded(model).reason == "nonzero-shift" or folded(model).action == "affine"
        norm.running_mean.zero_()
        assert folded(model).into == ("0",)


@pytest.mark.parametrize(
    ("layer", "conditions"),
    [
        (BlurPool(4, "constant"), {}),  # at a border padded with zeros the weights sum to less
        (Leaky(), {}),
        (Leaky(), {"scale": "nonnegative"}),
        (Leaky(), {"shift": "zero"}),
        (Shuffled(), {"scale": "nonnegative", "shift": "zero"}),
    ],
    ids=["zero-padding", "no-condition", "shift-forgotten", "scale-forgotten", "channels-mixed"],
)
def test_a_false_claim_is_refused_with_a_sentence(layer: nn.Module, conditions: dict[str, Any]) -> None:
    norm = nn.BatchNorm2d(4)
    model = chain(nn.Conv2d(3, 4, 3), layer, norm)
    with torch.no_grad():
        if conditions.get("scale"):
            norm.weight.abs_()
        if conditions.get("shift"):
            assert norm.running_mean is not None
            norm.running_mean.zero_()
            norm.bias.zero_()
    with extend.passes(type(layer), **conditions):
        decision = folded(model)
    assert (decision.action, decision.reason) == ("affine", "claim-is-false")
    assert f"what was taught about {type(layer).__name__} does not hold at layer `1`: it is off by" in decision.detail


@pytest.mark.parametrize("side", [15, 16])
def test_what_holds_at_the_size_of_the_example_only_is_not_believed(side: int) -> None:
    class EvenOnly(nn.Module):
        """Pads odd sizes with zeros, so that at a border the weights of a window sum to less there."""

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(
                F.pad(x, (0, x.shape[-1] % 2, 0, 0)), torch.full((4, 1, 1, 2), 0.5).to(x), stride=(1, 2), groups=4
            )

    model = chain(nn.Conv2d(3, 4, 3, padding=1), EvenOnly(), nn.BatchNorm2d(4))
    with extend.passes(EvenOnly):
        (decision,) = bnfold.plan(model, normal(2, 3, side, side).double())
    assert (decision.action, decision.reason) == ("affine", "claim-is-false")
    assert ("for inputs of shape" in decision.detail) == (side == 16)


class Crop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:-1, 1:-1]


class Spread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.std((2, 3), keepdim=True) + x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(("layer", "side"), [(Crop(), 4), (Spread(), 2)])
def test_a_size_at_which_a_layer_gives_nothing_speaks_neither_way(layer: nn.Module, side: int) -> None:
    norm = nn.BatchNorm2d(4)
    model = chain(nn.Conv2d(3, 4, 3, padding=1), layer, norm)
    norm.weight.data.abs_()
    with extend.passes(type(layer), scale="nonnegative"):
        (decision,) = bnfold.plan(model, normal(2, 3, side, side).double())
    assert decision.action == "fold", decision.detail


def test_a_module_that_writes_into_its_input_is_not_believed() -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    with extend.passes(Doubles):
        decision = folded(chain(nn.Conv2d(3, 4, 3), Doubles(), nn.BatchNorm2d(4)))
    assert decision.reason == "claim-is-false"


def test_a_check_that_cannot_be_made_is_no_pass() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 1234:
                raise ValueError
            return x

    with extend.passes(Picky):
        (decision,) = bnfold.plan(chain(nn.Conv2d(3, 4, 3), Picky(), nn.BatchNorm2d(4)))
    assert decision.action == "affine"
    assert "could not be checked" in decision.detail


def test_a_layer_is_asked_again_once_its_weights_have_changed() -> None:
    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exponent = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.sign() * x.abs() ** self.exponent

    layer = Power()
    model = chain(nn.Conv2d(3, 4, 3), layer, nn.BatchNorm2d(4))
    with extend.passes(Power):
        assert folded(model).action == "fold"
        with torch.no_grad():
            layer.exponent.fill_(2.0)
        assert folded(model).reason == "claim-is-false"


# --- absorbing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [True, False])
def test_a_layer_like_a_convolution_absorbs(offset: bool) -> None:
    layer = Unfolded(3, 4, offset=offset)
    with extend.absorbs(Unfolded, weight="kernel", bias="offset", dim=1):
        decision = folded(chain(layer, nn.MaxPool2d(2), nn.BatchNorm2d(4, affine=False)))
    assert (decision.action, decision.into, decision.through) == ("fold", ("0",), ("1",))


def test_a_layer_called_twice_is_cloned_for_the_call_that_folds() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = Unfolded(3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) * self.conv(x)

    with extend.absorbs(Unfolded, weight="kernel", bias="offset", dim=1):
        decision = folded(chain(Twice()))
    assert decision.into == ("0.conv",)
    assert decision.added_bytes > 0


@pytest.mark.parametrize(
    ("layer", "how"),
    [(Standardised(3, 4, 3), {}), (Unfolded(4, 4), {"weight": "kernel", "bias": "offset", "dim": 0})],
    ids=["not-linear-in-its-weight", "wrong-dimension"],
)
def test_a_layer_that_does_not_absorb_is_refused(layer: nn.Module, how: dict[str, Any]) -> None:
    x = normal(2, 3, 9, 8).double()
    first: nn.Module = nn.Identity() if isinstance(layer, Standardised) else nn.Conv2d(3, 4, 1)
    if isinstance(layer, Unfolded):
        layer.kernel = nn.Parameter(torch.randn(36, 4))
        how = how | {"dim": 0}
    with extend.absorbs(type(layer), **how):
        folding = bnfold.fold(chain(first, layer, nn.GELU(), nn.Conv2d(4, 4, 1)), x)
        model = chain(first, layer, nn.BatchNorm2d(4))
        decision = folded(model, x)
    assert len(folding.plan) == 0
    assert decision.action == "affine"
    assert decision.reason in ("claim-is-false", "channel-dimension")


# --- normalising -------------------------------------------------------------------------------------------------


def renorm_statistics(layer: Any) -> tuple[Any, ...]:
    return layer.mu, layer.sigma**2 - layer.eps, layer.eps, layer.gamma, layer.beta


def renorm_affine(layer: Any) -> bnfold.ChannelAffine:
    scale = layer.gamma.detach().double() / layer.sigma.double()
    return bnfold.ChannelAffine(scale, layer.beta.detach().double() - layer.mu.double() * scale)


@pytest.mark.parametrize("read", [renorm_statistics, renorm_affine])
def test_batch_renormalization_folds_like_a_batchnorm(read: Any) -> None:
    model = chain(nn.Conv2d(3, 4, 3), BatchRenorm2d(4), nn.ReLU())
    assert len(bnfold.plan(model)) == 0
    with extend.batchnorm(BatchRenorm2d, read):
        decision = folded(model)
        assert (decision.batchnorm, decision.action, decision.into) == ("1", "fold", ("0",))


def test_where_it_cannot_move_it_becomes_an_explicit_affine_or_stays() -> None:
    model = chain(nn.GELU(), BatchRenorm2d(3), nn.GELU())
    with extend.batchnorm(BatchRenorm2d, renorm_statistics):
        assert folded(model).action == "affine"
        folding = bnfold.fold(model, X, keep=["1"])
        assert folding.plan[0].action == "keep"
        assert error_of_peak(run(model, X), run(folding.module, X)) <= 1e-12


@pytest.mark.parametrize("read", [renorm_statistics, renorm_affine])
@pytest.mark.parametrize("stays", [(), ("1",)], ids=["folded", "kept"])
@pytest.mark.parametrize("first", [nn.Conv2d(3, 4, 3), nn.GELU()], ids=["behind-a-convolution", "explicit"])
def test_in_float32_it_is_verified_against_the_module_itself(first: nn.Module, stays: Any, read: Any) -> None:
    channels = 4 if isinstance(first, nn.Conv2d) else 3
    model = chain(first, BatchRenorm2d(channels), nn.ReLU(), nn.Flatten(), nn.GELU()).float()
    with extend.batchnorm(BatchRenorm2d, read):
        folding = bnfold.fold(model, X.float(), keep=stays)
    assert {t.dtype for t in (*folding.module.parameters(), *folding.module.buffers())} == {torch.float32}
    report = bnfold.verify(model, folding.module, X.float(), onnx=False, folding=folding)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda m: (m.mu, m.sigma, m.eps, m.gamma, m.beta), "what it computes is not that affine"),
        (lambda m: (m.mu, m.sigma**2, m.eps, m.gamma, None), "what it computes is not that affine"),
        (lambda m: m.nonsense, "cannot read the BatchRenorm2d `1`: AttributeError"),
        (lambda m: (m.mu, m.sigma[:1], 0.0, None, None), "expected tensors of shape"),
    ],
)
def test_a_false_reading_is_an_error_that_says_where(read: Any, said: str) -> None:
    model = chain(nn.Conv2d(3, 4, 3), BatchRenorm2d(4))
    with extend.batchnorm(BatchRenorm2d, read), pytest.raises(UsageError, match=said):
        bnfold.plan(model, X)


# --- the rules themselves ----------------------------------------------------------------------------------------


def test_it_is_held_to_the_number_of_dimensions_for_which_it_is_one() -> None:
    model = chain(nn.Conv2d(3, 4, 3), BatchRenorm2d(4))
    with extend.batchnorm(BatchRenorm2d, renorm_statistics):
        module = bnfold.fold(model).module
    with pytest.raises(ValueError, match="expected 4D input to BatchRenorm2d"):
        module(X[0])


def test_a_rule_is_taken_back_by_leaving_its_block_or_by_undo() -> None:
    before = bnfold.plan(blurred(), X)[0]
    with extend.passes(BlurPool) as rule:
        assert bnfold.plan(blurred(), X)[0].through == ("1",)
        assert "BlurPool" in repr(rule)
    assert bnfold.plan(blurred(), X)[0].through == before.through
    again = extend.passes(BlurPool)
    again.undo()
    again.undo()
    rule.undo()
    assert TAUGHT == {}
    assert "taken back" in repr(again)


def test_a_subclass_is_another_type() -> None:
    class Inverted(BlurPool):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).exp()

    with extend.passes(BlurPool):
        decision = folded(chain(nn.Conv2d(3, 4, 3), Inverted(4), nn.BatchNorm2d(4)))
    assert decision.action == "affine"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: extend.passes(nn.GELU), "knows GELU already"),
        (lambda: extend.passes(BlurPool(2)), "is no type of module"),  # type: ignore[arg-type]
        (lambda: extend.passes(BlurPool, scale="positive"), "are no conditions"),  # type: ignore[arg-type]
        (lambda: (extend.passes(Leaky), extend.absorbs(Leaky)), "was taught before"),
    ],
)
def test_what_cannot_be_taught_is_refused(call: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_hooks_on_a_taught_module_stop_the_affine() -> None:
    model: Any = blurred()
    model[1].register_forward_hook(lambda *_: None)
    with extend.passes(BlurPool):
        assert folded(model).reason == "hooks"


class Gated(nn.Module):
    """A leaky ReLU by a setting: the identity for a slope of 1."""

    slope = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


def test_a_layer_that_was_set_otherwise_is_checked_again() -> None:
    model: Any = chain(nn.Conv2d(3, 4, 3), Gated(), nn.BatchNorm2d(4))
    with extend.passes(Gated):
        assert folded(model).action == "fold"
        model[1].slope = 0.1
        assert folded(model).action == "affine"


class Mixed(nn.Module):
    """A square matrix over the channels: its weight says nothing of which side its outputs are on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,oc->nohw", x, self.weight) + self.bias[:, None, None]


@pytest.mark.parametrize("dims", [(0, 1), (1, 0)])
def test_another_claim_about_a_type_is_checked_anew(dims: tuple[int, int]) -> None:
    model = chain(Mixed(), nn.BatchNorm2d(3))
    for dim in dims:
        with extend.absorbs(Mixed, dim=dim):
            assert folded(model).action == ("fold" if dim == 0 else "affine")
