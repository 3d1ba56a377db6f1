"""What a recorder gives where nothing is known of shapes: stand-ins, and questions that only an input answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnfold.capture.tables import PAIRS, PAIRS_WITH_DIM

if TYPE_CHECKING:
    from bnfold.capture.questions import Questions

__all__ = ["UnknownShape", "blind_result"]


class UnknownShape(tuple[Any, ...]):
    """The shape of a value of which nothing is known: each size can be computed with, and nothing be asked."""

    __slots__ = ()
    _held: dict[int, tuple[Questions, Tensor]] = {}  # noqa: RUF012

    def __new__(cls, recorder: Questions, x: Tensor) -> UnknownShape:
        """Make the shape of a value."""
        new = super().__new__(cls)
        cls._held[id(new)] = (recorder, x)
        recorder._alive.append(new)
        return new

    __class__ = property(lambda _self: torch.Size)

    def __getitem__(self, index: Any) -> Any:
        recorder, x = self._held[id(self)]
        if isinstance(index, int):
            return recorder.size(x, index)
        return recorder.unknown("the shape")

    def __iter__(self) -> Any:
        return self._held[id(self)][0].unknown("the shape")

    def __len__(self) -> int:
        return int(self._held[id(self)][0].unknown("the number of dimensions"))

    def __eq__(self, _other: object) -> bool:
        return bool(self._held[id(self)][0].unknown("the shape"))

    def __ne__(self, _other: object) -> bool:
        return bool(self._held[id(self)][0].unknown("the shape"))

    __hash__ = None  # type: ignore[assignment]


def blind_result(recorder: Questions, name: str, args: Any, kwargs: Any) -> Any:
    """Return what stands for the result of a call that is not run: one value, or as many as it surely gives."""
    if name == "__setitem__":
        return None
    if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Tensor):
        return args[0]
    given = list(args[1:])
    count = None
    if name == "chunk":
        count = given[0] if given else kwargs.get("chunks")
    elif name in ("split", "split_with_sizes"):
        sizes = given[0] if given else next(iter(kwargs.values()), None)
        count = len(sizes) if isinstance(sizes, (tuple, list)) else 0
    elif name in PAIRS or (name in PAIRS_WITH_DIM and (given or "dim" in kwargs)):
        count = 2
    elif name in ("unbind", "tensor_split", "hsplit", "vsplit", "dsplit"):
        count = 0
    if count is None:
        return recorder.stand_in()
    if type(count) is not int or count == 0:
        recorder.unknown(f"the pieces of {name}")
    return tuple(recorder.stand_in() for _ in range(count))
