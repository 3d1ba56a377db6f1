"""Denormal weights that a fold made: count them, and set them to zero if asked.

A number smaller than the smallest normal one of its type (1.2e-38 in float32 and bfloat16) is stored with fewer digits,
and some processors compute with it a hundred times slower. A trained network may hold weights of 1e-30 in channels that
died; times a small scale, they become denormal.

float16 is left out: its denormals begin at 6e-5, where ordinary weights are. Processors compute with them at full
speed, or in float32, where they are normal; and to zero them would cost accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bnfold.fold.decision import listed
from bnfold.fold.explicit import ExplicitAffine
from bnfold.graph.captured import Capture

__all__ = ["denormal_sentences", "denormals_made", "flush"]

_CLONE = re.compile(r"_folded\d+(?=\.|$)")


def denormals_made(folded: nn.Module, captured: Capture) -> dict[str, int]:
    """Return how many denormals the fold made, for each parameter of the folded model that has some.

    Those that the original has in the same place do not count, nor do the numbers of an explicit affine, which are
    those of the BatchNorm.
    """
    return {name: int(made.sum()) for name, _, made in _made(folded, captured)}


def flush(folded: nn.Module, captured: Capture) -> dict[str, int]:
    """Set the denormals that the fold made to zero; return their numbers, as :func:`denormals_made`."""
    counts = {}
    for name, tensor, made in _made(folded, captured):
        counts[name] = int(made.sum())
        tensor[made] = 0.0
    return counts


def denormal_sentences(counts: Mapping[str, int], *, flushed: bool) -> tuple[str, ...]:
    """Return the sentence for the user about them, or none."""
    if not counts:
        return ()
    count = sum(counts.values())
    where = listed(tuple(f"{name} ({number:,})" for name, number in counts.items()))
    weights, became = ("weight", "was") if count == 1 else ("weights", "were")
    if flushed:
        return (f"{count:,} {weights} that the fold made denormal {became} set to zero: {where}.",)
    text = "became denormal, which slows some processors down: "
    return (f"{count:,} {weights} {text}{where}. --flush-denormals (flush_denormals=True) sets them to zero.",)


def _made(folded: nn.Module, captured: Capture) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, tensor and a mask of the new denormals, of each new parameter that has some."""
    originals = {name: tensor.detach() for name, tensor in captured.root.named_parameters(remove_duplicate=False)}
    kept = {tensor.untyped_storage().data_ptr() for tensor in originals.values()}
    explicit = {f"{name}." for name, part in folded.named_modules() if isinstance(part, ExplicitAffine)}
    for name, parameter in folded.named_parameters():
        tensor = parameter.detach()
        if tensor.is_meta or tensor.dtype == torch.float16 or not tensor.is_floating_point():
            continue
        if tensor.untyped_storage().data_ptr() in kept or name.rpartition(".")[0] + "." in explicit:
            continue
        made = _denormal(tensor)
        before = originals.get(captured.original_name(_CLONE.sub("", name)))
        if before is not None and before.shape == made.shape:
            made &= ~_denormal(before)
        if bool(made.any()):
            yield name, tensor, made


def _denormal(tensor: Tensor) -> Tensor:
    return (tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)
