"""What ``torch.export`` takes for granted of free sizes: its guards, asked at the sizes that a program is made for.

A dimension that is marked ``Dim.DYNAMIC`` stays a symbol, and what torch decides on the way ("this size is not 1",
"this one is above 16") becomes a guard on it. Nothing says which sizes that leaves. So the guards are evaluated, on
many sizes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.export.axes import Axis, stepped

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from bnfold.export.refusals import Place

__all__ = ["narrowed"]

_FAR = 16  # times the example's size: what is taken up to there is taken at every size
_TOGETHER = 4096  # draws of all sizes at once


def narrowed(axes: Sequence[Axis], program: ExportedProgram, shapes: Sequence[Any]) -> tuple[Axis, ...] | None:
    """Return the axes as a program has them: equal sizes as one, in the steps and the bounds that its guards allow.

    Args:
        axes: what was to be free.
        program: exported with these dimensions dynamic.
        shapes: of each input, by position, with symbols in them; None for one that is no tensor.

    Returns:
        The axes; None where one of them is free no more, or where two are not free of each other.
    """
    symbols: dict[Place, str] = {}
    for axis in axes:
        for position, dim in axis.places:
            expression = getattr(getattr(shapes[position][dim], "node", None), "expr", None)
            if expression is None or not expression.is_Symbol:
                return None
            symbols[position, dim] = str(expression)
    joined = _joined(axes, symbols)
    names = [{symbols[place] for place in axis.places} for axis in joined]
    if any(len(of_axis) > 1 for of_axis in names):
        return None  # two inputs, whose sizes need not be equal after all
    own = {name: np.asarray(axis.own) for axis, of_axis in zip(joined, names, strict=True) for name in of_axis}
    guards = _guards(program, shapes)
    found = []
    for axis, (name,) in zip(joined, names, strict=True):

        def hold(sizes: Any, name: str = name) -> Any:
            return _hold(guards, {**own, name: np.asarray(sizes)})

        steps = stepped(axis, lambda sizes: bool(hold(next(iter(sizes.values())))))
        if steps is None:
            return None
        found.append(_bounded(steps, hold))
    return tuple(found) if _together(guards, found, [name for (name,) in names]) else None


def _joined(axes: Sequence[Axis], symbols: Mapping[Place, str]) -> list[Axis]:
    """Return the axes, those that share a symbol as one."""
    by_symbol: dict[frozenset[str], Axis] = {}
    for axis in axes:
        key = frozenset(symbols[place] for place in axis.places)
        known = by_symbol.get(key)
        by_symbol[key] = axis if known is None else replace(known, places=(*known.places, *axis.places))
    return list(by_symbol.values())


def _bounded(axis: Axis, hold: Callable[[Any], Any]) -> Axis:
    """Return the axis with the smallest and the largest size around its own at which the guards hold without a gap."""
    first = (axis.own - 1) % axis.step + 1
    sizes = np.arange(first, _FAR * axis.own + axis.step, axis.step)
    taken = np.broadcast_to(hold(sizes), sizes.shape)
    at = (axis.own - first) // axis.step
    gaps = np.flatnonzero(~taken)
    below, above = gaps[gaps < at], gaps[gaps > at]
    return replace(
        axis,
        least=int(sizes[below[-1] + 1]) if below.size else first,
        most=int(sizes[above[0] - 1]) if above.size else None,
    )


def _together(guards: Sequence[CodeType], axes: Sequence[Axis], names: Sequence[str]) -> bool:
    """Whether the guards hold for any sizes together, equal ones among them."""
    generator = np.random.default_rng(0)
    sizes = {}
    for axis, name in zip(axes, names, strict=True):
        most = _FAR * axis.own if axis.most is None else axis.most
        sizes[name] = axis.least + axis.step * generator.integers(0, (most - axis.least) // axis.step + 1, _TOGETHER)
    least = max(axis.least for axis in axes)
    equal = [
        {name: np.asarray(size) for name in names}
        for size in range(least, 4 * least)
        if all((size - axis.own) % axis.step == 0 and size <= (axis.most or size) for axis in axes)
    ]
    return all(bool(np.all(_hold(guards, some))) for some in (sizes, *equal))


def _guards(program: ExportedProgram, shapes: Sequence[Any]) -> list[CodeType]:
    """Return what a program takes for granted, as expressions in the names of its symbols."""
    sizes = [size for shape in shapes if shape is not None for size in shape if not isinstance(size, int)]
    known = sizes[0].node.shape_env if sizes else None
    texts = [str(known.replace(guard.expr)) for guard in known.guards] if known is not None else []
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
