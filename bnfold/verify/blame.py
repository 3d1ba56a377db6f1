"""What a failure points at: a BatchNorm, the exporter, or ONNX Runtime's optimiser.

The stages build on each other, so the first that fails is to blame:

    fold        the folded module itself is wrong; the BatchNorm whose site goes wrong first is named
    export      torch agrees, its export does not. If the export of the *original* fails as well, the fold is not in it
    optimizer   the export agrees with ONNX Runtime's optimisations off, and not with them on
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from torch import fx, nn

from bnfold.errors import BnfoldError
from bnfold.export import onnx_of, wanted
from bnfold.export.dynamic import DEFAULT
from bnfold.verify.exercise import BATCHNORMS
from bnfold.verify.floor import Evaluated, NoiseFloor
from bnfold.verify.locate import Located, locate, locate_by_name
from bnfold.verify.reference import copied_in_float64, everything_in_float64, fresh_in_float64
from bnfold.verify.report import Comparison
from bnfold.verify.witness import Witness, compare, of_onnx

__all__ = ["UNFOLDED", "Findings", "OwnExport", "blame_of_export", "culprit"]


UNFOLDED = "the original's own export, optimisations off"


@dataclass(frozen=True)
class Findings:
    """What is known of a failure.

    Attributes:
        sentence: for the report.
        located: the BatchNorm to blame, where one could be found.
        comparisons: further ones that were made to find out.
    """

    sentence: str
    located: str | None = None
    comparisons: tuple[Comparison, ...] = ()


def culprit(
    failed: Comparison, original: nn.Module, candidate: nn.Module | None, folding: Any, evaluated: Sequence[Evaluated]
) -> Findings:
    """Say which BatchNorm a failing fold goes wrong at.

    Args:
        failed: the first comparison that failed.
        original: the caller's; not changed.
        candidate: the caller's; None where it is ONNX alone.
        folding: what made the candidate, or None.
        evaluated: the cases.
    """
    case = next((item.case for item in evaluated if failed.case in (item.case.name, "")), None)
    if case is None or candidate is None:
        return Findings("")
    found: Located | None = None
    # a graph that cannot be run node by node, or that raises as the candidate did, is not located: the verdict stands
    with contextlib.suppress(Exception), everything_in_float64():
        inputs = fresh_in_float64(case.inputs)
        if folding is not None:
            graph, exact = folding.in_float64()
            found = locate(graph, exact, folding.plan, inputs, exact=True)
            if found is None and isinstance(candidate, fx.GraphModule):
                rounded = cast("fx.GraphModule", copied_in_float64(candidate))
                found = locate(graph, rounded, folding.plan, inputs, exact=False)
        else:
            names = [name for name, layer in original.named_modules() if isinstance(layer, BATCHNORMS)]
            twins = copied_in_float64(original), copied_in_float64(candidate)
            found = locate_by_name(*twins, inputs, names=names)
    if found is None:
        return Findings("")
    if folding is None:
        return Findings(f"Of the layers that both have, `{found.batchnorm}` is the first to differ.", found.batchnorm)
    return Findings(
        f"It goes wrong at `{found.batchnorm}`: fold with keep=[{found.batchnorm!r}] (--keep {found.batchnorm}).",
        found.batchnorm,
    )


class OwnExport:
    """The original's own export, folded by nobody: made when it is first asked for, and once.

    Args:
        original: not changed; None where the original is no module.
        example: positional inputs, to export with.
        dynamic: which dimensions are to be free in it, where they can be.
    """

    def __init__(
        self, original: nn.Module | None, example: tuple[Any, ...], dynamic: tuple[str, ...] = DEFAULT
    ) -> None:
        self._original = original
        self._example = example
        self._dynamic = wanted(dynamic, by_name=False)

    @cached_property
    def model(self) -> Any:
        """The ``ModelProto``; None where it cannot be had."""
        if self._original is None:
            return None
        try:
            return onnx_of(self._original, self._example, dynamic=self._dynamic, optimize=False).model
        except BnfoldError:
            return None

    @cached_property
    def under_runtime(self) -> Witness | None:
        """The witness that runs it under ONNX Runtime, without optimisations; None where it cannot be had."""
        if self.model is None:
            return None
        try:
            return replace(of_onnx(self.model, "off"), name=UNFOLDED)
        except BnfoldError:
            return None

    @cached_property
    def in_float64(self) -> Witness | None:
        """The witness that computes it in float64; None where it has no float64 form."""
        from bnfold.verify.onnx_original import OnnxOriginal

        if self.under_runtime is None:
            return None
        try:
            double = OnnxOriginal(self.model, self._example)
        except BnfoldError:
            return None
        if not double.has_float64:
            return None
        return replace(self.under_runtime, run=lambda case: double.exact(case.inputs))


def blame_of_export(
    failed: Comparison,
    unfolded: Witness | None,
    evaluated: Sequence[Evaluated],
    floors: NoiseFloor,
    *,
    alone: bool = False,
) -> Findings:
    """Say what a failure of the export, or of ONNX Runtime, points at.

    Args:
        failed: the first comparison that failed.
        unfolded: the original's own export; None where it could not be had.
        evaluated: the cases.
        floors: their noise floors.
        alone: the candidate is a file, so that no torch module is known to agree.
    """
    if failed.stage == "optimizer":
        return Findings("With optimisations off it agrees: ONNX Runtime's optimiser is to blame.")
    if unfolded is None:
        return Findings("" if alone else "The torch module agrees: the exporter or ONNX Runtime is to blame.")
    own = tuple(compare(unfolded, evaluated, floors, []))
    if alone:
        as_far = any(not comparison.passed or 2 * comparison.floors > failed.floors for comparison in own)
        words = (
            "The original's own export, made here and folded by nobody, is as far off: what the exporter or ONNX "
            "Runtime does to this model may be all that differs."
            if as_far
            else "The original's own export, made here, agrees: what differs is in the candidate."
        )
    elif any(not comparison.passed for comparison in own):
        words = "The original's own export fails as well: the exporter or ONNX Runtime is to blame, not the fold."
    else:
        words = "The torch module agrees and so does the original's own export: the exporter is to blame."
    return Findings(words, comparisons=own)
