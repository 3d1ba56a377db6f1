"""The original: what answers in its own precision, and as the oracle in float64.

A torch model and an ONNX model (:mod:`bnfold.verify.onnx_original`) do this in different ways; the rest of the
verification does not care.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bnfold.capture.nests import Leaf, flatten
from bnfold.verify.reference import copied, copied_in_float64, fresh
from bnfold.verify.twins import Twins, answer_in_float64

__all__ = ["MOVED", "Original", "Run", "TorchOriginal", "finest", "moved_by_an_ulp"]

Run = Callable[[Sequence[Any]], list[Leaf]]
"""From positional inputs to the flat outputs; the inputs are not changed."""

_PIECE = 1 << 20
MOVED = 1 / 16  # the share of weights moved one ulp up, and as many down: somewhat more than rounding to nearest moves


class Original(Protocol):
    """The model that is measured against.

    Attributes:
        notes: sentences for the user about how the oracle was come by.
        input_names: of its positional inputs; empty where they have none.
        eps: of the most precise of its floating weights; 0 where it has none.
    """

    notes: tuple[str, ...]
    input_names: tuple[str, ...]
    eps: float

    @property
    def module(self) -> nn.Module | None:
        """The torch module, where it is one."""

    def run(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in the model's own precision."""

    def exact(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer as the oracle."""

    def moved(self, seed: int) -> Run:
        """Return the model with some of its weights moved by one unit in the last place."""


class TorchOriginal:
    """An original that is a torch module; see :class:`Original`.

    Args:
        module: the caller's; not changed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.notes: tuple[str, ...] = ()
        self.input_names = _argument_names(module)
        self.module = module
        self.eps = finest(tensor.dtype for tensor in (*module.parameters(), *module.buffers()))
        self._twins = Twins(module)
        self._known: tuple[Sequence[Any], list[Leaf]] | None = None

    @property
    def in_float64(self) -> nn.Module:
        """The copy that is the oracle."""
        return self._twins.in_float64

    @property
    def plain(self) -> nn.Module:
        """The copy that answers in the model's own precision."""
        return self._twins.plain

    def run(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in the model's own precision; the oracle is run before, which tells whether weights are written."""
        self._known = None
        with contextlib.suppress(Exception):
            self._known = inputs, self._twins.exact(inputs)
        return self._twins.run(inputs)

    def exact(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in float64 throughout."""
        known, self._known = self._known, None
        return known[1] if known is not None and known[0] is inputs else self._twins.exact(inputs)

    def moved(self, seed: int) -> Run:
        """Return a copy with some of its weights moved by one unit in the last place."""
        module = _moved(copied(self.module), seed)
        return lambda inputs: flatten(module(*fresh(inputs)))

    def moved_in_float64(self, seed: int) -> Run:
        """Return the oracle with some of its weights moved by one unit in the last place of float64."""
        module = _moved(copied_in_float64(self.module), seed)
        return lambda inputs: answer_in_float64(module, inputs)


def _moved(module: nn.Module, seed: int) -> nn.Module:
    """Move some of a module's weights by one unit in the last place."""
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in seen and tensor.is_floating_point():
            seen.add(id(tensor))
            tensor.data = moved_by_an_ulp(tensor, generator)
    return module


def finest(dtypes: Iterable[torch.dtype]) -> float:
    """Return the least ``eps`` of those that are floating; 0 where none is.

    Not the largest: one small buffer in half precision, which may not even be read, would excuse every error.
    """
    return min((torch.finfo(dtype).eps for dtype in set(dtypes) if dtype.is_floating_point), default=0.0)


def _argument_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of forward's positional arguments; nothing where it takes any number of them."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in named)


def moved_by_an_ulp(tensor: Tensor, generator: torch.Generator, share: float = MOVED) -> Tensor:
    """Return ``tensor`` with some elements, drawn anew, moved by one unit in the last place.

    Args:
        tensor: floating.
        generator: of the draw.
        share: of the elements that move up; as many move down.
    """
    moved = torch.empty_like(tensor)
    if tensor.ndim == 0:
        return moved.copy_(_moved_piece(tensor, generator, share))
    rows = max(1, _PIECE * len(tensor) // max(1, tensor.numel()))
    for piece, into in zip(
        torch.split(tensor, rows), torch.split(moved, rows), strict=True
    ):  # some six copies of each in float64
        into.copy_(_moved_piece(piece, generator, share))
    return moved


def _moved_piece(tensor: Tensor, generator: torch.Generator, share: float) -> Tensor:
    chance = torch.rand(tensor.shape, generator=generator)
    step = (chance < share).double() - (chance > 1 - share).double()
    return tensor.double() * (1 + step.to(tensor.device) * torch.finfo(tensor.dtype).eps)
