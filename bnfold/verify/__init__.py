"""Proof that two models compute the same function, up to the rounding that the first one makes itself.

:func:`verify` runs both on the same inputs and measures their errors against the first one in float64, in units of that
one's own error. :func:`assert_equivalent` is the same for a test. Importing this package imports neither torch nor
onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnfold.verify.report import Comparison, Report

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from bnfold.verify.api import Model, Progress

__all__ = ["Comparison", "Report", "assert_equivalent", "verify"]


def verify(
    original: Model,
    candidate: Model,
    example_inputs: Any,
    *,
    onnx: Any = True,
    seed: int = 0,
    folding: Any = None,
    inputs: Sequence[Any] = (),
    thorough: bool = False,
    axes: Sequence[Any] = (),
    progress: Progress | None = None,
    witnesses: Sequence[str] = (),
    program: ExportedProgram | None = None,
) -> Report:
    """Compare ``candidate`` with ``original`` on seeded inputs and say whether they compute the same function.

    The oracle is the original in float64. Its own error in its own precision is the noise floor, per output; the
    candidate may be a small multiple of that away, in the largest element and in the mean.

    Args:
        original: a module in eval mode, an ``ExportedProgram``, or an ONNX model (a ``ModelProto``, or a path). Not
            modified.
        candidate: likewise.
        example_inputs: a tensor, or a tuple of positional inputs, batch first. It is one of the inputs compared, and
            the others take shapes and dtypes from it.
        onnx: whether to export the candidate to ONNX and compare that under ONNX Runtime too; or the export itself, a
            ``ModelProto`` or a path, to be compared as it is. Ignored where the candidate is ONNX already.
        seed: of the inputs.
        folding: the :class:`bnfold.Folding` that made the candidate: its plan is then also checked in float64, to
            1e-10 of the peak, each weight against the plan, and a failure is traced to a BatchNorm.
        inputs: further inputs to compare on, each a tensor or a tuple.
        thorough: more inputs, and the original's own export as a further witness.
        axes: the free dimensions of the export given as ``onnx``, as ``bnfold.export.onnx_of`` tells them: one of the
            inputs is then of another size.
        progress: called with a sentence and the fraction done, from 0 to 1.
        witnesses: further runtimes to compare the export under, such as ``"openvino"``; see :mod:`bnfold.witness`. The
            candidate is exported where ``onnx`` is False. One that cannot run proves nothing; the report says why.
        program: what ``torch.export`` made of the candidate, to be compared too.

    Returns:
        The report. It does not raise for models that differ.

    Raises:
        UsageError: the inputs cannot be used, or the original does not run on them, or there is no such witness.
        TrainingModeError: one of the two is in training mode.
        ExportError: the candidate cannot be exported to ONNX.
        MissingPackageError: ``onnx`` is wanted and ONNX Runtime is not installed.
    """
    from bnfold.verify import api

    return api.verify(
        original,
        candidate,
        example_inputs,
        onnx=onnx,
        seed=seed,
        folding=folding,
        inputs=inputs,
        thorough=thorough,
        axes=axes,
        progress=progress,
        witnesses=witnesses,
        program=program,
    )


def assert_equivalent(
    original: Model,
    candidate: Model,
    example_inputs: Any,
    *,
    onnx: bool = False,
    seed: int = 0,
    witnesses: Sequence[str] = (),
) -> None:
    """Raise unless ``candidate`` computes the same function as ``original``; for tests and pipelines.

    Args:
        original: as for :func:`verify`.
        candidate: as for :func:`verify`.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        onnx: compare the candidate's ONNX export as well.
        seed: of the inputs.
        witnesses: as for :func:`verify`.

    Raises:
        NotEquivalentError: they differ, or it cannot be shown that they do not; ``error.report`` is the report.
        UsageError: the inputs cannot be used.
    """
    from bnfold.errors import NotEquivalentError

    report = verify(original, candidate, example_inputs, onnx=onnx, seed=seed, witnesses=witnesses)
    if not report.passed:
        raise NotEquivalentError(
            f"The two models are {report}\n",
            fix="Compare the intermediate values where they first differ.",
            report=report,
        )
