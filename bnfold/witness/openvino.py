"""OpenVINO on the CPU, in float32: what it computes by default may be bfloat16 where the processor has it."""

from __future__ import annotations

from typing import Any

from bnfold.witness.registry import Run

__all__ = ["load"]


def load(path: str, *, threads: int | None = None) -> Run:
    """Return what runs an ONNX file under OpenVINO.

    Args:
        path: of the file.
        threads: how many to compute with; by default as OpenVINO decides.

    Raises:
        RuntimeError: OpenVINO does not take the model.
    """
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(path), "CPU", settings)

    def run(inputs: dict[str, Any]) -> list[Any]:
        answer = compiled(inputs)
        return [answer[place] for place in range(len(compiled.outputs))]

    return run
