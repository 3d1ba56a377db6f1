"""Ways to fold a BatchNorm wrongly: the algebra of one site redone with a mistake in it.

A *site* is a BatchNorm that bnfold folded backward into one layer. A mutant gets the site's ingredients and the right
weight and bias, in float64, and returns wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bnfold
from tests.networks import NETWORKS, built, normal

Pair = tuple[Tensor, Tensor]


def grouped_and_square() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A grouped convolution, and one with as many inputs as outputs: what some of the mutants need."""
    network = built(
        lambda: nn.Sequential(
            nn.Conv2d(4, 12, 3, groups=2),
            nn.BatchNorm2d(12),
            nn.Tanh(),
            nn.Conv2d(12, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12, eps=1e-3),
            nn.ReLU(),
            nn.Conv2d(12, 3, 1),
        )
    )
    return network, (normal(2, 4, 10, 10),)


@dataclass
class Site:
    """One folded BatchNorm: the original's layers, and the layer that took it."""

    name: str
    layer: nn.Module
    batchnorm: nn.Module
    folded: nn.Module

    def __post_init__(self) -> None:
        bn = self.batchnorm
        self.weight = self.layer.weight.detach().double()
        channels = self.weight.shape[0]
        zeros = torch.zeros(channels, dtype=torch.float64)
        self.bias = zeros if self.layer.bias is None else self.layer.bias.detach().double()
        self.mean, self.var = bn.running_mean.double(), bn.running_var.double()
        self.gamma = torch.ones_like(zeros) if bn.weight is None else bn.weight.detach().double()
        self.beta = zeros if bn.bias is None else bn.bias.detach().double()
        self.eps = bn.eps

    @property
    def scale(self) -> Tensor:
        return self.gamma / (self.var + self.eps).sqrt()

    def rows(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.weight.ndim - 1))

    def with_(self, *, scale: Tensor | None = None, shift: Tensor | None = None, bias: Tensor | None = None) -> Pair:
        """Return weight and bias for another scale, shift (beta - mean * scale) or convolution bias."""
        scale = self.scale if scale is None else scale
        shift = self.beta - self.mean * scale if shift is None else shift
        return self.weight * self.rows(scale), (self.bias if bias is None else bias) * scale + shift


def sites_of(model: nn.Module, folding: bnfold.Folding) -> list[Site]:
    """Return the sites of a folding that can be mutated: those that one layer took, under its own name."""
    layers = dict(model.named_modules())
    taken = dict(folding.module.named_modules())
    found = []
    for decision in folding.plan:
        if decision.action != "fold" or decision.direction != "backward" or len(decision.into) != 1:
            continue
        name = decision.into[0]
        layer, bn = layers.get(name), layers.get(decision.batchnorm)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) and bn is not None and name in taken:
            site = Site(decision.batchnorm, layer, bn, taken[name])
            weight = site.with_()[0]
            if torch.allclose(site.folded.weight.double(), weight, rtol=1e-6):  # else a clone of the layer took it
                found.append(site)
    return found


def apply(mutant: Callable[[Site], Pair | None], site: Site) -> bool:
    """Put a mutant's weight and bias into the folded layer; return whether it applies to this site at all."""
    wrong = mutant(site)
    if wrong is None:
        return False
    weight, bias = wrong
    right_weight, right_bias = site.with_()
    if torch.equal(weight, right_weight) and torch.equal(bias, right_bias):
        return False
    layer = site.folded
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    return True


def _one(values: Tensor, index: int, value: Tensor | float) -> Tensor:
    changed = values.clone()
    changed[index] = value
    return changed


def _loudest(site: Site) -> int:
    """Return the channel with the largest scale: one that matters."""
    return int(site.scale.abs().argmax())


def _spatial(site: Site) -> bool:
    return site.weight.ndim > 2 and site.weight.shape[-1] > 1


def _grouped(site: Site) -> int:
    return getattr(site.layer, "groups", 1)


def _rounded(pair: Pair, dtype: torch.dtype) -> Pair:
    return pair[0].to(dtype).double(), pair[1].to(dtype).double()


def eps_forgotten(s: Site) -> Pair:
    return s.with_(scale=s.gamma / s.var.sqrt())


def eps_of_another_default(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var + (1e-3 if s.eps != 1e-3 else 1e-5)).sqrt())


def eps_ten_times(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var + 10 * s.eps).sqrt())


def eps_outside_the_root(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var.sqrt() + s.eps))


def eps_added_twice(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var + 2 * s.eps).sqrt())


def unbiased_for_biased_variance(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var * 4096 / 4095 + s.eps).sqrt())


def variance_taken_for_deviation(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var + s.eps))


def variance_multiplied(s: Site) -> Pair:
    return s.with_(scale=s.gamma * (s.var + s.eps).sqrt())


def variance_clamped(s: Site) -> Pair:
    return s.with_(scale=s.gamma / (s.var.clamp_min(0.5) + s.eps).sqrt())


def gamma_forgotten(s: Site) -> Pair:
    return s.with_(scale=(s.var + s.eps).rsqrt())


def gamma_twice(s: Site) -> Pair:
    return s.with_(scale=s.scale * s.gamma)


def gamma_without_sign(s: Site) -> Pair:
    return s.with_(scale=s.scale.abs())


def gamma_of_one_channel_negated(s: Site) -> Pair:
    i = _loudest(s)
    return s.with_(scale=_one(s.scale, i, -s.scale[i]))


def gamma_shifted_by_a_channel(s: Site) -> Pair:
    return s.with_(scale=s.gamma.roll(1) / (s.var + s.eps).sqrt())


def gamma_of_one_channel_off_by_three_in_ten_thousand(s: Site) -> Pair:
    i = _loudest(s)
    return s.with_(scale=_one(s.scale, i, s.scale[i] * (1 + 3e-4)))


def gamma_of_one_channel_zero(s: Site) -> Pair:
    return s.with_(scale=_one(s.scale, _loudest(s), 0.0))


def scale_reversed(s: Site) -> Pair:
    return s.with_(scale=s.scale.flip(0))


def scale_averaged(s: Site) -> Pair:
    return s.with_(scale=s.scale.mean().expand_as(s.scale).clone())


def scale_inverted(s: Site) -> Pair:
    return s.with_(scale=1 / s.scale)


def scale_by_a_fast_reciprocal(s: Site) -> Pair:
    return s.with_(scale=s.scale * (1 + 1e-4))


def scale_in_half_precision(s: Site) -> Pair:
    return s.with_(scale=s.scale.half().double())


def scale_on_the_input_channels(s: Site) -> Pair | None:
    if s.weight.ndim < 2 or s.weight.shape[0] != s.weight.shape[1]:
        return None
    _, bias = s.with_()
    return s.weight * s.scale.reshape(1, -1, *[1] * (s.weight.ndim - 2)), bias


def scale_left_out_of_the_weight(s: Site) -> Pair:
    return s.weight, s.with_()[1]


def beta_forgotten(s: Site) -> Pair:
    return s.with_(shift=-s.mean * s.scale)


def beta_negated(s: Site) -> Pair:
    return s.with_(shift=-s.beta - s.mean * s.scale)


def beta_scaled_too(s: Site) -> Pair:
    return s.with_(shift=(s.beta - s.mean) * s.scale)


def beta_shifted_by_a_channel(s: Site) -> Pair:
    return s.with_(shift=s.beta.roll(1) - s.mean * s.scale)


def mean_forgotten(s: Site) -> Pair:
    return s.with_(shift=s.beta)


def mean_added(s: Site) -> Pair:
    return s.with_(shift=s.beta + s.mean * s.scale)


def mean_not_scaled(s: Site) -> Pair:
    return s.with_(shift=s.beta - s.mean)


def mean_shifted_by_a_channel(s: Site) -> Pair:
    return s.with_(shift=s.beta - s.mean.roll(1) * s.scale)


def shift_of_one_channel_off_by_a_thousandth(s: Site) -> Pair:
    i = _loudest(s)
    shift = s.beta - s.mean * s.scale
    return s.with_(shift=_one(shift, i, shift[i] + 1e-3))


def shift_in_half_precision(s: Site) -> Pair:
    return s.with_(shift=(s.beta - s.mean * s.scale).half().double())


def bias_of_the_layer_forgotten(s: Site) -> Pair:
    return s.with_(bias=torch.zeros_like(s.bias))


def bias_of_the_layer_not_scaled(s: Site) -> Pair:
    weight, _ = s.with_()
    return weight, s.bias + s.beta - s.mean * s.scale


def bias_left_as_it_was(s: Site) -> Pair:
    return s.with_()[0], s.bias


def weight_in_half_precision(s: Site) -> Pair:
    return _rounded(s.with_(), torch.float16)


def weight_in_bfloat16(s: Site) -> Pair:
    return _rounded(s.with_(), torch.bfloat16)


def weight_through_a_factor_in_half_precision(s: Site) -> Pair:
    return s.weight.half().double() * s.rows(s.scale), s.with_()[1]


def weight_of_one_tap_zero(s: Site) -> Pair:
    weight, bias = s.with_()
    flat = weight.flatten().clone()
    flat[int(flat.abs().argmax())] = 0
    return flat.reshape(weight.shape), bias


def weight_flipped_in_space(s: Site) -> Pair | None:
    weight, bias = s.with_()
    return (weight.flip(-1), bias) if _spatial(s) else None


def weight_transposed_in_space(s: Site) -> Pair | None:
    weight, bias = s.with_()
    return (weight.transpose(-1, -2).contiguous(), bias) if _spatial(s) and s.weight.ndim > 3 else None


def weight_rows_swapped(s: Site) -> Pair:
    weight, bias = s.with_()
    order = [1, 0, *range(2, len(weight))]
    return weight[order], bias


def weight_without_its_last_channel(s: Site) -> Pair:
    weight, bias = s.with_()
    return torch.cat([weight[:-1], s.weight[-1:]]), bias


def groups_taken_for_one_another(s: Site) -> Pair | None:
    groups = _grouped(s)
    if groups == 1:
        return None
    per = len(s.scale) // groups
    mixed = s.scale.reshape(groups, per).roll(1, 0).flatten()
    return s.with_(scale=mixed)


def groups_scaled_as_if_interleaved(s: Site) -> Pair | None:
    groups = _grouped(s)
    if groups in (1, len(s.scale)):
        return None
    return s.with_(scale=s.scale.reshape(groups, -1).t().flatten())


def affine_applied_twice(s: Site) -> Pair:
    weight, bias = s.with_()
    shift = s.beta - s.mean * s.scale
    return weight * s.rows(s.scale), bias * s.scale + shift


def affine_not_applied(s: Site) -> Pair:
    return s.weight, s.bias


def affine_inverted(s: Site) -> Pair:
    return s.weight / s.rows(s.scale), (s.bias - s.beta) / s.scale + s.mean


MUTANTS: dict[str, Callable[[Site], Pair | None]] = {
    name: function
    for name, function in list(globals().items())
    if callable(function) and getattr(function, "__annotations__", {}).get("s") == "Site"
}

EVERY = {**NETWORKS, "grouped-and-square": grouped_and_square}
FULL = (
    "seed",
    "vgg",
    "lenet",
    "resnet18",
    "resnet50",
    "repvgg",
    "inverted-residual",
    "pre-activation",
    "two-inputs",
    "conv1d",
    "conv3d",
    "perceptron",
    "grouped-and-square",
)


def picks(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[int]:
    """Return which sites of a network to mutate: the first, the middle and the last."""
    count = len(sites_of(model, bnfold.fold(model, inputs)))
    return sorted({0, count // 2, count - 1})
