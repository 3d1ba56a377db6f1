"""The eval-mode BatchNorm as what it is: one multiplication and one addition per channel.

    y[:, c] = (x[:, c] - running_mean[c]) / sqrt(running_var[c] + eps) * weight[c] + bias[c]
            = scale[c] * x[:, c] + shift[c]

with ``scale = weight / sqrt(running_var + eps)`` and ``shift = bias - running_mean * scale`` (Ioffe & Szegedy 2015,
arXiv:1502.03167, Algorithm 2). Two precisions of the same affine serve two purposes:

* :func:`affine_of` derives it in float64. Rounded once, it is what goes into the weights of a convolution.
* :func:`exact_terms` gives the very float32 numbers that ``torch.nn.functional.batch_norm`` computes inside, so that an
  explicit affine built from them reproduces the layer to the last bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import torch

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "ChannelAffine",
    "Statistics",
    "affine_of",
    "affine_of_statistics",
    "affines_of_statistics",
    "exact_terms",
    "is_sound",
    "terms_by_formula",
]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """``y[:, c] = scale[c] * x[:, c] + shift[c]`` along a channel dimension.

    Attributes:
        scale: float64, shape ``(C,)``, no unit.
        shift: float64, shape ``(C,)``, in the unit of ``y``.
    """

    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.scale.dtype != torch.float64 or self.shift.dtype != torch.float64:
            raise TypeError(f"a ChannelAffine is float64, not {self.scale.dtype} and {self.shift.dtype}")
        if self.scale.ndim != 1 or self.scale.shape != self.shift.shape:
            raise ValueError(f"scale {tuple(self.scale.shape)} and shift {tuple(self.shift.shape)} must both be (C,)")

    @staticmethod
    def identity(channels: int) -> ChannelAffine:
        """Return the affine that changes nothing, for ``channels`` channels."""
        return ChannelAffine(
            torch.ones(channels, dtype=torch.float64, device="cpu"),
            torch.zeros(channels, dtype=torch.float64, device="cpu"),
        )

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return self.scale.numel()

    @property
    def is_finite(self) -> bool:
        """Whether no scale and no shift is NaN or infinite."""
        return bool(torch.isfinite(self.scale).all() and torch.isfinite(self.shift).all())

    def after(self, first: ChannelAffine) -> ChannelAffine:
        """Return the one affine that does ``first`` and then this one.

        Raises:
            ValueError: the two are not over the same number of channels.

        >>> double = ChannelAffine(torch.tensor([2.0]).double(), torch.tensor([0.0]).double())
        >>> plus_one = ChannelAffine(torch.tensor([1.0]).double(), torch.tensor([1.0]).double())
        >>> both = double.after(plus_one)
        >>> float(both.scale), float(both.shift)
        (2.0, 2.0)
        """
        if self.channels != first.channels:
            raise ValueError(f"affines of {self.channels} and {first.channels} channels do not compose")
        return ChannelAffine(self.scale * first.scale, self.scale * first.shift + self.shift)

    def with_shift(self, shift: Tensor) -> ChannelAffine:
        """Return the affine of the same scale with another shift, float64 of shape ``(C,)``."""
        return ChannelAffine(self.scale, shift)

    def __call__(self, x: Tensor, dim: int = 1) -> Tensor:
        """Apply to ``x`` along dimension ``dim``, in ``x``'s dtype with two roundings; for checks, not for bits."""
        shape = [1] * x.ndim
        shape[dim] = self.channels
        scale = self.scale.to(device=x.device, dtype=x.dtype).reshape(shape)
        return x * scale + self.shift.to(device=x.device, dtype=x.dtype).reshape(shape)


def affine_of_statistics(
    running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> ChannelAffine:
    """Return the eval-mode affine of a BatchNorm given by its statistics and parameters.

    Args:
        running_mean: shape ``(C,)``, in the unit of the input, any floating dtype.
        running_var: shape ``(C,)``, in the squared unit of the input.
        weight: shape ``(C,)`` or None for 1 (``affine=False``).
        bias: shape ``(C,)`` or None for 0.
        eps: added to the variance, in the same unit.

    Returns:
        The affine in float64, on the device of the statistics. It is not checked for finiteness: a negative variance
        gives NaN, and the caller decides what that means.

    Source:
        Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 2.
    """
    mean, variance = running_mean.detach().double(), running_var.detach().double()
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.detach().double()
    return ChannelAffine(scale, shift)


def is_sound(affine: ChannelAffine, running_var: Tensor) -> bool:
    """Whether an affine is finite, and the variance that it is of is finite and not negative; False in case of doubt.

    A finite sum has finite terms: a few small reductions are all that is to be asked.
    """
    total = affine.scale.sum() + affine.shift.sum() + running_var.sum(dtype=torch.float64)
    return math.isfinite(float(total)) and bool(running_var.numel()) and float(running_var.min()) >= 0


Statistics: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]"
"""The arguments of :func:`affine_of_statistics`."""


def affines_of_statistics(layers: Sequence[Statistics]) -> list[ChannelAffine | None]:
    """Return the affines of BatchNorms, those with tensors of one kind computed at once: the same bits, in less time.

    Args:
        layers: each as the arguments of :func:`affine_of_statistics`.

    Returns:
        None for a layer that must be looked at by itself: one whose tensors are not plain ones of one size, or beside
        which an affine, or a variance, is not sound.
    """
    found: list[ChannelAffine | None] = [None] * len(layers)
    alike: dict[object, list[int]] = defaultdict(list)
    for index, (*tensors, eps) in enumerate(layers):
        held = [tensor for tensor in tensors if tensor is not None]
        size = held[0].shape
        if len(size) == 1 and all(type(one) in _PLAIN and one.shape == size and not one.is_sparse for one in held):
            kinds = tuple(None if tensor is None else (tensor.dtype, tensor.device) for tensor in tensors)
            alike[eps, kinds].append(index)
    for members in alike.values():
        columns = [*zip(*(layers[index][:4] for index in members), strict=True)]
        with torch.no_grad():
            mean, variance, weight, bias = (None if column[0] is None else torch.cat(column) for column in columns)
        assert mean is not None
        assert variance is not None
        whole = affine_of_statistics(mean, variance, weight, bias, layers[members[0]][4])
        if is_sound(whole, variance):
            sizes = [part.numel() for part in columns[0]]
            scales, shifts = whole.scale.split_with_sizes(sizes), whole.shift.split_with_sizes(sizes)
            for index, scale, shift in zip(members, scales, shifts, strict=True):
                # with memory of its own: pickled, each would hold that of all
                found[index] = ChannelAffine(scale.clone(), shift.clone())
    return found


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def affine_of(batchnorm: nn.Module) -> ChannelAffine:
    """Return the exact eval-mode affine of a BatchNorm layer, in float64.

    Args:
        batchnorm: ``BatchNorm1d``, ``2d``, ``3d``, ``SyncBatchNorm``, or any module with ``running_mean``,
            ``running_var`` and ``eps``, and optionally ``weight`` and ``bias``, that means the same by them.

    Returns:
        ``ChannelAffine(scale, shift)``, each float64 of shape ``(C,)``.

    Raises:
        UsageError: the layer has no running statistics, so it uses those of its batch even in eval mode, and its
            affine depends on the data.

    >>> layer = torch.nn.BatchNorm2d(3).eval()
    >>> affine_of(layer).scale.shape
    torch.Size([3])
    """
    running_mean, running_var, weight, bias, eps = _statistics(batchnorm)
    return affine_of_statistics(running_mean, running_var, weight, bias, eps)


def exact_terms(
    running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``(alpha, beta)``, the numbers that this machine's BatchNorm kernel multiplies by and adds.

    The kernel computes ``y = fma(x, alpha, beta)``: one rounding. Asked for ``x = 1`` with mean and bias 0 it answers
    ``alpha``, and for ``x = 0`` it answers ``beta``, whatever order of operations this build and processor use;
    :func:`terms_by_formula` is that order for x86-64 with FMA.

    What is guaranteed, on CPU: ``torch.batch_norm(x, alpha, beta, mean=0, var=1, eps=0)`` and, where ``addcmul`` uses
    FMA, ``torch.addcmul(beta, x, alpha)`` equal ``F.batch_norm(x, ...)`` bit for bit

    * for float32 and float64 ``x`` and statistics of the same dtype, contiguous and channels_last;
    * for float16 and bfloat16 ``x``, with statistics of float32 or of ``x``'s dtype, in the ``torch.batch_norm`` form
      (``addcmul`` in half precision rounds differently). The kernel works in float32 inside, so the terms are float32
      for both, and stay float32 beside a half-precision ``x``.

    Two exceptions: an infinite ``alpha`` spoils the ``batch_norm`` form (its ``beta - 0 * alpha`` is NaN), and where
    ``beta`` is ``-0`` that form may answer ``0`` for ``-0``.

    On other devices the terms are those of the device's own kernel; whether it uses them in one rounding is its affair.

    Args:
        running_mean: shape ``(C,)``; as for :func:`affine_of_statistics`.
        running_var: shape ``(C,)``.
        weight: shape ``(C,)`` or None.
        bias: shape ``(C,)`` or None.
        eps: added to the variance.

    Returns:
        ``alpha`` and ``beta``, shape ``(C,)``: float64 for float64 statistics, else float32.
    """
    dtype = torch.float64 if running_mean.dtype == torch.float64 else torch.float32
    mean, variance = running_mean.detach().to(dtype), running_var.detach().to(dtype)
    gamma = None if weight is None else weight.detach().to(dtype)
    offset = None if bias is None else bias.detach().to(dtype)
    with torch.no_grad():
        alpha, beta = _terms_of_kernel(mean, variance, gamma, offset, eps)
        if running_mean.dtype in (torch.float16, torch.bfloat16) and not _fuses(running_mean.dtype):
            beta = _rounded_twice(mean, alpha, offset)
    return alpha, beta


def _terms_of_kernel(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Ask the kernel for its terms; zeros have the sign that loses no sign of a term in a sum."""
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    no_mean = zero if weight is None else torch.copysign(zero, weight)
    alpha = _kernel(one, no_mean, variance, weight, None if weight is None else -zero, eps)
    beta = _kernel(torch.copysign(zero, -alpha), mean, variance, weight, bias, eps)
    if not bool(torch.isfinite(alpha).all()):  # 0 * inf stood in the sums above
        written = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
        beta = torch.where(torch.isfinite(written), beta, _rounded_twice(mean, written, bias))
        alpha = torch.where(torch.isfinite(written), alpha, written)
    return alpha, beta


def _rounded_twice(mean: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    return (torch.zeros_like(alpha) if bias is None else bias) - mean * alpha


@cache
def _fuses(dtype: torch.dtype) -> bool:
    """Whether the kernel for statistics of a half-precision dtype computes ``beta`` in one rounding.

    The compiler decides: in torch 2.13 for x86-64 it does for bfloat16 and does not for float16. The terms cannot be
    read off a kernel that answers in half precision, but which of the two it uses shows on a few thousand channels.
    """
    golden = torch.arange(1, 8193, dtype=torch.float64, device="cpu") * 0.6180339887498949 % 1
    shuffled = (golden * 7919 % 1, golden * 104729 % 1, golden * 1299709 % 1, golden * 15485863 % 1)
    mean, variance, weight, bias = (((part + 0.5) * 2).to(dtype) for part in shuffled)
    x = (golden * 3 - 1).to(dtype)
    expected = _kernel(x, mean, variance, weight, bias, 1e-3)
    alpha, fused = _terms_of_kernel(mean.float(), variance.float(), weight.float(), bias.float(), 1e-3)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    wrong = [
        int((_kernel(x, zero, one, alpha, beta, 0.0) != expected).sum())
        for beta in (fused, _rounded_twice(mean.float(), alpha, bias.float()))
    ]
    return wrong[0] <= wrong[1]


def terms_by_formula(
    running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``(alpha, beta)`` of :func:`exact_terms` written out, float32, as x86-64 with FMA computes them.

        alpha = rsqrt(running_var + eps) * weight             each operation rounded to float32
        beta  = fma(-running_mean, alpha, bias)               one rounding
        y     = fma(x, alpha, beta)                           one rounding

    ``rsqrt`` is ``torch.rsqrt``; ``1 / torch.sqrt(...)`` differs from it in the last bit for one value in 200.

    This is the answer to "what is the exact implementation"; :func:`exact_terms` asks the kernel instead, and a test
    holds the two equal.
    """
    alpha = torch.rsqrt(running_var.detach().float() + eps)
    if weight is not None:
        alpha = alpha * weight.detach().float()
    offset = torch.zeros_like(alpha) if bias is None else bias.detach().float()
    return alpha, fused_multiply_add(-running_mean.detach().float(), alpha, offset)


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``a * b + c`` for float32 tensors with a single rounding, as the processor's FMA instruction does.

    The product of two float32 numbers is exact in float64. Their sum with ``c`` is rounded to odd there (Boldo &
    Melquiond 2008, "Emulation of a FMA and correctly rounded sums", IEEE Trans. Comput. 57(4)), which makes the second
    rounding to float32 harmless.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    virtual = total - product  # Knuth's TwoSum: `error` is what the sum rounded away
    error = (product - (total - virtual)) + (addend - virtual)
    even = (total.view(torch.int64) & 1) == 0
    towards = torch.where(error > 0, torch.inf, -torch.inf).to(total)
    nudge = (error != 0) & even & torch.isfinite(total) & torch.isfinite(error)
    return torch.where(nudge, torch.nextafter(total, towards), total).float()


def _kernel(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return eval-mode batch norm of one sample of C channels, shape ``(C,)``."""
    return torch.batch_norm(x.unsqueeze(0), weight, bias, mean, variance, False, 0.0, eps, False).squeeze(0)


def _statistics(batchnorm: nn.Module) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    """Read a BatchNorm-like module, or say why it has no affine."""
    running_mean = getattr(batchnorm, "running_mean", None)
    running_var = getattr(batchnorm, "running_var", None)
    eps = getattr(batchnorm, "eps", None)
    name = type(batchnorm).__name__
    if running_mean is None or running_var is None:
        raise UsageError(
            f"This {name} has no running statistics: it uses the mean and variance of each batch, in eval mode too.",
            fix="Give it running_mean and running_var (track_running_stats=True), or leave it as it is.",
        )
    if eps is None:
        raise UsageError(f"This {name} has no eps.", fix="Pass a BatchNorm layer.")
    return running_mean, running_var, getattr(batchnorm, "weight", None), getattr(batchnorm, "bias", None), float(eps)
