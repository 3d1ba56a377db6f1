"""The values of an ONNX graph, as the planner sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Kind", "OnnxValue", "free_name"]

Kind: TypeAlias = Literal["input", "constant", "node", "several", "item", "output"]
"""What a value is: an input of the graph, or captured from the graph around it; a constant; what a node computes, if it
gives one result that anybody reads; several results; one of these; what the graph returns."""


class OnnxValue:
    """A value of one graph.

    Attributes:
        name: no other value of the graph has it.
        kind: see :data:`Kind`.
        value: in the graph; None for several results together.
        maker: the node that computes it, or whose results it stands for.
        inputs: what is read to compute it, once each.
    """

    __slots__ = ("inputs", "kind", "maker", "name", "value")

    def __init__(self, name: str, kind: Kind, value: ir.Value | None, maker: ir.Node | None) -> None:
        self.name = name
        self.kind = kind
        self.value = value
        self.maker = maker
        self.inputs: tuple[OnnxValue, ...] = ()

    def __repr__(self) -> str:
        return f"OnnxValue({self.name!r}, {self.kind!r})"


def free_name(wanted: str, taken: set[str]) -> str:
    """Return a name that nothing has yet, as near to a wanted one as can be; it is taken from then on."""
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    taken.add(name)
    return name
