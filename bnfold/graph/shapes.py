"""Shapes of all values, from one run on fake tensors for each of two batch sizes.

Nothing is computed: :class:`torch._subclasses.FakeTensorMode` carries shapes and dtypes only. Two batch sizes tell the
batch dimension from a channel dimension that happens to be as large.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Interpreter, Node

from bnfold.graph.capture import Capture
from bnfold.graph.quiet import quiet
from bnfold.graph.tracer import NARROW

__all__ = ["shapes_of"]


class _Shapes(Interpreter):
    """Runs a graph and notes the shape of each tensor."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture.root, garbage_collect_values=True, graph=capture.graph)
        self.capture = capture
        self.found: dict[Node, tuple[int, ...]] = {}

    def fetch_attr(self, target: str) -> Any:
        """Fetch from the constants of the capture as well."""
        constant = self.capture.constants.get(target)
        return super().fetch_attr(target) if constant is None else constant

    def run_node(self, n: Node) -> Any:
        """Run one node and note its shape."""
        value = super().run_node(n)
        if NARROW in n.meta and n.op == "get_attr":
            value = value.to(n.meta[NARROW])
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        return value


def shapes_of(capture: Capture) -> tuple[dict[Node, tuple[int, ...]], ...]:
    """Return the shapes for the example inputs and for a batch one larger; empty without example inputs.

    A run that fails ends where it fails: where the model does not take another batch size, or does something that fake
    tensors cannot do, less is known, and what needs to know it is refused.
    """
    return () if capture.example_inputs is None else (_run(capture, 0), _run(capture, 1))


def _run(capture: Capture, more: int) -> dict[Node, tuple[int, ...]]:
    assert capture.example_inputs is not None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [_grown(value, more) for value in capture.example_inputs]
    runner = _Shapes(capture)
    # whatever the user's code raises on fake tensors, and torch's own long tale of it
    with contextlib.suppress(Exception), quiet(), mode, torch.no_grad():
        runner.run(*[mode.from_tensor(value) if isinstance(value, Tensor) else value for value in inputs])
    return runner.found


def _grown(value: Any, more: int) -> Any:
    """Return a tensor like ``value`` whose first dimension is larger by ``more``; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or more == 0:
        return value
    return value.new_empty((value.shape[0] + more, *value.shape[1:]))
