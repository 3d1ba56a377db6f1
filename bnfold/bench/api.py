"""``bench(original, folded, example_inputs)``: the latency of two models, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnfold.bench.machine import cores, this_machine
from bnfold.bench.result import Bench, Skipped, Timing, timing_of
from bnfold.bench.targets import TARGETS, NotReadyError, Target, make_target
from bnfold.bench.turns import CLOCKS, measure
from bnfold.errors import UsageError, first_line
from bnfold.export.dynamic import DEFAULT, Dynamic
from bnfold.graph.batch_dimension import as_tuple, batch_positions
from bnfold.graph.mode import require_eval
from bnfold.witness.registry import known

__all__ = ["bench"]

_TRIALS = 3
"""Each pair is set up so many times: where its memory happens to lie can cost a short model several per cent."""

Progress = Callable[[str, float], None]

_WORDS = {
    "eager": "torch eager",
    "channels-last": "torch eager, channels_last",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
}


def bench(
    original: nn.Module,
    folded: nn.Module,
    example_inputs: Any,
    *,
    targets: Sequence[str] = ("eager", "compile", "onnxruntime"),
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    seconds: float = 5.0,
    clock: Literal["wall", "cpu"] = "wall",
    seed: int = 0,
    dynamic: Dynamic = DEFAULT,
    progress: Progress | None = None,
) -> Bench:
    """Measure how long both models take, in turn, on each target at each batch size.

    Args:
        original: in eval mode; not changed.
        folded: in eval mode; not changed.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        targets: any of ``"eager"``, ``"channels-last"``, ``"compile"``, ``"onnxruntime"``, and names of witnesses, such
            as ``"openvino"``.
        batches: batch sizes; without effect where no input has a batch dimension.
        threads: how many each target computes with; by default one for each core.
        seconds: how long to measure each target at each batch size.
        clock: ``"cpu"`` counts the process's CPU time, of all its threads, where other work shares the machine.
        seed: of the order in which the models take turns.
        dynamic: what stays free in the ONNX export; see :func:`bnfold.export_onnx`. Where the batch does not, there is
            an export for each batch size.
        progress: is told what is being done, and how much of all is done, from 0 to 1.

    Raises:
        TrainingModeError: a model is in training mode.
        UsageError: a target, a batch size or another argument is invalid, or the original does not run.
    """
    _check(targets, batches, threads, seconds, clock)
    inputs = as_tuple(example_inputs)
    require_eval("The original model", original)
    require_eval("The folded model", folded)
    sizes: Sequence[int | None] = tuple(dict.fromkeys(batches)) if batch_positions(inputs) else (None,)
    names, used = tuple(dict.fromkeys(targets)), cores() if threads is None else threads
    machine = this_machine()
    timings: list[Timing] = []
    skipped: list[Skipped] = []
    with _threads(used):
        difference = _difference(original, folded, inputs)
        for index, name in enumerate(names):

            def told(what: str, done: float, index: int = index) -> None:
                if progress is not None:
                    progress(what, (index + done) / len(names))

            told(f"preparing {_WORDS.get(name, name)}", 0.0)
            try:
                pair = [make_target(name, module, inputs, used, dynamic) for module in (original, folded)]
            except NotReadyError as error:
                skipped.append(Skipped(name, None, f"{error}."))
                continue
            for place, size in enumerate(sizes):

                def going(done: float, place: int = place, told: Progress = told, name: str = name) -> None:
                    told(f"measuring {_WORDS.get(name, name)}", (place + done) / len(sizes))

                try:
                    timings.append(_timing(name, pair, size, seconds, clock, seed, going))
                except NotReadyError as error:
                    skipped.append(Skipped(name, size, f"{error}."))
            del pair  # sessions and copies of this target, before those of the next are made
            if name == "compile":
                torch._dynamo.reset()
    return Bench(machine, used, clock, tuple(timings), tuple(skipped), difference)


def _timing(
    name: str,
    pair: Sequence[Target],
    size: int | None,
    seconds: float,
    clock: str,
    seed: int,
    progress: Callable[[float], None],
) -> Timing:
    original: list[float] = []
    folded: list[float] = []
    for trial in range(_TRIALS):

        def told(done: float, trial: int = trial) -> None:
            progress((trial + done) / _TRIALS)

        told(0.0)
        contestants = {str(place): target.run(size) for place, target in enumerate(pair)}
        times = measure(contestants, seconds=seconds / _TRIALS, clock=CLOCKS[clock], seed=seed + trial, progress=told)
        original += times["0"]
        folded += times["1"]
    return timing_of(name, size, original, folded)


def _check(targets: Sequence[str], batches: Sequence[int], threads: int | None, seconds: float, clock: str) -> None:
    every = (*TARGETS, *known())
    if not targets or not batches:
        raise UsageError("There is nothing to measure.", fix="Name at least one target and one batch size.")
    for name in targets:
        if name not in every and ":" not in name:
            raise UsageError(f"There is no target called {name!r}.", fix=f"Use any of {', '.join(every)}.")
    if any(size < 1 for size in batches):
        raise UsageError(f"A batch size of {min(batches)} is not valid.", fix="Give batch sizes of 1 or more.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot compute anything.", fix="Give 1 or more.")
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"A measurement cannot take {seconds} seconds.", fix="Give some seconds, such as 5.")
    if clock not in CLOCKS:
        raise UsageError(f"There is no clock called {clock!r}.", fix=f"Use one of {', '.join(CLOCKS)}.")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads, and put back what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _difference(original: nn.Module, folded: nn.Module, inputs: tuple[Any, ...]) -> float | None:
    """Return the largest difference of any output, as a part of the largest value there; None where none compare.

    Raises:
        UsageError: the original does not run on the inputs.
    """
    from torch.utils import _pytree as pytree

    with torch.no_grad():
        try:
            expected = pytree.tree_leaves(original(*inputs))
        except Exception as error:
            raise UsageError(
                f"The model does not run on these inputs: {first_line(error)}.",
                fix="Give an --input-shape that it takes, or real inputs with --inputs.",
            ) from error
        found = pytree.tree_leaves(folded(*inputs))
    worst: float | None = None
    for before, after in zip(expected, found, strict=False):
        if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.shape != after.shape:
            continue
        if not before.is_floating_point() or before.numel() == 0:
            continue
        peak = float(before.abs().max())
        apart = float((before.double() - after.double()).abs().max())
        worst = max(worst or 0.0, apart / peak if peak > 0 else apart)
    return None if worst is None or math.isnan(worst) else worst
