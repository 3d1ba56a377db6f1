"""How ONNX spells operations: for each operator a reader, which makes an operation of what a node is given.

A reader that finds anything it does not know to the letter returns None, or raises
:class:`bnfold.ops.spelling.NotStaticError`: the node is then opaque, and nothing moves through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.spellings import arranging, elementwise, weighted, windows
from bnfold.onnx_graph.values import OnnxValue

__all__ = ["READERS", "Reader"]

Reader = Callable[[OnnxValue, NodeArguments], "ops.Operation | None"]

_FAMILIES: tuple[Mapping[str, Reader], ...] = (
    weighted.READERS,
    windows.READERS,
    elementwise.READERS,
    arranging.READERS,
)
READERS = {operator: reader for family in _FAMILIES for operator, reader in family.items()}
"""By the name of the operator, of the domains ``""`` and ``ai.onnx``."""
