"""Which batches and sizes a folded model takes, and what in its code decides: told by runs on tensors without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from bnfold.errors import OtherInputError, first_line
from bnfold.graph.batch_dimension import batch_positions
from bnfold.graph.captured import Capture
from bnfold.graph.dataless import Dataless, DatalessMode
from bnfold.graph.quiet import quiet
from bnfold.graph.requires import (
    require_answer,
    require_batch,
    require_number,
    require_shape,
    require_structure,
    require_value,
)
from bnfold.graph.shapes import DatalessRun

__all__ = [
    "FixedBatch",
    "Place",
    "Refusal",
    "fixed_batch",
    "holds_graph",
    "refusal_of",
    "refusal_of_batch",
    "why_fixed",
]

Place = tuple[int, int]
"""The position of an input, and one of its dimensions."""

_CHECKS = frozenset((require_answer, require_batch, require_number, require_shape, require_structure, require_value))


@dataclass(frozen=True)
class Refusal:
    """Why a model does not take a batch.

    Attributes:
        why: the condition or the call, and its source line, without a full stop.
        checked: whether a check in the graph says so, and no mere error.
    """

    why: str
    checked: bool


@dataclass(frozen=True)
class FixedBatch:
    """The one batch size that a model takes.

    Attributes:
        size: the size.
        why: what in its code decides, without a full stop.
    """

    size: int
    why: str

    def __str__(self) -> str:
        return f"The batch is fixed at {self.size}: {self.why}."


def fixed_batch(module: nn.Module, inputs: Sequence[Any], sizes: Sequence[int] = (3, 2, 1)) -> FixedBatch | None:
    """Return the batch size of the inputs where a folded model takes none of the others; else None.

    Args:
        module: a folded model; any other module is said to take every batch.
        inputs: positional inputs that it takes.
        sizes: the others.
    """
    positions = batch_positions(inputs)
    if not positions or not holds_graph(module):
        return None
    own = int(inputs[positions[0]].shape[0])
    first: Refusal | None = None
    for size in sizes:
        if size != own:
            refusal = refusal_of_batch(module, inputs, size)
            if refusal is None:
                return None
            first = first or refusal
    return None if first is None else FixedBatch(own, first.why)


def refusal_of_batch(module: nn.Module, inputs: Sequence[Any], size: int) -> Refusal | None:
    """Return why a folded model does not take a batch size; None where it does, or where no run can tell."""
    together = batch_positions(inputs)
    if not together or not holds_graph(module) or _stops(module, inputs, {}) is not None:
        return None
    refusal: Refusal | None = None
    for positions in dict.fromkeys((together, together[:1])):  # the others may be as long by chance
        found = _stops(module, inputs, _batches(positions, size))
        if found is None or found.why == "":
            return None
        refusal = refusal or found
    return refusal


def refusal_of(module: nn.Module, inputs: Sequence[Any], sizes: Mapping[Place, int]) -> Refusal | None:
    """Return why a module does not take inputs of other sizes; None where it takes them.

    Args:
        module: a folded model, or any other.
        inputs: positional inputs that it takes.
        sizes: those that are not the inputs' own.

    Returns:
        The refusal; its reason is empty where no run without data can tell. A model that takes the rows of a larger
        image for those of more images (``x.view(-1, 6272)``) does not take it.
    """
    there, together = _tried(module, inputs, sizes), batch_positions(inputs)
    if isinstance(there, Refusal):
        return there
    own = int(inputs[together[0]].shape[0]) if together else 0
    if not together or all(rows == own for rows in there.rows):
        return None
    here = _tried(module, inputs, {})
    if isinstance(here, Refusal):
        return None
    larger = _tried(module, inputs, _batches(together, own + 1))
    counts = [rows == own for rows in here.rows]  # the batch, if it is not a width that is as long by chance
    if isinstance(larger, _Ran):
        counts = [same and rows == own + 1 for same, rows in zip(counts, larger.rows, strict=False)]
    changed = next((rows for of_batch, rows in zip(counts, there.rows, strict=False) if of_batch and rows != own), None)
    return None if changed is None else Refusal(f"it makes {changed} rows of a batch of {own} then", checked=True)


def why_fixed(module: nn.Module, inputs: Sequence[Any]) -> str | None:
    """Return what fixes the batch of a folded model whose export has it fixed; None where nothing tells."""
    positions = batch_positions(inputs)
    if not positions or not holds_graph(module):
        return None
    own = int(inputs[positions[0]].shape[0])
    for size in (own + 1, 1, 8 * own, 1000 * own):
        refusal = refusal_of_batch(module, inputs, size) if size != own else None
        if refusal is not None:
            return refusal.why
    return _where_it_is_lost(module, inputs, positions, own)


def holds_graph(module: nn.Module) -> bool:
    """Whether a module holds a graph, as a folded model does."""
    return any(isinstance(part, GraphModule) for part in module.modules())


def _batches(positions: Sequence[int], size: int) -> dict[Place, int]:
    return {(position, 0): size for position in positions}


def _stops(module: nn.Module, inputs: Sequence[Any], sizes: Mapping[Place, int]) -> Refusal | None:
    """Return why a run stops."""
    ran = _tried(module, inputs, sizes)
    return ran if isinstance(ran, Refusal) else None


def _tried(module: nn.Module, inputs: Sequence[Any], sizes: Mapping[Place, int]) -> _Ran | Refusal:
    """Run, or return why a run stops; of an empty reason where it is torch that cannot run without data."""
    try:
        return _run(module, inputs, sizes)
    except NotImplementedError:
        return Refusal("", checked=False)
    except _StoppedError as stopped:
        return _refusal(stopped.node, stopped.error)
    except OtherInputError as error:
        return Refusal(error.what.rstrip("."), checked=True)
    except Exception:  # the code of a model that was captured in pieces, which may ask for data
        return Refusal("", checked=False)


@dataclass(frozen=True)
class _Ran:
    """What a run on tensors without data gave: the shapes of a graph's nodes, and the first sizes of the outputs."""

    found: dict[Node, tuple[int, ...]]
    rows: list[int]


class _StoppedError(Exception):
    """A run of a graph stopped at a node."""

    def __init__(self, node: Node | None, error: Exception) -> None:
        super().__init__(str(error))
        self.node, self.error = node, error


def _run(module: nn.Module, inputs: Sequence[Any], sizes: Mapping[Place, int]) -> _Ran:
    """Run on tensors without data."""
    grown = [
        pytree.tree_map_only(Tensor, partial(_without_data, position=position, sizes=sizes), value)
        for position, value in enumerate(inputs)
    ]
    dataless = Dataless()
    with quiet(), torch.no_grad():
        if not isinstance(module, GraphModule):
            with DatalessMode(dataless):
                return _Ran({}, _rows(module(*grown)))
        run = DatalessRun(Capture(module.graph, module, {}, "recorded"))
        with DatalessMode(run.dataless):
            try:
                answer = run.run(*grown)
            except NotImplementedError:
                raise
            except Exception as error:
                raise _StoppedError(run.at, error) from error
        return _Ran(run.found, _rows(answer))


def _rows(answer: Any) -> list[int]:
    return [leaf.shape[0] for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.ndim]


def _without_data(value: Tensor, position: int, sizes: Mapping[Place, int]) -> Tensor:
    shape = tuple(sizes.get((position, dim), size) for dim, size in enumerate(value.shape))
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _refusal(node: Node | None, error: Exception) -> Refusal:
    checked = isinstance(error, OtherInputError)
    if node is not None and node.target is require_number:
        return Refusal(str(node.args[4]), checked)
    if node is not None and node.target is require_answer:
        return Refusal(f"{node.args[2]} is {node.args[1]!r}", checked)
    if isinstance(error, OtherInputError):
        return Refusal(error.what.rstrip("."), checked)
    return Refusal(f"{_called(node)} takes no other ({first_line(error)})", checked)


def _called(node: Node | None) -> str:
    if node is None:
        return "the model"
    source = node.meta.get("source")
    return f"`{node.target if isinstance(node.target, str) else node.name}`" + (f", at {source}," if source else "")


def _where_it_is_lost(module: nn.Module, inputs: Sequence[Any], positions: Sequence[int], own: int) -> str | None:
    """Return the first call that gives as many rows for one batch as for another."""
    if not isinstance(module, GraphModule):
        return None
    try:
        here, there = (_run(module, inputs, sizes).found for sizes in ({}, _batches(positions, own + 1)))
    except Exception:  # no run can tell
        return None
    for node in module.graph.nodes:
        read = [x for x in node.all_input_nodes if x in here and x in there]
        before = [(here[x][:1], there[x][:1]) for x in read]
        if ((own,), (own + 1,)) in before and (here.get(node, ())[:1], there.get(node, ())[:1]) == ((own,), (own,)):
            return f"{_called(node)} makes {own} rows of any batch"
    return None
