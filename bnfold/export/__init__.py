"""Exports for deployment: ``torch.export`` and ONNX, with the dimensions free that are asked for.

Each name is loaded when it is first used, so that what is asked for can be checked before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.export.axes import Axis, shape_in_words, words_of
    from bnfold.export.dynamic import Dynamic, Wanted, wanted
    from bnfold.export.onnx_model import (
        PROTOBUF_LIMIT,
        OnnxExport,
        export_onnx,
        onnx_of,
        save_onnx,
        to_onnx,
        weight_bytes,
    )
    from bnfold.export.program import ProgramExport, SizeWarning, StaticBatchWarning, export_program, to_program

__all__ = [
    "PROTOBUF_LIMIT",
    "Axis",
    "Dynamic",
    "OnnxExport",
    "ProgramExport",
    "SizeWarning",
    "StaticBatchWarning",
    "Wanted",
    "export_onnx",
    "export_program",
    "onnx_of",
    "save_onnx",
    "shape_in_words",
    "to_onnx",
    "to_program",
    "wanted",
    "weight_bytes",
    "words_of",
]

_MODULES = ("dynamic", "axes", "program", "onnx_model")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"bnfold.export.{module}"))
            if name in found["__all__"]:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module 'bnfold.export' has no attribute {name!r}")
