"""Shapes of all values, from one run on fake tensors for each of two batch sizes.

Nothing is computed: :class:`torch._subclasses.FakeTensorMode` carries shapes and dtypes only. Two batch sizes tell the
batch dimension from a channel dimension that happens to be as large.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx import Interpreter, Node

from bnfold.errors import first_line
from bnfold.graph.captured import Capture
from bnfold.graph.quiet import quiet
from bnfold.graph.tracer import NARROW

__all__ = ["Shapes", "shapes_of"]


# What fake tensors cannot do, and real ones can.
_FAKE_LIMITS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


class _Shapes(Interpreter):
    """Runs a graph and notes the shape of each tensor."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture.root, garbage_collect_values=True, graph=capture.graph)
        self.capture = capture
        self.found: dict[Node, tuple[int, ...]] = {}
        self.at: Node | None = None

    def fetch_attr(self, target: str) -> Any:
        """Fetch from the constants of the capture as well."""
        constant = self.capture.constants.get(target)
        return super().fetch_attr(target) if constant is None else constant

    def run_node(self, n: Node) -> Any:
        """Run one node and note its shape."""
        self.at = n
        value = super().run_node(n)
        if NARROW in n.meta and n.op == "get_attr":
            value = value.to(n.meta[NARROW])
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        return value


class Shapes(NamedTuple):
    """Shapes by node, for each batch size that was tried.

    Attributes:
        found: for the example inputs and for a batch one larger; empty without example inputs.
        stopped: why the run on the example inputs themselves ended early: a sentence for the user; None where it did
            not.
    """

    found: tuple[dict[Node, tuple[int, ...]], ...] = ()
    stopped: str | None = None


def shapes_of(capture: Capture) -> Shapes:
    """Return the shapes for the example inputs and for a batch one larger.

    A run that fails ends where it fails: where the model does not take another batch size, or does something that fake
    tensors cannot do, less is known, and what needs to know it is refused.
    """
    if capture.example_inputs is None:
        return Shapes()
    found, stopped = _run(capture, 0)
    return Shapes((found, _run(capture, 1)[0]), stopped)


def _run(capture: Capture, more: int) -> tuple[dict[Node, tuple[int, ...]], str | None]:
    assert capture.example_inputs is not None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [_grown(value, more) for value in capture.example_inputs]
    runner = _Shapes(capture)
    with quiet(), mode, torch.no_grad():
        try:
            runner.run(*[mode.from_tensor(value) if isinstance(value, Tensor) else value for value in inputs])
        except _FAKE_LIMITS:  # nothing is wrong with the inputs
            return runner.found, None
        except Exception as error:  # whatever the user's code raises on fake tensors, and torch's own long tale of it
            return runner.found, _sentence(runner.at, error)
    return runner.found, None


def _sentence(node: Node | None, error: Exception) -> str:
    where = "" if node is None else f" at `{node.target if node.op == 'call_module' else node.name}`"
    return (
        "Run on the example inputs to learn its shapes, the graph stopped"
        f"{where}: {first_line(error)}. What needs shapes from there on is refused."
    )


def _grown(value: Any, more: int) -> Any:
    """Return a tensor like ``value`` whose first dimension is larger by ``more``; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or more == 0:
        return value
    return value.new_empty((value.shape[0] + more, *value.shape[1:]))
