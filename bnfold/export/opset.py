"""The opset of an ONNX export: the exporter's own from 18 on, and older ones through onnx's version converter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.errors import ExportError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["FOR_BFLOAT16", "OLDEST_OF_EXPORTER", "asked_of_exporter", "at_opset"]

OLDEST_OF_EXPORTER = 18
"""What the operators of torch's exporter are written in."""

FOR_BFLOAT16 = 22
"""The first in which a convolution may be in bfloat16."""


def asked_of_exporter(opset: int | None) -> int | None:
    """Return the opset that the exporter is to be asked for; None for its default.

    Raises:
        UsageError: there is no such opset.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not 7 <= opset <= newest:
        raise UsageError(
            f"There is no opset {opset} that could be written here.",
            fix=f"Give one from 7 to {newest}, the newest that the installed onnx knows.",
        )
    return None if opset is None else max(opset, OLDEST_OF_EXPORTER)


def at_opset(model: onnx.ModelProto, opset: int | None) -> onnx.ModelProto:
    """Return a model in the opset that was asked for.

    Args:
        model: as the exporter wrote it, which may be in another opset than it was asked for.
        opset: None for whichever it is.

    Raises:
        ExportError: it cannot be converted.
    """
    import onnx
    from onnx import version_converter

    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is None or written == opset:
        return model
    try:
        if written != OLDEST_OF_EXPORTER:
            raise ValueError(f"the exporter wrote opset {written}")
        converted = version_converter.convert_version(_plain_reductions(model), opset)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:
        reason = " ".join(str(error).split()).rpartition("failed: ")[2][:200].rstrip(".")
        raise ExportError(
            f"The model cannot be written in opset {opset}: {reason}.",
            fix=f"Give a newer one; from {OLDEST_OF_EXPORTER} on nothing needs to be converted.",
        ) from error
    return converted


def _plain_reductions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose reductions leave out an attribute at its default: the converter would keep it.

    ``noop_with_empty_axes`` came with opset 18; in an older model it is unknown, and 0 is what the older ones do.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        kept = [entry for entry in node.attribute if entry.name != "noop_with_empty_axes" or entry.i != 0]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
    return copy
