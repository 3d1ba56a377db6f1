"""Teach bnfold a module of your own.

Three things can be said about a module type; each is one line, and each is checked in float64 on every layer it is used
for, before anything is folded by it::

    from bnfold import extend

    extend.passes(BlurPool)                                         # any affine passes, unchanged
    extend.passes(SquaredReLUNorm, scale="nonnegative", shift="zero")
    extend.absorbs(WeightedDelay, weight="kernel", bias="offset", dim=0)
    extend.batchnorm(BatchRenorm2d, lambda m: (m.running_mean, m.running_var, m.eps, m.weight, m.bias))

A claim holds for just that type, not for subclasses, which may compute anything, and until it is taken back::

    with extend.passes(BlurPool):
        folding = bnfold.fold(model)

    rule = extend.passes(BlurPool)
    ...
    rule.undo()

Channels are in dimension 1 throughout. The claims are used where a run is recorded, whole or in pieces; in a graph of
``torch.export`` the modules are gone, and their operators are seen instead.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from torch import nn

from bnfold.errors import UsageError
from bnfold.graph.taught import TAUGHT, Absorbs, Claim, Normalizes, Passes

__all__ = ["Rule", "absorbs", "batchnorm", "passes"]


class Rule:
    """A claim in force; ``undo()`` takes it back, and so does leaving a ``with`` block."""

    def __init__(self, kind: type[nn.Module], claim: Claim) -> None:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise UsageError(f"{kind!r} is no type of module.", fix="Give the class, not an instance.")
        home = kind.__module__
        if home == "torch.nn" or home.startswith(("torch.nn.", "bnfold.")):
            raise UsageError(f"bnfold knows {kind.__name__} already.", fix="Teach it modules of your own only.")
        if kind in TAUGHT:
            raise UsageError(f"{kind.__name__} was taught before.", fix="Take the first rule back with undo().")
        self.kind = kind
        self.claim = claim
        TAUGHT[kind] = claim

    def undo(self) -> None:
        """Take the claim back; nothing happens where it was taken back before."""
        if TAUGHT.get(self.kind) is self.claim:
            del TAUGHT[self.kind]

    def __enter__(self) -> Rule:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "" if TAUGHT.get(self.kind) is self.claim else ", taken back"
        return f"<bnfold rule for {self.kind.__name__}: {self.claim}{state}>"


def passes(
    kind: type[nn.Module],
    *,
    scale: Literal["any", "nonnegative"] = "any",
    shift: Literal["any", "zero"] = "any",
) -> Rule:
    """Say that an affine per channel passes a module: ``f(a x + b) = a f(x) + b``.

    Args:
        kind: a module type that takes one tensor ``(N, C, *)`` and returns one with as many channels and dimensions,
            in eval mode; it does not write into its input.
        scale: ``"nonnegative"`` where it holds for ``a >= 0`` only.
        shift: ``"zero"`` where it holds for ``b = 0`` only.

    Raises:
        UsageError: it is no module type, or one that is known already.

    A layer for which it does not hold is not passed: the decision's reason is ``"claim-is-false"``.

    >>> class Blur(nn.AvgPool2d):
    ...     pass
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), Blur(2), nn.BatchNorm2d(2)).eval()
    >>> import bnfold
    >>> with passes(Blur):
    ...     bnfold.plan(model)[0].detail
    '2 folded into 0 through 1.'
    """
    if scale not in ("any", "nonnegative") or shift not in ("any", "zero"):
        raise UsageError(
            f"scale={scale!r}, shift={shift!r} are no conditions.",
            fix='Use scale="any" or "nonnegative", and shift="any" or "zero".',
        )
    return Rule(kind, Passes(scale, shift))


def absorbs(kind: type[nn.Module], *, weight: str = "weight", bias: str = "bias", dim: int = 0) -> Rule:
    """Say that a module absorbs an affine of its output as a convolution does: by its weight and its bias.

    ``y[:, c]`` must be linear in ``weight[c]``, taken along ``dim``, plus ``bias[c]``.

    Args:
        kind: a module type that takes one tensor and returns ``(N, C, *)``.
        weight: name of the parameter.
        bias: name of the parameter of shape ``(C,)``. Where a layer has None there, it must take one when given.
        dim: the dimension of the weight that the output's channels run along.

    Raises:
        UsageError: it is no module type, or one that is known already.
    """
    return Rule(kind, Absorbs(weight, bias, dim))


def batchnorm(kind: type[nn.Module], read: Callable[[Any], Any]) -> Rule:
    """Say that a module is, in eval mode, an affine per channel; then it is folded like a BatchNorm.

    Batch Renormalization (Ioffe 2017, arXiv:1702.03275) is one: at inference it is BatchNorm.

    Args:
        kind: a module type that takes one tensor ``(N, C, *)``.
        read: a function of a layer that returns ``(running_mean, running_var, eps, weight, bias)``, tensors of shape
            ``(C,)`` of which the last two may be None; or a :class:`bnfold.ChannelAffine`.

    Raises:
        UsageError: it is no module type, or one that is known already. Also when a model is folded: ``read`` fails, or
            a layer does not compute that affine.
    """
    return Rule(kind, Normalizes(read))
