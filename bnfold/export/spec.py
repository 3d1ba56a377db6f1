"""What the signature of an exported program says: the names of inputs, and of outputs in whatever nest they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph

__all__ = [
    "constant_outputs",
    "input_shapes",
    "output_names",
    "placeholder_shapes",
    "shapes_of_placeholders",
    "tensor_inputs",
]


def tensor_inputs(program: ExportedProgram) -> list[str]:
    """Return the placeholder names of the inputs that are not constants."""
    from torch.export.graph_signature import ConstantArgument

    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    return [spec.arg.name for spec in specs if not isinstance(spec.arg, ConstantArgument)]


def input_shapes(program: ExportedProgram) -> list[tuple[int | None, ...]]:
    """Return the shapes of the inputs that are tensors; None stands for a size that is not fixed."""
    return shapes_of_placeholders(program.graph, frozenset(tensor_inputs(program)))


def shapes_of_placeholders(graph: Graph, names: frozenset[str] | None = None) -> list[tuple[int | None, ...]]:
    """Return the shapes that the placeholders of an exported graph declare: all, or those of the names given."""
    nodes = [node for node in graph.nodes if node.op == "placeholder" and (names is None or node.name in names)]
    shapes = [node.meta["val"].shape for node in nodes if hasattr(node.meta.get("val"), "shape")]
    return [tuple(size if isinstance(size, int) else None for size in shape) for shape in shapes]


def constant_outputs(program: ExportedProgram) -> list[int]:
    """Return the positions of the flat outputs that are no tensors: the ONNX exporter cannot express them."""
    from torch.export.graph_signature import ConstantArgument

    specs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    return [position for position, spec in enumerate(specs) if isinstance(spec.arg, ConstantArgument)]


def output_names(program: ExportedProgram) -> list[str]:
    """Return a name per flat output: the keys that lead to it, or ``output`` and a number where it has none."""
    from torch.utils import _pytree as pytree

    count = len(program.graph_signature.user_outputs)
    specification = program.call_spec.out_spec
    if specification is None or specification.num_leaves != count:
        return [f"output_{position}" for position in range(count)]
    paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(count)), specification))[0]
    taken = set(tensor_inputs(program))
    names: list[str] = []
    for path, _ in paths:
        words = [
            re.sub(r"\W+", "_", str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))))) for key in path
        ]
        if not words or (count == 1 and words == ["0"]):
            words = ["output"]
        elif not words[0].isidentifier():
            words = ["output", *words]
        name = "_".join(words)
        while name in taken:
            name = f"output_{name}"
        taken.add(name)
        names.append(name)
    return names


def placeholder_shapes(program: ExportedProgram, inputs: Sequence[Any]) -> list[Any]:
    """Return the shape of each positional input, with symbols in it; None for an input that is no single tensor."""
    from torch.utils import _pytree as pytree

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    flat = [getattr(nodes[spec.arg.name].meta.get("val"), "shape", None) for spec in specs if spec.arg.name in nodes]
    shapes: list[Any] = []
    for value in inputs:
        count = len(pytree.tree_leaves(value))
        shapes.append(flat[0] if count == 1 and flat else None)
        flat = flat[count:]
    return shapes
