"""Tensors whose numbers are made when a call needs them, and released after it.

    weight = OnDemand.of(source, torch.float64)      holds nothing but the source
    F.conv2d(x, weight)                              is given source.double(), which goes when the call ends

So a model runs in float64 without a float64 copy of itself: each weight is cast, or folded, when its layer runs. Shape,
dtype, strides and device are known without the numbers, so that code which asks for them makes none. Whoever writes
into such a tensor, or into a view of one, is refused: what was made goes with the call, and what it was made from
is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import BnfoldError

__all__ = ["SMALL", "OnDemand", "WrittenError", "made", "refuse_lent", "writes_refused"]

SMALL = 1 << 16
"""Elements below which a tensor is better copied: a call with a tensor that is made on demand takes some 20 us more."""

_StorageWeakRef: Any = torch.multiprocessing.reductions.StorageWeakRef
_lent: dict[int, Any] = {}  # what views of such tensors were made on, while anything holds it
_refused = [0]


class WrittenError(BnfoldError):
    """Code writes into a tensor that is made on demand."""


class OnDemand(Tensor):
    """A tensor that makes its numbers for each call; see the module.

    Attributes:
        make: returns the numbers, each time anew or those that somebody holds; of the shape, dtype and strides told.
        source: what they are cast from, if that is all.
    """

    make: Callable[[], Tensor]
    source: Tensor | None

    @staticmethod
    def __new__(cls, like: Tensor, dtype: torch.dtype, make: Callable[[], Tensor]) -> OnDemand:
        """Make one that is a Parameter where ``like`` is.

        Args:
            cls: the class.
            like: of its shape, device and memory format.
            dtype: of the numbers.
            make: see the class.
        """
        outline = like if isinstance(like, OnDemand) else torch.empty_like(like.detach(), device="meta")
        strides = outline.stride()  # of what is dense, in the same order
        new = Tensor._make_wrapper_subclass(cls, like.shape, strides, dtype=dtype, device=like.device)
        new.make, new.source = make, None
        if isinstance(like, nn.Parameter):
            new._is_param = True
        return new

    @staticmethod
    def of(source: Tensor, dtype: torch.dtype) -> OnDemand:
        """Return the numbers of a tensor in some dtype; in its own they are those of the tensor itself."""
        new = OnDemand(source, dtype, lambda: source.detach().to(dtype))
        new.source = source.detach()
        return new

    @staticmethod
    def suits(tensor: Tensor) -> bool:
        """Whether a tensor is a plain floating one, and large enough for it to be worthwhile."""
        plain = type(tensor) in (Tensor, nn.Parameter, OnDemand) and tensor.layout == torch.strided
        floating = tensor.is_floating_point() or tensor.is_complex()
        return plain and floating and not tensor.is_meta and tensor.numel() >= SMALL

    def __repr__(self) -> str:  # type: ignore[override]
        """Say what it is, and make nothing."""
        return f"OnDemand({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make the numbers, and call ``func`` with them."""
        kwargs = kwargs or {}
        if func in _SAME:
            alias = OnDemand(args[0], args[0].dtype, args[0].make)
            alias.source = args[0].source
            return alias
        refuse_lent(func, args, kwargs)
        numbers: list[Tensor] = []

        def make(value: Any) -> Any:
            if isinstance(value, OnDemand):
                numbers.append(value.make())
                return numbers[-1]
            return value

        args, kwargs = pytree.tree_map(make, (args, kwargs))
        answer = func(*args, **kwargs)
        _lend(answer, {_storage(tensor) for tensor in numbers})
        return answer


_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def made(value: Any) -> Any:
    """Return the numbers of a tensor that is made on demand; anything else as it is."""
    return value.make() if isinstance(value, OnDemand) else value


def refuse_lent(func: Any, args: Any, kwargs: Any) -> None:
    """Raise where an operator writes into a tensor that is made on demand, or into a view of one.

    Args:
        func: an operator of aten's or of somebody else's.
        args: its arguments by position.
        kwargs: those by name.

    Raises:
        WrittenError: it does.
    """
    schema = func._schema
    if not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        if any(_is_lent(value) for value in pytree.tree_leaves(given)):
            _refused[0] += 1
            raise WrittenError(
                f"The model writes into its weights when it runs ({schema.name}).", fix="Run it on a copy."
            )


def writes_refused() -> int:
    """Return how many writes were refused since the program began: code may swallow the error."""
    return _refused[0]


def _is_lent(value: Any) -> bool:
    if isinstance(value, OnDemand):
        return True
    return bool(_lent) and isinstance(value, Tensor) and _storage(value) in _lent


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or of somebody else's kind
        return 0


def _lend(answer: Any, memory: set[int]) -> None:
    """Remember the memory behind views of what was made, for as long as anything holds it."""
    for value in pytree.tree_leaves(answer):
        if isinstance(value, Tensor) and (key := _storage(value)) in memory:
            for gone in [place for place, known in _lent.items() if known.expired()]:
                del _lent[gone]
            _lent[key] = _StorageWeakRef(value.untyped_storage())  # also keeps the address from being used again
