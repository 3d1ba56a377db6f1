"""From a model to a graph: ``capture(model, example_inputs)``.

The ways, in the order in which they are tried: a recorded run (:mod:`.recorded`), ``torch.export`` (:mod:`.exported`),
and piece by piece (:mod:`.pieces`). What a way gives is compared with the model before it is believed (:mod:`.check`).
The model is not changed, whatever its ``forward`` writes while it runs. See :mod:`bnfold.graph.captured` for what a
capture holds.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph

from bnfold.capture.check import ModelFailedError, answers_twice_alike, difference, failure
from bnfold.capture.lines import line_of_error
from bnfold.capture.recorded import recorded, symbolic
from bnfold.capture.recorder import DataQuestionError, ImpureError
from bnfold.capture.recording import Recorded, remove_dead
from bnfold.capture.restore import left_as_found, random_state
from bnfold.errors import CaptureError, NeedsInputsError, UsageError, first_line
from bnfold.graph.captured import Capture
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.mode import require_eval
from bnfold.graph.names import refuse_names
from bnfold.graph.native import rewrite_native
from bnfold.graph.proof import forget
from bnfold.graph.values import require_values
from bnfold.graph.wrappers import refuse_wrappers, wrapper_refusal

# A run changes what all threads share, for as long as it takes: how modules are called, the state of the generators.
ONE_AT_A_TIME = threading.RLock()

__all__ = ["as_inputs", "capture"]


def as_inputs(example_inputs: Any) -> tuple[Any, ...] | None:
    """Return example inputs as a tuple of positional inputs; a single tensor is the only one."""
    if example_inputs is None:
        return None
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    return (example_inputs,)


def _require_room(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        parameters = inspect.signature(model.forward, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # written in C, or a signature of its own
        return
    kinds = [parameter.kind for parameter in parameters]
    room = sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
    if len(inputs) > room and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UsageError(
            f"{len(inputs)} example inputs are given, and {type(model).__name__}.forward takes {room}.",
            fix="Pass one tensor, or a tuple with one for each input.",
        )


def capture(model: nn.Module, example_inputs: Any = None, how: str = "auto", *, check: bool = True) -> Capture:
    """Capture the graph of a model in eval mode.

    Args:
        model: not changed.
        example_inputs: a tensor or a tuple of positional inputs; where there are none they are searched for. Arguments
            of ``forward`` beyond them that have a default keep it.
        how: ``"auto"``, or one of the ways by name.
        check: compare what was captured with the model, in one run of each.

    Raises:
        TrainingModeError: part of the model is in training mode.
        CaptureError: the model cannot be captured; says where in the user's source it stopped.
        UsageError: ``how`` is not the name of a way; the model's weights have no values; or more example inputs are
            given than ``forward`` takes.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"bnfold folds a torch.nn.Module, and this is a {type(model).__name__}.", fix="Pass the model itself."
        )
    if how != "auto" and how not in _WAYS:
        raise UsageError(f"There is no capture called {how!r}.", fix=f"Use one of auto, {', '.join(_WAYS)}.")
    parts = dict(model.named_modules())  # walked once: for deep models a walk is not cheap
    require_eval("The model", parts)
    refuse_wrappers(model)
    refuse_names(parts)
    require_values(parts)
    forget()
    inputs = as_inputs(example_inputs)
    given = inputs is not None
    _require_room(model, inputs or ())
    made: Recorded | None = None
    if inputs is None and how != "symbolic":
        with ONE_AT_A_TIME:
            inputs, made = _searched(model)
    automatic = ("symbolic",) if inputs is None else ("recorded", "export", "piecewise")
    errors: list[CaptureError] = []
    for way in automatic if how == "auto" else (how,):
        with ONE_AT_A_TIME:
            captured = _tried(way, model, inputs, made, check=check, given=given)
        if isinstance(captured, Capture):
            return captured
        errors.append(captured)
        if isinstance(captured, ImpureError):  # another way to capture it would freeze the same
            break
        if given and len(errors) == 1 and not isinstance(captured, DataQuestionError):
            _require_a_run(model, inputs)
    first = errors[0]
    if not _holds_batch_norm(model):
        what = f"{type(model).__name__} holds no BatchNorm layer. {first.what}"
        raise CaptureError(what, fix=first.fix) from first
    if isinstance(first, DataQuestionError) and len(errors) > 1:  # no part of it could be captured either
        raise CaptureError(first.what, fix=_APART) from first
    raise CaptureError(first.what, fix=first.fix) if type(first) in (ImpureError, DataQuestionError) else first


_APART = "Put each convolution and its BatchNorm into an nn.Sequential of their own, which then folds by itself."


def _require_a_run(model: nn.Module, inputs: tuple[Any, ...] | None) -> None:
    """Raise where the model itself does not run: what then failed is no fault of a capture."""
    error = failure(model, inputs or ())
    if error is not None:
        line = line_of_error(error)
        raise CaptureError(
            f"{type(model).__name__} itself does not run on the example inputs: {first_line(error)}"
            f"{f', at {line}' if line else ''}.",
            fix="Pass inputs that it takes.",
        ) from error


def _searched(model: nn.Module) -> tuple[tuple[Any, ...] | None, Recorded | None]:
    """Return inputs that the model takes, and what the search recorded of a run on them; None where none are found."""
    from bnfold.inputs.search import find_inputs

    try:
        found = find_inputs(model)
    except UsageError:
        return None, None
    return found.inputs, found.recorded


def _tried(
    way: str,
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    made: Recorded | None,
    *,
    check: bool,
    given: bool,
) -> Capture | CaptureError:
    """Capture in one way, which leaves the model as it found it, and compare; return the error where that fails."""
    try:
        if way == "piecewise":  # which compares each piece
            return _piecewise(model, inputs, check=check)
        captured = recorded(model, inputs, first=made) if way == "recorded" else _WAYS[way](model, inputs)
    except CaptureError as error:
        return error
    if captured.changes and inputs is not None and not answers_twice_alike(model, inputs):
        return ImpureError(
            f"{type(model).__name__}.forward changes `{captured.changes[0]}`, and the next run answers otherwise: a "
            "graph would freeze what it keeps.",
            fix="Pass what is kept from call to call as an input, and return it.",
        )
    if not check or inputs is None or captured.check_seconds:
        return captured
    begin = time.perf_counter()
    try:
        differs = difference(captured, model, inputs, {})
    except ModelFailedError as error:
        if given:
            return CaptureError(
                f"{type(model).__name__} itself does not run on the example inputs: {error}.",
                fix="Pass inputs that it takes.",
            )
        differs = None
    if differs is not None:
        return CaptureError(
            f"What was captured of {type(model).__name__} is not the model: {differs}.",
            fix="Fold the parts of the model one by one.",
        )
    return replace(captured, check_seconds=time.perf_counter() - begin)


def _exported(model: nn.Module, inputs: tuple[Any, ...] | None) -> Capture:
    if inputs is None:
        raise NeedsInputsError("torch.export captures a model by running it.", fix="Pass example_inputs.")
    hooked = [name for name, module in model.named_modules() if carries_hooks(module)]
    if hooked:
        raise CaptureError(
            f"`{hooked[0]}` carries hooks, which torch.export would freeze.", fix="Remove them before folding."
        )
    from bnfold.capture.exported import export_graph

    before = random_state()
    try:
        with left_as_found(model.modules()):
            graph, root, notes, shapes = export_graph(model, inputs)
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {first_line(error)}{_at(error)}.",
            fix="Fold the parts of the model that can be captured, one by one.",
        ) from error
    if random_state() != before:
        raise CaptureError(
            f"{type(model).__name__}.forward draws random numbers, which a captured graph would freeze.",
            fix="Make it deterministic in eval mode.",
        )
    remove_dead(graph, root)
    left = rewrite_native(graph)
    return Capture(graph, root, {}, "export", inputs, (*notes, *left), shapes, exact=False)


def _piecewise(model: nn.Module, inputs: tuple[Any, ...] | None, *, check: bool = True) -> Capture:
    if inputs is None:
        raise NeedsInputsError("A piecewise capture runs the model to see its parts.", fix="Pass example_inputs.")
    from bnfold.capture.pieces import find_pieces

    errors: list[CaptureError] = []

    def record(part: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Capture | None:
        if wrapper_refusal(part) is not None or isinstance(part, nn.modules.batchnorm._BatchNorm):
            return None
        try:
            with left_as_found(model.modules()):
                return recorded(part, *call)
        except CaptureError as error:
            errors.append(error)
            return None

    try:
        with left_as_found(model.modules()):
            pieces = find_pieces(model, inputs, _holds_batch_norm, record, check=check)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs: {first_line(error)}{_at(error)}.",
            fix="Pass inputs that it takes.",
        ) from error
    if not pieces.found:
        reasons = [error.what for error in errors] or [f"`{place}`: {how}" for place, how in pieces.differing.items()]
        why = f": {reasons[-1].rstrip('.')}" if reasons else ""
        raise CaptureError(
            f"No part of {type(model).__name__} that holds a BatchNorm can be captured by itself{why}.",
            fix=_APART,
        )
    seconds = pieces.check_seconds if check else 0.0
    return Capture(Graph(), model, {}, "piecewise", inputs, pieces=pieces.found, check_seconds=seconds)


def _holds_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(getattr(part, "running_mean", None), Tensor) for part in module.modules())


_WAYS: dict[str, Callable[[nn.Module, tuple[Any, ...] | None], Capture]] = {
    "recorded": recorded,
    "symbolic": symbolic,
    "export": _exported,
    "piecewise": _piecewise,
}


def _at(error: BaseException) -> str:
    line = line_of_error(error)
    return f", at {line}" if line else ""
