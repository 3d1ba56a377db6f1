"""The exact affine: its bits against torch's kernel, its value against rational arithmetic."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import isqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnfold import UsageError, affine_of
from bnfold.affine import (
    ChannelAffine,
    affine_of_statistics,
    affines_of_statistics,
    exact_terms,
    fused_multiply_add,
    terms_by_formula,
)

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def differing(first: Tensor, second: Tensor) -> int:
    """Count the elements whose bits differ; a NaN is a NaN."""
    assert first.shape == second.shape
    assert first.dtype == second.dtype
    bits = BITS[first.dtype]
    same = first.contiguous().view(bits) == second.contiguous().view(bits)
    return int((~(same | (first.isnan() & second.isnan()))).sum())


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def layer_of(seed: int, channels: int, *, weighted: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Statistics and parameters over many magnitudes, with signs."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(channels, generator=generator, dtype=torch.float64)

    layer: dict[str, Any] = {
        "running_mean": normal() * 3,
        "running_var": (normal() * 2).exp(),
        "weight": normal() * (normal()).exp() if weighted else None,
        "bias": normal() if weighted else None,
    }
    return {name: None if value is None else value.to(dtype) for name, value in layer.items()}


def input_of(seed: int, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) * 4
    x = x.to(dtype)
    if channels_last and len(shape) in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return x


def explicit(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The form that the explicit affine layer has in torch."""
    return torch.batch_norm(x, alpha, beta, torch.zeros_like(alpha), torch.ones_like(alpha), False, 0.0, 0.0, False)


def over_channels(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.ndim - 2))


def cases() -> Any:
    """Shapes of 2 to 5 dimensions; channel counts around and off the widths of vector units; layout, eps, threads."""
    return {
        "seed": st.integers(0, 2**31),
        "batch": st.integers(1, 3),
        "channels": st.integers(1, 40) | st.sampled_from([63, 65, 97]),
        "space": st.lists(st.integers(1, 9), min_size=0, max_size=3),
        "channels_last": st.booleans(),
        "weighted": st.booleans(),
        "exponent": st.floats(-12, -1),
        "thread_count": st.sampled_from([1, 2]),
    }


def drawn(dtype: torch.dtype, statistics: torch.dtype, case: dict[str, Any]) -> tuple[Tensor, dict[str, Any], float]:
    shape = (case["batch"], case["channels"], *case["space"])
    x = input_of(case["seed"], shape, dtype, channels_last=case["channels_last"])
    layer = layer_of(case["seed"], case["channels"], weighted=case["weighted"], dtype=statistics)
    return x, layer, 10.0 ** case["exponent"]


@given(**cases())
def test_float32_batch_norm_is_its_exact_terms_to_the_last_bit_in_every_form(**case: Any) -> None:
    x, layer, eps = drawn(torch.float32, torch.float32, case)
    with threads(case["thread_count"]):
        expected = F.batch_norm(x, **layer, eps=eps)
        alpha, beta = exact_terms(**layer, eps=eps)
        got = explicit(x, alpha, beta)
    assert differing(expected, got) == 0
    by_hand = fused_multiply_add(x, over_channels(alpha, x), over_channels(beta, x))
    assert differing(expected, by_hand) == 0


@given(**cases())
def test_the_formula_gives_the_exact_terms(**case: Any) -> None:
    _, layer, eps = drawn(torch.float32, torch.float32, case)
    for by_kernel, by_formula in zip(exact_terms(**layer, eps=eps), terms_by_formula(**layer, eps=eps), strict=True):
        assert differing(by_kernel, by_formula) == 0


@given(**cases())
def test_float64_batch_norm_is_its_exact_terms_to_the_last_bit(**case: Any) -> None:
    x, layer, eps = drawn(torch.float64, torch.float64, case)
    with threads(case["thread_count"]):
        expected = F.batch_norm(x, **layer, eps=eps)
        alpha, beta = exact_terms(**layer, eps=eps)
        got = explicit(x, alpha, beta)
    assert alpha.dtype == torch.float64
    assert differing(expected, got) == 0


@pytest.mark.parametrize("own_statistics", [False, True], ids=["float32-statistics", "own-statistics"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@given(**cases())
def test_half_precision_batch_norm_is_its_exact_terms_to_the_last_bit(
    dtype: torch.dtype, own_statistics: bool, **case: Any
) -> None:
    x, layer, eps = drawn(dtype, dtype if own_statistics else torch.float32, case)
    with threads(case["thread_count"]):
        expected = F.batch_norm(x, **layer, eps=eps)
        alpha, beta = exact_terms(**layer, eps=eps)
        got = explicit(x, alpha, beta)
    assert alpha.dtype == beta.dtype == torch.float32
    assert torch.equal(expected.isnan(), got.isnan())
    assert torch.allclose(expected.float(), got.float(), rtol=0, atol=0, equal_nan=True)


@given(seed=st.integers(0, 2**31), channels=st.integers(1, 40), only=st.sampled_from(["weight", "bias"]))
def test_a_batch_norm_with_weight_or_bias_alone_is_its_exact_terms(seed: int, channels: int, only: str) -> None:
    layer = layer_of(seed, channels, weighted=True, dtype=torch.float32)
    layer["bias" if only == "weight" else "weight"] = None
    x = input_of(seed, (2, channels, 5), torch.float32, channels_last=False)
    got = explicit(x, *exact_terms(**layer, eps=1e-5))
    assert differing(F.batch_norm(x, **layer, eps=1e-5), got) == 0


ODD_CHANNELS = {  # running_mean, running_var, weight, bias, eps
    "variance zero without eps": (1.0, 0.0, 1.0, 0.0, 0.0),
    "variance zero without eps, mean below": (-1.0, 0.0, 1.0, 0.5, 0.0),
    "infinite weight": (0.5, 1.0, float("inf"), 1.0, 1e-5),
    "minus infinite weight": (-0.5, 1.0, -float("inf"), 1.0, 1e-5),
    "infinite variance": (0.5, float("inf"), 1.0, 1.0, 1e-5),
    "negative variance": (0.5, -1.0, 1.0, 1.0, 1e-5),
    "NaN mean": (float("nan"), 1.0, 1.0, 1.0, 1e-5),
    "infinite mean": (float("inf"), 1.0, 1.0, 1.0, 1e-5),
    "infinite bias": (0.5, 1.0, 1.0, -float("inf"), 1e-5),
    "weight that overflows": (0.5, 1e-30, 3e38, 1.0, 1e-30),
    "weight that underflows": (0.5, 1e30, 1e-38, 1.0, 1e-5),
    "zero weight": (0.5, 1.0, 0.0, 1.0, 1e-5),
    "minus zero weight": (0.0, 1.0, -0.0, 0.0, 1e-5),
    "minus zero bias": (0.0, 1.0, 1.0, -0.0, 1e-5),
    "minus zero mean and bias": (-0.0, 1.0, 2.0, -0.0, 1e-5),
}


ODD_INPUTS = (1.0, -1.0, 0.0, -0.0, 1e-3, 3e38, float("inf"), -float("inf"), float("nan"))


@pytest.mark.parametrize("numbers", ODD_CHANNELS.values(), ids=ODD_CHANNELS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_statistics_that_are_zero_or_not_finite_give_the_same_values_too(
    dtype: torch.dtype, numbers: tuple[float, ...]
) -> None:
    *columns, eps = numbers
    x = torch.tensor(ODD_INPUTS, dtype=dtype).reshape(-1, 1)
    layer = mean, variance, weight, bias = tuple(torch.tensor([value], dtype=dtype) for value in columns)
    # what F.batch_norm calls, which does not take an eps of 0 in torch 2.10
    expected = torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)
    alpha, beta = exact_terms(*layer, eps)
    fused = torch.addcmul(beta, x, alpha)
    assert torch.equal(expected.nan_to_num(7.0, 8.0, 9.0), fused.nan_to_num(7.0, 8.0, 9.0))
    if torch.isfinite(alpha).all():
        got = explicit(x, alpha, beta)
        assert torch.equal(expected.nan_to_num(7.0, 8.0, 9.0), got.nan_to_num(7.0, 8.0, 9.0))
    if dtype == torch.float32:
        assert differing(fused_multiply_add(x, alpha, beta), expected) == 0
        for by_kernel, by_formula in zip((alpha, beta), terms_by_formula(*layer, eps), strict=True):
            assert differing(by_kernel, by_formula) == 0


def test_writing_the_formula_by_hand_differs_in_bits() -> None:
    # the control of the tests above: they would see another order of operations
    layer = layer_of(0, 32, weighted=True, dtype=torch.float32)
    x = input_of(0, (4, 32, 14, 14), torch.float32, channels_last=False)
    mean, variance, weight, bias = (over_channels(value, x) for value in layer.values())
    by_hand = weight * (x - mean) / torch.sqrt(variance + 1e-5) + bias
    assert differing(F.batch_norm(x, **layer, eps=1e-5), by_hand) > x.numel() // 10


def test_a_multiplication_and_an_addition_differ_in_bits() -> None:
    layer = layer_of(0, 32, weighted=True, dtype=torch.float32)
    x = input_of(0, (4, 32, 14, 14), torch.float32, channels_last=False)
    alpha, beta = exact_terms(**layer, eps=1e-5)
    assert differing(F.batch_norm(x, **layer, eps=1e-5), x * over_channels(alpha, x) + over_channels(beta, x)) > 0


# --- fused multiply-add against exact rational arithmetic --------------------------------------------------------


def nearest_float32(value: Fraction) -> float:
    """Round a rational number to the nearest float32, ties to even, by integers alone."""
    if value == 0:
        return 0.0
    sign, magnitude = (-1, -value) if value < 0 else (1, value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1  # now 2**exponent <= magnitude < 2**(exponent + 1)
    exponent = max(exponent, -126)
    unit = Fraction(2) ** (exponent - 23)
    count = magnitude / unit
    whole = count.numerator // count.denominator
    rest = count - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1):
        whole += 1
    rounded = whole * unit
    return sign * (float("inf") if rounded >= Fraction(2) ** 128 else float(rounded))


def float32s() -> Any:
    return st.floats(width=32, allow_nan=False, allow_infinity=False)


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


ONE_BIT = float(2.0**-23)


@given(float32s(), float32s(), float32s())
@example(1.0 + ONE_BIT, 1.0 + ONE_BIT, 2.0**-60)  # product on a tie in float32, broken by an addend out of sight
@example(1.0 + ONE_BIT, 1.0 + ONE_BIT, -(2.0**-60))
@example(1.0 + 2.0**-12, 1.0 + 2.0**-12, 2.0**-80)  # 1 + 2**-11 + 2**-24: exactly half an ulp, and a crumb
@example(1.0 + 2.0**-12, 1.0 + 2.0**-12, -(2.0**-80))
@example(1.0 + 2.0**-12, -(1.0 + 2.0**-12), 2.0**-80)
@example(3e38, 3e38, -3e38)
@example(1e-38, 1e-7, 1e-45)  # subnormal results
@example(1e-30, 1e-30, 1e-45)
@example(1.5, 2.0**-149, -(2.0**-149))
@example(0.0, -1.0, 0.0)
def test_fused_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    operands = [torch.tensor([value]) for value in (a, b, c)]
    got = float(fused_multiply_add(*operands))
    first, second, third = (
        Fraction(float(value)) for value in operands
    )  # rounded to float32, as an example may not be
    exact = first * second + third
    if exact:
        assert bits_of(got) == bits_of(nearest_float32(exact))
    else:
        assert got == 0.0


def test_fused_multiply_add_differs_from_rounding_through_float64() -> None:
    # the control: where the sum in float64 lands on a tie of float32, one rounding and two differ
    a = torch.tensor([1.0 + 2.0**-12])
    c = torch.tensor([2.0**-80])
    twice = (a.double() * a.double() + c.double()).float()
    assert differing(fused_multiply_add(a, a, c), twice) == 1
    assert float(fused_multiply_add(a, a, c)) == nearest_float32(Fraction(float(a)) ** 2 + Fraction(float(c)))


def test_the_rational_rounding_of_these_tests_agrees_with_torch() -> None:
    doubles = torch.randn(2000, dtype=torch.float64) * torch.exp2(torch.randint(-160, 130, (2000,)).double())
    for value, expected in zip(doubles.tolist(), doubles.float().tolist(), strict=True):
        assert nearest_float32(Fraction(value)) == expected


@pytest.mark.parametrize("a", [float("inf"), -float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("b", [float("inf"), 0.0, -2.0, 3e38])
@pytest.mark.parametrize("c", [float("inf"), -float("inf"), float("nan"), 1.0])
def test_fused_multiply_add_of_infinities_and_nans_is_that_of_ieee(a: float, b: float, c: float) -> None:
    got = fused_multiply_add(torch.tensor([a]), torch.tensor([b]), torch.tensor([c]))
    wide = torch.tensor([a]).double() * torch.tensor([b]).double() + torch.tensor([c]).double()
    assert differing(got, wide.float()) == 0


def test_fused_multiply_add_takes_broadcast_and_strided_operands() -> None:
    x = torch.randn(3, 5, 4).transpose(1, 2)
    alpha, beta = torch.randn(5), torch.randn(5)
    flat = fused_multiply_add(x.contiguous(), alpha.expand(3, 4, 5).contiguous(), beta.expand(3, 4, 5).contiguous())
    assert differing(fused_multiply_add(x, alpha, beta), flat) == 0


# --- the float64 affine against rational arithmetic --------------------------------------------------------------


TINY = Fraction(1, 2**1070)  # where float64 has no more than a few bits left


def square_root(value: Fraction, digits: int = 60) -> Fraction:
    """Return the square root to ``digits`` decimal digits after the point of the scaled integer."""
    scale = 10 ** (2 * digits)
    return Fraction(isqrt(value.numerator * scale * value.denominator), value.denominator * 10**digits)


@given(
    mean=st.floats(-100, 100),
    variance=st.floats(1e-9, 1e6),
    weight=st.floats(-50, 50, allow_subnormal=False),
    bias=st.floats(-50, 50),
    exponent=st.floats(-12, -1),
)
def test_affine_of_agrees_with_rational_arithmetic(
    mean: float, variance: float, weight: float, bias: float, exponent: float
) -> None:
    layer = nn.BatchNorm1d(1, eps=10.0**exponent).double().eval()
    with torch.no_grad():
        for tensor, value in (
            (layer.running_mean, mean),
            (layer.running_var, variance),
            (layer.weight, weight),
            (layer.bias, bias),
        ):
            assert tensor is not None
            tensor.fill_(value)
    affine = affine_of(layer)
    scale = Fraction(weight) / square_root(Fraction(variance) + Fraction(layer.eps))
    shift = Fraction(bias) - Fraction(mean) * scale
    assert abs(Fraction(float(affine.scale)) - scale) <= abs(scale) * Fraction(1, 2**50) + TINY
    assert (
        abs(Fraction(float(affine.shift)) - shift)
        <= (abs(Fraction(mean) * scale) + abs(shift)) * Fraction(1, 2**50) + TINY
    )


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_affine_of_is_float64_of_shape_c_and_leaves_the_layer_alone(
    kind: Any, dtype: torch.dtype, affine: bool
) -> None:
    layer = kind(5, affine=affine).eval().to(dtype)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    found = affine_of(layer)
    assert found.scale.dtype == found.shift.dtype == torch.float64
    assert found.scale.shape == found.shift.shape == (5,)
    assert not found.scale.requires_grad
    assert found.channels == 5
    assert found.is_finite
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_affine_of_applied_by_call_is_the_layer_in_float64() -> None:
    layer = nn.BatchNorm2d(7, eps=1e-3).double().eval()
    layer.load_state_dict(
        {
            **layer_of(1, 7, weighted=True, dtype=torch.float64),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    x = input_of(1, (2, 7, 3, 3), torch.float64, channels_last=False)
    assert torch.allclose(affine_of(layer)(x), layer(x), rtol=1e-13, atol=1e-13)
    last = x.movedim(1, -1)
    assert torch.allclose(affine_of(layer)(last, dim=-1), layer(x).movedim(1, -1), rtol=1e-13, atol=1e-13)


def test_affine_of_takes_anything_that_means_the_same_by_its_names() -> None:
    class Frozen(nn.Module):
        eps = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.tensor([1.0, 2.0]))
            self.register_buffer("running_var", torch.tensor([4.0, 16.0]))

    found = affine_of(Frozen())
    assert found.scale.tolist() == [0.5, 0.25]
    assert found.shift.tolist() == [-0.5, -0.5]


def test_affine_of_a_layer_without_running_statistics_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"BatchNorm2d has no running statistics.*track_running_stats=True"):
        affine_of(nn.BatchNorm2d(3, track_running_stats=False))


def test_affine_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="no running statistics"):
        affine_of(nn.Linear(3, 3))
    stranger = nn.Module()
    stranger.running_mean, stranger.running_var = torch.zeros(2), torch.ones(2)
    with pytest.raises(UsageError, match="has no eps"):
        affine_of(stranger)


# --- composition -------------------------------------------------------------------------------------------------


def some_affine(seed: int, channels: int = 6) -> ChannelAffine:
    generator = torch.Generator().manual_seed(seed)
    return ChannelAffine(*torch.randn(2, channels, generator=generator, dtype=torch.float64))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_after_is_composition_and_associative(first: int, second: int, third: int) -> None:
    a, b, c = some_affine(first), some_affine(second), some_affine(third)
    x = input_of(first, (2, 6, 4), torch.float64, channels_last=False)
    assert torch.allclose(b.after(a)(x), b(a(x)), rtol=1e-12, atol=1e-12)
    left, right = c.after(b).after(a), c.after(b.after(a))
    assert torch.allclose(left.scale, right.scale, rtol=1e-12, atol=0)
    assert torch.allclose(left.shift, right.shift, rtol=1e-12, atol=1e-12)


def test_the_identity_changes_nothing_on_either_side() -> None:
    a, identity = some_affine(1), ChannelAffine.identity(6)
    for composed in (identity.after(a), a.after(identity)):
        assert torch.equal(composed.scale, a.scale)
        assert torch.equal(composed.shift, a.shift)


def test_after_is_not_commutative() -> None:
    a, b = some_affine(1), some_affine(2)
    assert not torch.allclose(a.after(b).shift, b.after(a).shift)


@pytest.mark.parametrize("channels", [6, 1])
def test_affines_of_different_channels_do_not_compose(channels: int) -> None:
    with pytest.raises(ValueError, match=f"affines of {channels} and 3 channels do not compose"):
        some_affine(1, channels).after(some_affine(2, 3))


def test_an_affine_that_is_not_float64_or_not_of_shape_c_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        ChannelAffine(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"must both be \(C,\)"):
        ChannelAffine(torch.ones(3).double(), torch.ones(2).double())
    with pytest.raises(ValueError, match=r"must both be \(C,\)"):
        ChannelAffine(torch.ones(3, 1).double(), torch.ones(3, 1).double())


def test_a_negative_variance_gives_an_affine_that_says_it_is_not_finite() -> None:
    found = affine_of_statistics(torch.zeros(2), torch.tensor([1.0, -1.0]), None, None, 1e-5)
    assert not found.is_finite
    assert torch.isfinite(found.scale).tolist() == [True, False]


# --- several at once ---------------------------------------------------------------------------------------------


def statistics_of(seed: int, channels: int, dtype: torch.dtype, *, weight: bool, bias: bool, eps: float) -> Any:
    layer = layer_of(seed, channels, weighted=True, dtype=dtype)
    mean, variance = layer["running_mean"], layer["running_var"]
    return mean, variance, layer["weight"] if weight else None, layer["bias"] if bias else None, eps


def test_affines_computed_at_once_have_the_bits_of_those_computed_one_by_one() -> None:
    """Of layers of every kind, in turn: sizes that fill a vector register and that do not, types, eps, what is left."""
    kinds = [
        *itertools.product((torch.float32, torch.float64, torch.float16), (True, False), (True, False), (1e-5, 1e-3))
    ]
    layers = [
        statistics_of(seed, channels, dtype, weight=weight, bias=bias, eps=eps)
        for channels in (1, 3, 8, 37)
        for seed, (dtype, weight, bias, eps) in enumerate(kinds)
    ]
    for layer, found in zip(layers, affines_of_statistics(layers), strict=True):
        expected = affine_of_statistics(*layer)
        assert found is not None
        assert differing(found.scale, expected.scale) == differing(found.shift, expected.shift) == 0
        assert all(part.untyped_storage().nbytes() == 8 * part.numel() for part in (found.scale, found.shift))


@pytest.mark.parametrize("bad", [-1.0, -1e-9, float("nan"), float("inf")])
def test_beside_a_variance_that_is_none_each_layer_of_its_kind_is_looked_at_by_itself(bad: float) -> None:
    layers = [statistics_of(seed, 5, torch.float32, weight=True, bias=True, eps=1e-5) for seed in range(3)]
    other = statistics_of(7, 5, torch.float64, weight=True, bias=True, eps=1e-5)
    layers[1][1][2] = bad
    assert [found is None for found in affines_of_statistics([*layers, other])] == [True, True, True, False]


def test_a_layer_whose_tensors_are_not_of_one_size_is_looked_at_by_itself() -> None:
    mean, variance, weight, bias, eps = statistics_of(1, 5, torch.float32, weight=True, bias=True, eps=1e-5)
    fine = (mean, variance, weight, bias, eps)
    odd = [
        (mean, variance, weight[:1], bias, eps),
        (mean, variance[:4], weight, bias, eps),
        (mean[None], variance[None], weight, bias, eps),
    ]
    assert [found is None for found in affines_of_statistics([*odd, fine])] == [True, True, True, False]
