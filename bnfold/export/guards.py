"""What ``torch.export`` takes for granted of free sizes: its guards, asked at the sizes that a program is made for.

A dimension that is marked ``Dim.DYNAMIC`` stays a symbol, and what torch decides on the way ("this size is not 1",
"this one is above 16") becomes a guard on it. Nothing says which sizes that leaves. So the guards are evaluated, on
many sizes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.export.axes import Axis, stepped
from bnfold.graph.torch_versions import without_index_widths

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["narrowed"]

_FAR = 65_536  # what is taken up to there, and up to 16 times the example's size, is taken at every size
_GRID = 2048  # likewise for two sizes together, of which all pairs are looked at


def narrowed(axes: Sequence[Axis], program: ExportedProgram, shapes: Sequence[Any]) -> tuple[Axis, ...] | None:
    """Return the axes as a program has them: equal sizes as one, in the steps and the bounds that its guards allow.

    Args:
        axes: what was to be free.
        program: exported with these dimensions dynamic.
        shapes: of each input, by position, with symbols in them; None for one that is no tensor.

    Returns:
        The axes; None where one of them is free no more, or where two are not free of each other.
    """
    by_symbol: dict[str, Axis] = {}
    for axis in axes:
        for position, dim in axis.places:
            expression = getattr(getattr(shapes[position][dim], "node", None), "expr", None)
            if expression is None or not expression.is_Symbol:
                return None
            known = by_symbol.get(str(expression))
            taken = {other.name for symbol, other in by_symbol.items() if symbol != str(expression)}
            name = (
                axis.name if axis.name not in taken else f"{axis.name}_{position}"
            )  # another input's, and another size
            places = (*(known.places if known is not None else ()), (position, dim))
            by_symbol[str(expression)] = replace(known or axis, name=known.name if known else name, places=places)
    own = {name: np.asarray(axis.own) for name, axis in by_symbol.items()}
    guards = _guards(program, shapes)
    found = []
    for name, axis in by_symbol.items():

        def hold(sizes: Any, name: str = name) -> Any:
            return _hold(guards, {**own, name: np.asarray(sizes)})

        steps = stepped(axis, lambda sizes: bool(hold(next(iter(sizes.values())))))
        if steps is None:
            return None
        found.append(_bounded(steps, hold))
    return tuple(found) if _together(guards, dict(zip(by_symbol, found, strict=True))) else None


def _bounded(axis: Axis, hold: Callable[[Any], Any]) -> Axis:
    """Return the axis with the smallest and the largest size around its own at which the guards hold without a gap."""
    first = (axis.own - 1) % axis.step + 1
    sizes = np.arange(first, max(_FAR, 16 * axis.own) + axis.step, axis.step)
    taken = np.broadcast_to(hold(sizes), sizes.shape)
    at = (axis.own - first) // axis.step
    gaps = np.flatnonzero(~taken)
    below, above = gaps[gaps < at], gaps[gaps > at]
    return replace(
        axis,
        least=int(sizes[below[-1] + 1]) if below.size else first,
        most=int(sizes[above[0] - 1]) if above.size else None,
    )


def _together(guards: Sequence[CodeType], axes: Mapping[str, Axis]) -> bool:
    """Whether the guards hold for any two sizes together, within the bounds of each."""
    own = {name: np.asarray(axis.own) for name, axis in axes.items()}
    for one, other in combinations(axes, 2):
        both = [guard for guard in guards if one in guard.co_names and other in guard.co_names]
        if any(isinstance(value, int) and abs(value) > _GRID**2 // 4 for guard in both for value in guard.co_consts):
            return False  # further off than is looked at
        rows, columns = _around(axes[one])[:, None], _around(axes[other])[None, :]
        if both and not np.all(_hold(both, {**own, one: rows, other: columns})):
            return False
    return True


def _around(axis: Axis) -> Any:
    """Return the sizes that an axis takes, from the smallest to some thousand."""
    most = max(_GRID, 2 * axis.own)
    return np.arange(axis.least, (most if axis.most is None else min(most, axis.most)) + 1, axis.step)


def _guards(program: ExportedProgram, shapes: Sequence[Any]) -> list[CodeType]:
    """Return what a program takes for granted, as expressions in the names of its symbols."""
    sizes = [size for shape in shapes if shape is not None for size in shape if not isinstance(size, int)]
    known = sizes[0].node.shape_env if sizes else None
    texts = without_index_widths(str(known.replace(guard.expr)) for guard in known.guards) if known is not None else []
    for symbol, bounds in program.range_constraints.items():
        texts += [f"{symbol} >= {bounds.lower}"] if str(bounds.lower).isdigit() else []
        texts += [f"{symbol} <= {bounds.upper}"] if str(bounds.upper).isdigit() else []
    return [compile(text, "<guard>", "eval") for text in dict.fromkeys(texts)]


def _hold(guards: Sequence[CodeType], sizes: Mapping[str, Any]) -> Any:
    """Return whether all guards hold, for each of the sizes; one that cannot be evaluated does not."""
    names = {"__builtins__": {}, **_FUNCTIONS, **sizes}
    holds: Any = np.asarray(True)
    try:
        for guard in guards:
            holds = holds & np.asarray(eval(guard, names), dtype=bool)  # torch's own text, of numbers alone
    except Exception:
        return np.zeros_like(holds)
    return holds


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Ne": np.not_equal,
    "Eq": np.equal,
    "Mod": np.mod,
    "PythonMod": np.mod,
    "FloorDiv": np.floor_divide,
    "CeilDiv": lambda a, b: -(-a // b),
    "IntTrueDiv": np.true_divide,
    "FloatTrueDiv": np.true_divide,
    "ToFloat": lambda value: np.asarray(value, dtype=float),
    "TruncToInt": lambda value: np.trunc(value).astype(int),
    "FloorToInt": lambda value: np.floor(value).astype(int),
    "CeilToInt": lambda value: np.ceil(value).astype(int),
    "Max": lambda *values: reduce(np.maximum, values),
    "Min": lambda *values: reduce(np.minimum, values),
    "Abs": np.abs,
    "And": lambda *parts: reduce(np.logical_and, parts),
    "Or": lambda *parts: reduce(np.logical_or, parts),
    "Not": np.logical_not,
    "Identity": lambda value: value,
}
