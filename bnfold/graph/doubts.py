"""Check what a user has said about a module of theirs, on the very layer, in float64, before the planner believes it.

A check on random numbers is no proof; it catches what people get wrong: a condition forgotten, channels mixed, a weight
laid out otherwise, an input written into.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnfold.affine import ChannelAffine
from bnfold.graph.probes import ROUNDING, answer, error_of
from bnfold.graph.shells import double_shell, fresh_shell
from bnfold.ops.refusal import Refusal
from bnfold.ops.weighted import Absorber

if TYPE_CHECKING:
    from bnfold.graph.facts import Facts

__all__ = ["doubts"]

_SPACES = ((12, 11), (23,), (6, 7, 5), ())


def doubts(facts: Facts, call: Any, channels: int) -> Refusal | None:
    """Return why a claim about a layer is not believed; each layer is asked once for each number of channels.

    Answers are kept with the capture: a layer may be set otherwise, or be taught otherwise, before the next one.
    """
    name = str(call.node.target)
    module = facts.capture.module(name)
    shapes = facts.shapes(call.input)
    known = facts.capture._cache
    key = (type(call), name, channels, shapes[:1])
    if key not in known:
        shape = shapes[0] if shapes else None
        if isinstance(call, Absorber):
            known[key] = _checked(call, module, shape, None, partial(_absorbing_error, call=call, channels=channels))
        else:
            known[key] = _checked(call, module, shape, channels, partial(_passing_error, call=call, channels=channels))
    answer: Refusal | None = known[key]
    return answer


def _checked(
    call: Any, module: nn.Module, shape: tuple[int, ...] | None, channels: int | None, error_of: Any
) -> Refusal | None:
    kind = type(module).__name__
    layer = double_shell(module, {})
    ran = False
    for x in _inputs(module, shape, channels):
        with torch.no_grad():
            plain = answer(layer, x)
            if plain is None:  # does not take inputs of this shape
                continue
            elsewhere = shape is not None and x.shape[1:] != shape[1:]
            if elsewhere and _says_nothing(plain):
                continue
            ran = True
            try:
                error = error_of(layer, x, plain)
            except Exception:  # runs on x, and not on an affine of it
                error = math.inf
        if not error <= ROUNDING:
            much = "its output has other channels" if error == math.inf else f"it is off by {error:.1e} of the peak"
            if elsewhere:
                much += f" for inputs of shape {tuple(x.shape)}"
            text = "what was taught about {kind} does not hold at {op}: {much}"
            return Refusal("claim-is-false", text, kind=kind, op=call, much=much)
    if not ran:
        text = "what was taught about {kind} could not be checked at {op} without example inputs"
        return Refusal("shapes-unknown", text, kind=kind, op=call)
    return None


def _inputs(module: nn.Module, shape: tuple[int, ...] | None, channels: int | None) -> Iterator[Tensor]:
    """Yield inputs of the shape that the layer is called with, or of likely ones: of both signs, and large ones.

    Other sizes are among them, since a model is run with others, and a layer may do something else there.
    """
    generator = torch.Generator().manual_seed(0)
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    if shape is not None:
        shapes = [(max(2, shape[0]), *shape[1:]), *_other_sizes(shape)] if shape else []
    else:
        count = channels or next(
            (n for name in ("in_channels", "in_features") if isinstance(n := getattr(module, name, None), int)), 0
        )
        counts = [count] if count else sorted({size for p in module.parameters() for size in p.shape})
        shapes = [(2, number, *space) for space in _SPACES for number in counts]
    for each in shapes:
        for factor in (1.0, 30.0) if shape is None or each[1:] == tuple(shape[1:]) else (1.0,):
            yield factor * torch.randn(each, generator=generator, dtype=torch.float64, device="cpu").to(device)


def _other_sizes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the shape of a batch of one, and smaller and larger ones, odd where the example is even; channels stay."""
    channels, space = shape[1:2], shape[2:]
    yield (1, *shape[1:])
    if space:
        yield (2, *channels, *(max(1, size // 2) for size in space))
        yield (2, *channels, *(size + 1 for size in space))


def _says_nothing(output: Any) -> bool:
    """Whether the output for a size that is not the example's is empty or not finite: the size does not fit."""
    return isinstance(output, Tensor) and (not output.numel() or not bool(torch.isfinite(output).all()))


def _affines(channels: int, *, nonnegative: bool, unshifted: bool) -> Iterator[ChannelAffine]:
    generator = torch.Generator().manual_seed(1)
    for number in range(3):
        scale = torch.randn(channels, generator=generator, dtype=torch.float64, device="cpu")
        if nonnegative:
            scale = scale.abs()
        if number == 2:
            scale[: max(1, channels // 3)] = 0.0
        shift = torch.randn(channels, generator=generator, dtype=torch.float64, device="cpu")
        yield ChannelAffine(scale, torch.zeros_like(shift) if unshifted else shift)


def _passing_error(layer: Any, x: Tensor, plain: Any, call: Any, channels: int) -> float:
    worst = 0.0
    for affine in _affines(channels, nonnegative=call.nonnegative, unshifted=call.unshifted):
        given = affine(x)
        kept = given.clone()
        found = layer(given)
        if not isinstance(found, Tensor) or found.ndim != x.ndim or found.shape[1] != channels:
            return math.inf
        if not torch.equal(given, kept):  # it writes into its input
            return math.inf
        worst = max(worst, error_of(found, affine(plain)))
    return worst


def _absorbing_error(layer: Any, x: Tensor, plain: Any, call: Any, channels: int) -> float:
    worst = 0.0
    if not isinstance(plain, Tensor) or plain.ndim < 2 or plain.shape[1] != channels:
        return math.inf
    weight, bias = (layer._parameters.get(name) for name in call.held_as)
    for affine in _affines(channels, nonnegative=False, unshifted=False):
        there = ChannelAffine(affine.scale.to(x.device), affine.shift.to(x.device))
        other = fresh_shell(layer, {})
        new = call.absorb_after((weight, bias), there)
        for name, value in zip(call.held_as, new, strict=True):
            if value is not None:
                other.__dict__.pop(name, None)
                other._parameters[name] = nn.Parameter(value, requires_grad=False)
        worst = max(worst, error_of(other(x.clone()), affine(plain)))
    return worst
