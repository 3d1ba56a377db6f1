"""``Loop`` of the reference implementation, put right: what a loop collects is stacked, and not joined.

The reference joins what has more than one dimension along the first, where ONNX says, and ONNX Runtime does, that each
trip is an entry of a new dimension in front.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference.ops import load_op

__all__ = ["stacking_loop"]


def stacking_loop(version: int) -> Any:
    """Return the class that computes ``Loop``, for ``ReferenceEvaluator(..., new_ops=[...])``."""
    reference: Any = load_op("", "Loop", version)

    def made(self: Any, *args: Any) -> None:
        reference.__init__(self, *args)
        run_body = self._run_body  # of the instance: the reference makes it of the attribute
        self.trips = []

        def noted(*given: Any, **named: Any) -> Any:
            outputs = run_body(*given, **named)
            self.trips.append(outputs[len(outputs) - self.K :])
            return outputs

        self._run_body = noted

    def run(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self.trips = []
        outputs = list(reference._run(self, *args, **kwargs))
        for number in range(self.K if self.trips else 0):
            outputs[self.N + number] = np.stack([trip[number] for trip in self.trips])
        return tuple(outputs)

    named = {"__init__": made, "_run": run, "op_domain": "", "op_schema": onnx.defs.get_schema("Loop", version)}
    return type("Loop", (reference,), named)
