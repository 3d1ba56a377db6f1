"""MNN on the CPU, in float32. It has a format of its own: a file is converted first, in a folder that is deleted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bnfold.witness.registry import Run

__all__ = ["load"]


_SMALL_TILES = (3, 1)
"""The hint about Winograd's memory: with the tiles that MNN takes by default the error is twenty times as large."""


def load(path: str, *, threads: int | None = None) -> Run:
    """Return what runs an ONNX file under MNN.

    Args:
        path: of the file.
        threads: how many to compute with; by default one.

    Raises:
        RuntimeError: MNN does not take the model, or an input of a type that it lacks.
    """
    import MNN
    import numpy as np
    import onnx

    # MNN's own command does the same, and then installs a package that sends its maker what was converted
    from _tools import mnnconvert

    graph = onnx.load(path, load_external_data=False).graph
    names = [[value.name for value in values] for values in (graph.input, graph.output)]
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder) / "model.mnn")
        command = ["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", made, "--bizCode", "bnfold"]
        if not mnnconvert(command) or not Path(made).exists():
            raise RuntimeError("MNN cannot convert the model")
        manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads or 1},))
        manager.set_hint(*_SMALL_TILES)
        module = MNN.nn.load_module_from_file(made, *names, runtime_manager=manager)

    def run(inputs: dict[str, Any]) -> list[Any]:
        answers = module.forward([_variable(MNN.expr, np.ascontiguousarray(inputs[name])) for name in names[0]])
        answers = answers if isinstance(answers, (list, tuple)) else [answers]
        return [np.array(MNN.expr.convert(answer, MNN.expr.NCHW).read()) for answer in answers]

    return run


def _variable(expr: Any, value: Any) -> Any:
    known = {"float32": expr.float, "int32": expr.int}
    if value.dtype.name not in known:
        raise RuntimeError(f"MNN has no inputs of {value.dtype}")
    return expr.const(value, list(value.shape), expr.NCHW, known[value.dtype.name])
