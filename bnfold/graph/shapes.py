"""Shapes of all values, for the example inputs and for a batch one larger.

The first come from the capture, where it recorded them. The others come from a run of the graph on tensors without
data, when they are asked for: two batch sizes tell the batch dimension from a channel dimension that happens to be as
large. What must hold for all sizes is not read off these: see :mod:`.sizes`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from bnfold.errors import first_line
from bnfold.graph.captured import Capture
from bnfold.graph.dataless import Dataless, DatalessMode
from bnfold.graph.quiet import quiet
from bnfold.graph.runs import GraphRun

__all__ = ["DatalessRun", "Shapes", "larger_batch", "shapes_of"]

_FEW = 16  # numbers in a tensor that a call may read, such as the strides of a detector


class DatalessRun(GraphRun):
    """Runs a graph on tensors without data and notes the shape of each."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture)
        self.found: dict[Node, tuple[int, ...]] = {}
        self.at: Node | None = None
        self.dataless = Dataless()

    def fetch_attr(self, target: str) -> Any:
        """Fetch a twin without data of what has many numbers."""
        value = super().fetch_attr(target)
        return self.dataless.twin(value) if isinstance(value, Tensor) and value.numel() > _FEW else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer, unless what it gives is known."""
        module = self.capture.module(str(target))
        with torch._C.DisableTorchFunction():  # the mode that is active here need not see what is asked below
            known = self.dataless.layer(module, args, kwargs)
        return module(*args, **kwargs) if known is None else known

    def run_node(self, n: Node) -> Any:
        """Run one node and note its shape."""
        self.at = n
        value = super().run_node(n)
        if isinstance(value, Tensor):
            with torch._C.DisableTorchFunction():
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

    A run that fails ends where it fails: where the model does not take another batch size, or does something that
    tensors without data cannot do, less is known, and what needs to know it is refused.
    """
    if capture.example_inputs is None:
        return Shapes()
    if len(capture.shapes) > 1:
        return Shapes(capture.shapes)
    found, stopped = (capture.shapes[0], None) if capture.shapes else _run(capture, 0)[:2]
    return Shapes((found, _run(capture, 1)[0]), stopped or None)


def larger_batch(capture: Capture) -> tuple[Capture, Any] | None:
    """Run a recorded graph for a batch one larger than the example's.

    Returns:
        The capture with the shapes of that run beside those of its own, and what the graph gives: tensors without data.
        None where the graph does not hold for that batch.
    """
    found, stopped, outputs = _run(capture, 1)
    return None if stopped is not None else (replace(capture, shapes=(capture.shapes[0], found)), outputs)


def _run(capture: Capture, more: int) -> tuple[dict[Node, tuple[int, ...]], str | None, Any]:
    """Return the shapes that a run shows, why it stopped early, and what it gives; no reason where that is no fault."""
    assert capture.example_inputs is not None
    inputs = [_without_data(value, more) for value in capture.example_inputs]
    runner = DatalessRun(capture)
    with quiet(), torch.no_grad(), DatalessMode(runner.dataless):
        try:
            outputs = runner.run(*inputs)
        except NotImplementedError:  # nothing is wrong with the inputs
            return runner.found, "", None
        except Exception as error:  # whatever the user's code raises, and torch's own long tale of it
            return runner.found, _sentence(runner.at, error), None
    return runner.found, None, outputs


def _sentence(node: Node | None, error: Exception) -> str:
    where = "" if node is None else f" at `{node.target if node.op == 'call_module' else node.name}`"
    return (
        "Run on the example inputs to learn its shapes, the graph stopped"
        f"{where}: {first_line(error)}. What needs shapes from there on is refused."
    )


def _without_data(value: Any, more: int) -> Any:
    """Return a tensor without data like ``value``, its batch larger by ``more``; a nest part by part, as it is."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_without_data(part, 0) for part in value)
    if isinstance(value, dict):
        return {key: _without_data(part, 0) for key, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    shape = (value.shape[0] + more, *value.shape[1:]) if value.ndim else ()
    return torch.empty(shape, dtype=value.dtype, device="meta")
