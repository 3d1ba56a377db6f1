"""A model's outputs as a flat list of named values, whatever nest of tuples, dicts and dataclasses they come in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

__all__ = [
    "Leaf",
    "Leaves",
    "computable",
    "flatten",
    "leaf_difference",
    "nest_difference",
    "plain_name",
    "structure_difference",
]


@dataclass(frozen=True)
class Leaf:
    """One value in a model's output.

    Attributes:
        name: the way to it, as one would write it: ``output``, ``output[0]``, ``output['logits']``.
        value: a tensor, on the device where it was made, or whatever else the model returns.
        held_as: the model's dtype where ``value`` is not of it: float8, which torch cannot compute with, is float32.
    """

    name: str
    value: Any
    held_as: torch.dtype | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether the value is a tensor."""
        return isinstance(self.value, Tensor)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model returned a tensor."""
        return self.held_as or cast(torch.dtype, self.value.dtype)


class Leaves(list[Leaf]):
    """The leaves of one output, in order.

    Attributes:
        kinds: of what nests them, as one would write it: ``dict('a': Tensor, 'b': tuple(Tensor, int))``.
    """

    def __init__(self, leaves: Iterable[Leaf], kinds: str) -> None:
        super().__init__(leaves)
        self.kinds = kinds


def flatten(output: Any) -> Leaves:
    """Return the leaves of ``output``: of tuples, lists, named tuples, mappings and dataclasses, in order.

    >>> import torch
    >>> [leaf.name for leaf in flatten({"a": torch.zeros(1), "b": (1, None)})]
    ["output['a']", "output['b'][0]", "output['b'][1]"]
    """
    return Leaves(_walk("output", output), _kinds(output))


def structure_difference(expected: list[Leaf], actual: list[Leaf]) -> str | None:
    """Return one sentence on how two outputs differ in nesting, kinds, shapes or dtypes; None if they do not."""
    difference = nest_difference(expected, actual)
    if difference is not None:
        return difference
    for left, right in zip(expected, actual, strict=True):
        difference = leaf_difference(left, right)
        if difference is not None:
            return difference
    return None


def nest_difference(expected: list[Leaf], actual: list[Leaf]) -> str | None:
    """Return one sentence on how two outputs differ in nesting and names; None if they do not."""
    if isinstance(expected, Leaves) and isinstance(actual, Leaves) and expected.kinds != actual.kinds:
        return f"the output is {actual.kinds:.150} instead of {expected.kinds:.150}"
    if [leaf.name for leaf in expected] != [leaf.name for leaf in actual]:
        return f"the outputs are {_names(actual)} instead of {_names(expected)}"
    return None


def leaf_difference(expected: Leaf, actual: Leaf) -> str | None:
    """Return one sentence on how a leaf's kind, shape or dtype differs, or the value of one that is no tensor."""
    left, right = expected.value, actual.value
    if expected.is_tensor != actual.is_tensor:
        return f"{expected.name} is a {type(right).__name__} instead of a {type(left).__name__}"
    if not expected.is_tensor:
        return None if _equal(left, right) else f"{expected.name} is {right!r:.80} instead of {left!r:.80}"
    if left.shape != right.shape:
        return f"{expected.name} has shape {tuple(right.shape)} instead of {tuple(left.shape)}"
    if expected.dtype != actual.dtype:
        return f"{expected.name} has dtype {_name_of(actual.dtype)} instead of {_name_of(expected.dtype)}"
    return None


def plain_name(name: str) -> str:
    """Return a leaf's name as an ONNX export of it is called: the keys that lead to it.

    >>> plain_name("output['boxes'][0]"), plain_name("output.logits"), plain_name("output[1]"), plain_name("output")
    ('boxes_0', 'logits', 'output_1', 'output')
    """
    words = re.findall(r"\w+", name)
    inner = words[1:] if len(words) > 1 and not words[1][0].isdigit() else words
    return "_".join(inner)


def _kinds(value: Any) -> str:
    """Return the nest of containers around the leaves; a mapping of any class is a dict."""
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key!r}: {_kinds(item)}' for key, item in value.items())})"
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple" if type(value) is tuple else type(value).__name__
        return f"{kind}({', '.join(map(_kinds, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_kinds(getattr(value, f.name)) for f in dataclasses.fields(value))})"
    return "Tensor" if isinstance(value, Tensor) else type(value).__name__


def _walk(name: str, value: Any) -> Iterator[Leaf]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(f"{name}[{key!r}]", item)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field, item in zip(value._fields, value, strict=True):
            yield from _walk(f"{name}.{field}", item)
    elif isinstance(value, (tuple, list)):
        for position, item in enumerate(value):
            yield from _walk(f"{name}[{position}]", item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for attribute in dataclasses.fields(value):
            yield from _walk(f"{name}.{attribute.name}", getattr(value, attribute.name))
    else:
        plain = computable(value) if isinstance(value, Tensor) else value
        held_as = value.dtype if isinstance(value, Tensor) and plain.dtype != value.dtype else None
        yield Leaf(name, plain, held_as)


def computable(tensor: Tensor) -> Tensor:
    """Return a tensor with which torch can compute: dense, and float8 as float32."""
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.float() if dense.is_floating_point() and dense.itemsize == 1 else dense


def _equal(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    try:
        return bool(left == right) or (left != left and right != right)  # noqa: PLR0124  (NaN is the value unlike itself)
    except (TypeError, ValueError, RuntimeError):
        return False


def _names(leaves: list[Leaf]) -> str:
    names = [leaf.name for leaf in leaves]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return shown or "nothing"


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
