"""What a capture is: a graph, the model that it came from, and what was met on the way. Read-only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

__all__ = ["DTYPE", "NARROW", "Capture"]

DTYPE = "dtype"
"""In a node's ``meta``: the type of the tensor that a recorded run computed there."""

NARROW = "narrow"
"""In a node's ``meta``: the type in which float64 numbers computed from a layer of the user's are used."""


@dataclass(frozen=True, eq=False)
class Capture:
    """A model's graph.

    Attributes:
        graph: the graph; nobody changes it.
        root: the model, which the graph's targets name parts of.
        constants: tensors that the graph reads by name and the model does not hold.
        way: ``"recorded"``, ``"symbolic"``, ``"export"`` or ``"piecewise"``.
        example_inputs: positional inputs, or None.
        notes: sentences for the user.
        shapes: of all tensors, for the example inputs and perhaps for a second batch size; empty where the capture
            does not know them.
        pieces: for a piecewise capture, the captures of the parts by place; ``graph`` is then empty.
        prefix: of a piece: what stands before the names in its graph to make them names of the model.
        passed: of a piece: the places after its own that it also stands for.
        exact: whether the graph calls the kernels that the model calls; else it may round otherwise.
        changes: attributes that a run of the model changes.
        affines: whether affines by constants are read as such.
        check_seconds: how long the comparison with the model took.
    """

    graph: Graph
    root: nn.Module
    constants: dict[str, Tensor]
    way: str
    example_inputs: tuple[Any, ...] | None = None
    notes: tuple[str, ...] = ()
    shapes: tuple[dict[Node, tuple[int, ...]], ...] = ()
    pieces: dict[str, Capture] = field(default_factory=dict)
    prefix: str = ""
    passed: tuple[str, ...] = ()
    exact: bool = True
    changes: tuple[str, ...] = ()
    affines: bool = False
    check_seconds: float = 0.0
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def with_affines(self) -> Capture:
        """Return the same, in which affines by constants are read as such."""
        names = {key: module for key, module in self._cache.items() if isinstance(key, str)}
        pieces = {path: piece.with_affines() for path, piece in self.pieces.items()}
        return replace(self, affines=True, pieces=pieces, _cache=names)

    def module(self, name: str) -> nn.Module:
        """Return the submodule called ``name``."""
        found: nn.Module | None = self._cache.get(name)
        if found is None:
            found = self._cache[name] = self.root.get_submodule(name)
        return found

    def tensor(self, name: str) -> Tensor:
        """Return the parameter, buffer or constant called ``name``."""
        constant = self.constants.get(name)
        if constant is not None:
            return constant
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.module(owner) if owner else self.root, attribute)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, not a tensor")
        return value

    def original_name(self, name: str) -> str:
        """Return what something is called in the model that is called ``name`` in a rewritten one."""
        for place, piece in self.pieces.items():
            if name.startswith(place + "."):
                return piece.prefix + name.removeprefix(place + ".")
        return name
