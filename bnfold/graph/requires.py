"""What a captured graph takes for granted, as calls that stand in it and raise where it does not hold.

A graph is right for the answers that the model's code got while it was captured. Each answer that another input could
change stands in the graph as one of these calls. They have no value; they cost well under a microsecond each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node, Proxy
from torch.fx.node import has_side_effect

from bnfold.errors import OtherInputError

__all__ = [
    "COMPARISONS",
    "SIMPLE",
    "pinned_numbers",
    "require_answer",
    "require_batch",
    "require_dtype",
    "require_number",
    "require_rank",
    "require_ranks",
    "require_shape",
    "require_structure",
    "require_value",
]

SIMPLE = (bool, int, float, str, type(None), torch.dtype, torch.device)

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FIX = "Fold the model again with example_inputs like the ones you need."


def _recorded(function: Callable[..., None], *args: Any) -> bool:
    """Put the call itself into a graph that is traced again: when it is unpickled, say."""
    for value in args:
        if isinstance(value, Proxy):
            value.tracer.create_proxy("call_function", function, args, {})
            return True
    return False


@has_side_effect
def require_number(left: Any, comparison: str, right: Any, holds: bool, where: str) -> None:
    """Raise unless a comparison of two numbers, of which at least one is computed from sizes, comes out as captured.

    Args:
        left: a number.
        comparison: one of :data:`COMPARISONS`.
        right: a number.
        holds: how it came out.
        where: what is compared, and at which source line.

    Raises:
        OtherInputError: it comes out otherwise.
    """
    if _recorded(require_number, left, comparison, right, holds, where):
        return
    if bool(COMPARISONS[comparison](left, right)) is not holds:
        what = f"{left} {comparison} {right} is {not holds}"
        raise OtherInputError(f"This model was captured for inputs of other sizes: {where}, where {what}.", fix=_FIX)


@has_side_effect
def require_answer(answer: Any, captured: Any, where: str) -> None:
    """Raise unless a question about a tensor's layout or type is answered as it was when the model was captured.

    Raises:
        OtherInputError: it is not.
    """
    if _recorded(require_answer, answer, captured, where):
        return
    if isinstance(answer, torch.device) and answer.type == "meta":  # a run for the shapes alone
        return
    if answer != captured:
        raise OtherInputError(
            f"This model was captured where {where} is {captured!r}, and here it is {answer!r}.", fix=_FIX
        )


@has_side_effect
def require_dtype(dtype: torch.dtype, captured: torch.dtype, where: str) -> None:
    """Raise unless a dtype that code asked for is the one that it got.

    Raises:
        OtherInputError: it is another.
    """
    if _recorded(require_dtype, dtype, captured, where):
        return
    if dtype != captured:
        raise OtherInputError(
            f"This model was captured where {where} is {captured}, and here it is {dtype}.",
            fix="Fold it with example_inputs of the type that you need; convert the model itself before that.",
        )


@has_side_effect
def require_value(value: Any, captured: Any, name: str) -> None:
    """Raise unless an argument, or a value inside of one, is what the graph was captured with.

    Raises:
        OtherInputError: it is not.
    """
    if _recorded(require_value, value, captured, name):
        return
    same = type(value) is type(captured) and isinstance(value, SIMPLE) and value == captured
    if value is not captured and not same:
        raise OtherInputError(
            f"argument {name!r} was captured as {captured!r}.",
            fix="To use another value, pass it in example_inputs when folding.",
        )


@has_side_effect
def require_structure(value: Any, kind: str, captured: Any, name: str) -> None:
    """Raise unless an argument is a list or tuple of as many parts, or a dict of the same keys, in order, as captured.

    Args:
        value: the argument.
        kind: the name of its class.
        captured: the number of parts, or the keys.
        name: of the argument.

    Raises:
        OtherInputError: it is another.
    """
    if _recorded(require_structure, value, kind, captured, name):
        return
    alike = type(value).__name__ == kind
    if not alike or (tuple(value) != captured if isinstance(captured, tuple) else len(value) != captured):
        raise OtherInputError(f"argument {name!r} holds other parts than this model was captured for.", fix=_FIX)


@has_side_effect
def require_rank(value: Any, rank: int, name: str) -> None:
    """Raise unless ``value`` has ``rank`` dimensions, as the layer or the argument ``name`` takes for granted.

    Raises:
        OtherInputError: it has more or fewer.
    """
    if _recorded(require_rank, value, rank, name):
        return
    if value.ndim != rank:
        raise OtherInputError(f"expected {rank}D input to {name} (got {value.ndim}D input).", fix=_FIX)


@has_side_effect
def require_shape(value: Any, shape: tuple[int | None, ...], name: str, dtype: torch.dtype | None = None) -> None:
    """Raise unless an input has the shape and the kind of numbers that the graph was captured for.

    Args:
        value: the input.
        shape: None stands for any size.
        name: of the input.
        dtype: a floating one stands for all of them: what was captured in float32 is right for ``.half()``.

    Raises:
        OtherInputError: it has another.
    """
    if _recorded(require_shape, value, shape, name, dtype):
        return
    if dtype is not None and value.dtype != dtype and not (dtype.is_floating_point and value.dtype.is_floating_point):
        raise OtherInputError(
            f"input {name!r} is of {value.dtype}, and this graph was captured by torch.export for {dtype}.", fix=_FIX
        )
    actual = tuple(value.shape)
    if len(actual) != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, actual, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise OtherInputError(
            f"input {name!r} has shape {actual}, and this graph was captured by torch.export for ({wanted}).", fix=_FIX
        )


@has_side_effect
def require_batch(value: Any, least: int, name: str, like: Any = None) -> None:
    """Raise unless an input's batch is one that the graph was captured for.

    Args:
        value: the input.
        least: the smallest batch.
        name: of the input.
        like: another input, which must have as large a batch.

    Raises:
        OtherInputError: it is none.
    """
    if _recorded(require_batch, value, least, name, like):
        return
    size = value.shape[0]
    if size < least or (like is not None and size != like.shape[0]):
        wanted = f"at least {least}" if size < least else f"the other inputs' {like.shape[0]}"
        raise OtherInputError(
            f"input {name!r} has a batch of {size}, and this graph was captured by torch.export for {wanted}.",
            fix=_FIX,
        )


def pinned_numbers(graph: Graph) -> set[int]:
    """Return the numbers to which some size must be equal, or must not."""
    found = set()
    for node in graph.nodes:
        if node.target is require_number:
            _, comparison, right, *_ = node.args
            if type(right) is int and comparison in ("==", "!="):
                found.add(right)
    return found


def require_ranks(graph: Graph, shapes: Mapping[Node, tuple[int, ...]]) -> None:
    """Let a graph check that its inputs have as many dimensions as those that it was captured with.

    Args:
        graph: changed.
        shapes: of its values.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        known = any(user.target is require_rank for user in node.users)
        if node in shapes and not known:
            with graph.inserting_after(placeholders[-1]):
                graph.call_function(require_rank, (node, len(shapes[node]), str(node.target)))
