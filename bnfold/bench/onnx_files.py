"""The latency of two ONNX models under ONNX Runtime, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx

from bnfold.bench.machine import cores, this_machine
from bnfold.bench.result import Bench, Skipped, timing_of
from bnfold.bench.turns import CLOCKS, measure
from bnfold.graph.batch_dimension import batch_positions, with_batch
from bnfold.verify.runtime import OrtModel

__all__ = ["bench_onnx_files"]


def bench_onnx_files(
    original: Path,
    folded: onnx.ModelProto,
    inputs: tuple[Any, ...],
    *,
    batches: Sequence[int],
    threads: int | None,
    seconds: float,
    clock: Literal["wall", "cpu"],
    seed: int,
    progress: Callable[[str, float], None],
) -> Bench:
    """Measure how long both models take, in turn, at each batch size; see :func:`bnfold.bench.api.bench`."""
    used = cores() if threads is None else threads
    sessions = [OrtModel(model, "full", threads=used) for model in (original, folded)]
    timings, skipped = [], []
    sizes: list[int | None] = list(dict.fromkeys(batches)) if batch_positions(inputs) else [None]
    for place, size in enumerate(sizes):
        given = inputs if size is None else with_batch(inputs, size)
        problem = sessions[0].refuses(given)
        if problem is not None:
            skipped.append(Skipped("onnxruntime", size, f"{problem[0].upper()}{problem[1:]}."))
            continue
        contestants = {str(number): session.prepared(*given) for number, session in enumerate(sessions)}
        for run in contestants.values():
            run()
        progress("measuring ONNX Runtime", place / len(sizes))
        times = measure(contestants, seconds=seconds, clock=CLOCKS[clock], seed=seed)
        timings.append(timing_of("onnxruntime", size, times["0"], times["1"]))
    return Bench(this_machine(), used, clock, tuple(timings), tuple(skipped), _difference(sessions, inputs))


def _difference(sessions: Sequence[OrtModel], inputs: tuple[Any, ...]) -> float | None:
    """Return the largest difference of any output, as a part of the largest value there."""
    worst: float | None = None
    for before, after in zip(*(session(*inputs) for session in sessions), strict=True):
        if before.is_floating_point() and before.numel() and before.shape == after.shape:
            peak = float(before.abs().max())
            found = float((before - after).abs().max()) / (peak or 1.0)
            worst = found if worst is None or not worst >= found else worst
    return worst
