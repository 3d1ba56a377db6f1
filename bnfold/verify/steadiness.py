"""Where the oracle itself is undecided: its answer hangs on the last bit of float64.

A detector sorts boxes by score and keeps the best; where two scores are equal but for rounding, another order of
operations sorts them otherwise, and no fold could be told from that. So before a right answer in float64 is called
wrong, the oracle is asked again with everything moved by a unit in the last place. What moves by more than the algebra
may err is not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.capture.nests import Leaf
from bnfold.verify.compare import measure
from bnfold.verify.floor import ALGEBRA, Evaluated
from bnfold.verify.inputs import Case
from bnfold.verify.original import TorchOriginal
from bnfold.verify.reference import fresh_in_float64

__all__ = ["mark_unsteady"]

DRAWS = 6
FACTOR = 1000.0  # times what the nudges moved an output: another order of all operations rounds more than one nudge


def mark_unsteady(
    original: TorchOriginal, answers: Callable[[Case], list[Leaf]], evaluated: list[Evaluated], *, seed: int
) -> list[str]:
    """Mark what the oracle's own rounding decides as jumps, in place, where an answer is otherwise.

    Args:
        original: the oracle is made of it.
        answers: what is compared with the oracle, in float64.
        evaluated: what the oracle answered; cases in which something is unsteady are replaced.
        seed: of the nudges.

    Returns:
        A sentence for the user on each case, up to the first on which an answer is otherwise although the oracle is
        steady: then it is wrong, and nothing else matters.
    """
    notes: list[str] = []
    for number, item in enumerate(evaluated):
        try:
            otherwise = _moved(item.oracle, answers(item.case))
        except Exception:  # it does not run, which no nudge explains
            return notes
        open_positions = otherwise.keys() - item.jumps.keys()
        if not open_positions:
            continue
        inputs = fresh_in_float64(item.case.inputs)
        generator = torch.Generator().manual_seed(seed)
        moved: dict[int, float] = {}
        for draw in range(DRAWS):
            if _excused(otherwise, moved) >= open_positions:
                break
            run = original.moved_in_float64(seed * DRAWS + draw)
            for position, by in _moved(item.oracle, run(_nudged(inputs, generator))).items():
                moved[position] = max(by, moved.get(position, 0.0))
        if not _excused(otherwise, moved) >= open_positions:
            return notes
        found = sorted(moved.keys() - item.jumps.keys())
        evaluated[number] = replace(item, jumps={**moved, **item.jumps})
        names = ", ".join(item.oracle[position].name for position in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        notes.append(
            f"On {item.case.name} a nudge of one part in 1e16 moves {names}{more} of the original by "
            f"{max(moved[position] for position in found):.2g} of the peak, in float64: not compared there."
        )
    return notes


def _excused(otherwise: Mapping[int, float], moved: Mapping[int, float]) -> set[int]:
    """Return the outputs whose error is of the size that a nudge makes."""
    return {position for position, by in moved.items() if otherwise.get(position, 0.0) <= FACTOR * by}


def _moved(oracle: Sequence[Leaf], answer: Sequence[Leaf]) -> dict[int, float]:
    """Return by how much of its peak each output is otherwise, where that is more than the algebra may err."""
    if len(answer) != len(oracle):
        return dict.fromkeys((p for p, leaf in enumerate(oracle) if leaf.is_tensor), 1.0)
    found: dict[int, float] = {}
    for position, (exact, other) in enumerate(zip(oracle, answer, strict=True)):
        if not exact.is_tensor or not other.is_tensor:
            continue
        if exact.value.shape != other.value.shape:
            found[position] = 1.0
            continue
        error = measure(exact.value, other.value)
        if error.largest > (0 if error.counted else ALGEBRA * error.peak):
            found[position] = error.largest / error.peak if error.peak > 0 else 1.0
    return found


def _nudged(inputs: Any, generator: torch.Generator) -> Any:
    """Return inputs with every floating element moved by about a unit in the last place of the largest."""

    def nudge(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64 or value.numel() == 0:
            return value
        step = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        return value + step * (torch.finfo(torch.float64).eps * value.abs().max())

    return pytree.tree_map(nudge, inputs)
