"""An ONNX model made ready to be read: a copy of its own, functions inlined, every value named, nodes in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir

from bnfold.errors import RefusedFileError, UsageError

__all__ = ["OLDEST", "OnnxModel", "prepared", "version_of"]

OnnxModel: TypeAlias = "Path | onnx.ModelProto | ir.Model"

OLDEST = 7
"""The oldest opset: before it, sums were stretched as attributes said."""


def prepared(given: OnnxModel, *, freeze: bool) -> ir.Model:
    """Return a copy that may be changed; it shares all tensors.

    Raises:
        RefusedFileError: it is no ONNX model that could be read, or of an opset before 7.
    """
    model = _read(given)
    version_of(model)
    if model.functions:
        from onnx_ir.passes.common import InlinePass

        model = InlinePass()(model).model
    _require_outputs(model)
    _name(model)
    _sort(model)
    if freeze:
        held = set(model.graph.initializers.values())
        for value in [value for value in model.graph.inputs if value in held]:
            model.graph.inputs.remove(value)
    return model


def _read(given: Any) -> ir.Model:
    if isinstance(given, Path):
        from bnfold.files.onnx_file import read_onnx

        return read_onnx(given)
    if isinstance(given, onnx.ModelProto):
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in given.graph.initializer):
            raise UsageError(
                "The onnx.ModelProto has weights in another file, and does not say where that lies.",
                fix="Give the path of its .onnx file.",
            )
        try:
            return ir.from_proto(given)
        except Exception as error:
            raise _refused(error) from error
    if isinstance(given, ir.Model):
        copy = given.clone()
        copy.meta.update(given.meta)
        return copy
    raise UsageError(
        f"A {type(given).__name__} is no ONNX model.",
        fix="Give the path of an .onnx file, an onnx.ModelProto or an onnx_ir.Model.",
    )


def version_of(model: ir.Model) -> int:
    """Return the opset of ONNX's own operators.

    Raises:
        RefusedFileError: it is older than 7.
    """
    versions = [version for domain, version in model.opset_imports.items() if domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] < OLDEST:
        told = f"of opset {versions[0]}" if len(versions) == 1 else "of no opset"
        raise RefusedFileError(
            f"The ONNX model is {told}, and bnfold reads {OLDEST} and newer.",
            fix="Convert it first with onnx.version_converter.convert_version.",
        )
    return versions[0]


def _require_outputs(model: ir.Model) -> None:
    """Refuse a graph that returns what nothing in it gives, as a body that returns a value from around it."""
    for graph in model.graphs():
        for value in graph.outputs:
            if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                told = f"its graph `{graph.name}` returns `{value.name}`, which nothing in it gives"
                raise RefusedFileError(
                    f"The ONNX model is broken: {told}.",
                    fix="Put an Identity node before it, or export the model again.",
                )


def _name(model: ir.Model) -> None:
    """Give a name to each result that has none and is read."""
    for graph in model.graphs():
        for node in graph:
            for output in node.outputs:
                if not output.name and output.uses():
                    from onnx_ir.passes.common import NameFixPass

                    NameFixPass()(model)
                    return


def _sort(model: ir.Model) -> None:
    """Put nodes after all that they read, where they are not.

    Raises:
        RefusedFileError: they go round in a circle.
    """
    seen: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker is not None and maker not in seen and maker is not node for maker in makers) or node in makers:
            try:
                for graph in model.graphs():
                    graph.sort()
            except Exception as error:
                raise _refused(error) from error
            return
        seen.add(node)


def _refused(error: Exception) -> RefusedFileError:
    told = " ".join(str(error).split())[:200].rstrip(".")
    return RefusedFileError(f"The ONNX model cannot be read: {told}.", fix="Check it with onnx.checker.")
