"""In-place operators as functions.

``torch.fx`` records ``x += y`` on a traced value as ``x = x + y``, which is another program where something else still
looks at ``x``. The capture records these functions instead: they do to a tensor, and to a number, just what Python
does. Their results are the values after the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["IN_PLACE", "IN_PLACE_ADD", "IN_PLACE_DIVIDE", "IN_PLACE_MULTIPLY", "IN_PLACE_SUBTRACT"]


def in_place_add(left: Any, right: Any) -> Any:
    """``left += right``."""
    left += right
    return left


def in_place_subtract(left: Any, right: Any) -> Any:
    """``left -= right``."""
    left -= right
    return left


def in_place_multiply(left: Any, right: Any) -> Any:
    """``left *= right``."""
    left *= right
    return left


def in_place_divide(left: Any, right: Any) -> Any:
    """``left /= right``."""
    left /= right
    return left


def in_place_floor_divide(left: Any, right: Any) -> Any:
    """``left //= right``."""
    left //= right
    return left


def in_place_modulo(left: Any, right: Any) -> Any:
    """``left %= right``."""
    left %= right
    return left


def in_place_power(left: Any, right: Any) -> Any:
    """``left **= right``."""
    left **= right
    return left


def in_place_and(left: Any, right: Any) -> Any:
    """``left &= right``."""
    left &= right
    return left


def in_place_or(left: Any, right: Any) -> Any:
    """``left |= right``."""
    left |= right
    return left


def in_place_xor(left: Any, right: Any) -> Any:
    """``left ^= right``."""
    left ^= right
    return left


IN_PLACE_ADD = in_place_add
IN_PLACE_SUBTRACT = in_place_subtract
IN_PLACE_MULTIPLY = in_place_multiply
IN_PLACE_DIVIDE = in_place_divide

# The method that Python looks for on the left operand, and what the capture records for it.
IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "__iadd__": in_place_add,
    "__isub__": in_place_subtract,
    "__imul__": in_place_multiply,
    "__itruediv__": in_place_divide,
    "__ifloordiv__": in_place_floor_divide,
    "__imod__": in_place_modulo,
    "__ipow__": in_place_power,
    "__iand__": in_place_and,
    "__ior__": in_place_or,
    "__ixor__": in_place_xor,
}
