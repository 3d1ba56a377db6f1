"""From a model to a graph: ``capture(model, example_inputs)``.

The ways, in the order in which they are tried: a recorded run (:mod:`.recorder`), ``torch.export`` (:mod:`.exported`),
and piece by piece (:mod:`.pieces`). What a way gives is compared with the model before it is believed (:mod:`.check`).
The model is not changed, whatever its ``forward`` writes while it runs. See :mod:`bnfold.graph.captured` for what a
capture holds.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from bnfold.capture.arguments import enter_arguments, leave_result
from bnfold.capture.check import ModelFailedError, difference, failure
from bnfold.capture.lines import line_of_error
from bnfold.capture.plain_calls import PlainCalls, functions_of, keeping_sizes
from bnfold.capture.recorder import DataQuestionError, ImpureError, Recorder, WrittenLaterError
from bnfold.capture.restore import (
    buffers_of,
    empty_caches,
    holders_of,
    is_filled,
    left_as_found,
    outdate,
    put_back,
    random_state,
)
from bnfold.capture.taught_layers import teach
from bnfold.errors import BnfoldError, CaptureError, NeedsInputsError, UsageError, first_line
from bnfold.graph.captured import Capture
from bnfold.graph.effects import has_effect
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.names import refuse_names, require_writable
from bnfold.graph.native import rewrite_native
from bnfold.graph.proof import forget
from bnfold.graph.quiet import unlogged
from bnfold.graph.requires import pinned_numbers, require_ranks
from bnfold.graph.values import require_values
from bnfold.graph.wrappers import refuse_wrappers, wrapper_refusal
from bnfold.mode import require_eval

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
    if inputs is None and how != "symbolic":
        inputs = _searched(model)
    automatic = ("symbolic",) if inputs is None else ("recorded", "export", "piecewise")
    errors: list[CaptureError] = []
    for way in automatic if how == "auto" else (how,):
        captured = _tried(way, model, inputs, parts, check=check, given=given)
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
            f"{type(model).__name__} itself does not run on the example inputs: {_one_line(error)}"
            f"{f', at {line}' if line else ''}.",
            fix="Pass inputs that it takes.",
        ) from error


def _searched(model: nn.Module) -> tuple[Any, ...] | None:
    """Return inputs that the model takes, or None where none are found."""
    from bnfold.inputs import find_inputs

    try:
        return find_inputs(model).inputs
    except UsageError:
        return None


def _tried(
    way: str,
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    parts: Mapping[str, nn.Module],
    *,
    check: bool,
    given: bool,
) -> Capture | CaptureError:
    """Capture in one way, which leaves the model as it found it, and compare; return the error where that fails."""
    try:
        with left_as_found(parts.values()):
            if way == "piecewise":  # which compares each piece
                return _piecewise(model, inputs, check=check)
            captured = _WAYS[way](model, inputs)
    except CaptureError as error:
        return error
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


_MOST_RUNS = 12  # each finds a line that makes tensors which get values of the data later


def _recorded(model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any] | None = None) -> Capture:
    if inputs is None:
        raise NeedsInputsError("A recorded run needs inputs, and none were found.", fix="Pass example_inputs.")
    named = named or {}
    anew = _recorded_anew(model, inputs, named, empty_caches)
    if anew is not None:
        return anew
    captured = _record(model, inputs, named)
    kept = _kept_numbers(model, captured, inputs, named)
    anew = _recorded_anew(model, inputs, named, functools.partial(outdate, kept)) if kept else None
    return captured if anew is None else anew


def _kept_numbers(
    model: nn.Module, captured: Capture, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> list[tuple[nn.Module, str]]:
    """Return attributes that hold a number to which a size is compared, and that a run at other sizes writes."""
    numbers = pinned_numbers(captured.graph)
    found = holders_of(model.modules(), numbers)
    if not found:
        return []
    before = [part.__dict__[name] for part, name in found]
    written: list[tuple[nn.Module, str]] = []

    def look() -> None:
        held = zip(found, before, strict=True)
        written.extend((part, name) for (part, name), value in held if part.__dict__.get(name) is not value)

    def larger(value: Any, times: int) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        batch = 2 * value.shape[0] + 1
        while any(kept and kept % batch == 0 for kept in numbers):  # else it may be the one that is kept
            batch += 1
        return value.new_empty((batch, *value.shape[1:2], *(times * size for size in value.shape[2:])))

    for times in (1, 2):  # where the model does not take another size, another batch alone tells
        with left_as_found([*model.modules()]), contextlib.suppress(CaptureError):
            given = pytree.tree_map(functools.partial(larger, times=times), (inputs, dict(named)))
            _record_making(model, given[0], given[1], look, set())
    return written


def _recorded_anew(
    model: nn.Module,
    inputs: tuple[Any, ...],
    named: Mapping[str, Any],
    forget_kept: Callable[..., list[tuple[nn.Module, str]]],
) -> Capture | None:
    """Record a run in which the model computes what it keeps of an earlier one; None where it keeps nothing.

    Such caches are right for the sizes of that run, and a run that reads them is recorded for these sizes only. They
    are recognised by an empty default in the class, or by a run at another batch that writes them; and by ``forward``,
    which fills them again. That the model computes the same with and without them is tried, however much is checked
    otherwise.
    """
    parts = [*model.modules()]
    filled: list[tuple[nn.Module, str]] | None = None
    for _ in range(2):
        with left_as_found(parts):
            emptied = forget_kept(parts, filled)
            filled = []

            def look(emptied: list[Any] = emptied, filled: list[Any] = filled) -> None:
                filled[:] = [(part, name) for part, name in emptied if is_filled(part, name)]

            if not emptied:
                return None
            try:
                captured = _record(model, inputs, named, look)
            except CaptureError:
                return None
        if len(filled) == len(emptied):
            break  # else some were no caches, but settings: they stay
    else:
        return None
    begin = time.perf_counter()
    try:
        same = difference(captured, model, inputs, named) is None
    except ModelFailedError:
        return None
    return replace(captured, check_seconds=time.perf_counter() - begin) if same else None


def _symbolic(model: nn.Module, inputs: tuple[Any, ...] | None) -> Capture:
    """Record the calls without running them: nothing is known of shapes, and what asks for one is refused."""
    captured = _record(model, None, {})
    return replace(captured, way="symbolic", example_inputs=inputs)


def _record(
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    named: Mapping[str, Any],
    look: Callable[[], None] = lambda: None,
) -> Capture:
    plain: PlainCalls = set()
    captured = _record_making(model, inputs, named, look, plain)
    functions: dict[Any, Any] = {}
    while inputs is not None and plain:
        found = functions_of(plain)
        if found.keys() <= functions.keys():
            break
        functions |= found
        plain.clear()
        try:
            with keeping_sizes(functions):
                captured = _record_making(model, inputs, named, look, plain)
        except CaptureError:  # what was recorded is right for fewer sizes
            break
    return captured


def _record_making(
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    named: Mapping[str, Any],
    look: Callable[[], None],
    plain: PlainCalls,
) -> Capture:
    """Record a run, again where tensors that it makes turn out to get values of the data."""
    lines: set[str | None] = set()
    while len(lines) < _MOST_RUNS:
        made = _record_once(model, inputs, named, lines, look, plain)
        if isinstance(made, Capture):
            return made
        if made.line in lines:
            break
        lines.add(made.line)
    raise CaptureError(
        "forward writes values of its input into a tensor that it makes, in a way that no graph records: "
        f"{next(iter(lines))}.",
        fix="Make the tensor of the input: x.new_zeros(...), torch.cat or torch.stack.",
    )


def _record_once(
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    named: Mapping[str, Any],
    lines: set[str | None],
    look: Callable[[], None],
    plain: PlainCalls,
) -> Capture | WrittenLaterError:
    tensors = [leaf for leaf in pytree.tree_leaves((inputs, dict(named))) if isinstance(leaf, Tensor)]
    recorder = Recorder(model, blind=inputs is None, device=_device(model, tensors), data_lines=lines)
    teach(recorder)
    before = random_state()
    parts = [*model.modules()]
    state = buffers_of(parts)
    args, kwargs = enter_arguments(recorder, model, inputs, named)
    replaced: str | None = None
    try:
        with left_as_found(parts), unlogged(), recorder.running():
            result = _record_run(model, args, kwargs)
            replaced = _replaced_buffer(recorder)
            look()  # at the model as the run leaves it
        recorder.graph.output(leave_result(recorder, result))
    except WrittenLaterError as error:
        return error
    except BnfoldError:
        raise
    except Exception as error:
        if recorder.error is not None:
            raise recorder.error from error
        line = line_of_error(error)
        raise CaptureError(
            f"A run of {type(model).__name__} cannot be recorded: {first_line(error)}{f', at {line}' if line else ''}.",
            fix="Fold the parts of the model one by one.",
        ) from error
    finally:
        written = put_back(state)
    if written or replaced:
        name = next((name for name, buffer in model.named_buffers() if written and buffer is written[0]), replaced)
        raise ImpureError(
            f"{type(model).__name__}.forward writes into the buffer `{name}`, which a graph would freeze.",
            fix="Let it leave its buffers alone in eval mode.",
        )
    if random_state() != before:
        raise ImpureError(
            f"{type(model).__name__}.forward draws random numbers, which a graph would freeze.",
            fix="Make it deterministic in eval mode.",
        )
    plain |= recorder.plain_calls
    graph = recorder.graph
    if recorder.rank_asked:
        require_ranks(graph, recorder.shapes)
    _remove_dead(graph, model)
    left = rewrite_native(graph)
    require_writable(graph, type(model).__name__)
    shapes = () if inputs is None else (recorder.shapes,)
    held, exact = dict(model.named_modules()), not recorder.special
    return Capture(graph, model, recorder.constants, "recorded", inputs, left, shapes, _cache=dict(held), exact=exact)


def _replaced_buffer(recorder: Recorder) -> str | None:
    """Return the name of a buffer that the run replaced by what it computed from it, or from the model's input.

    What is computed from sizes alone, a cache, may take a buffer's place: the graph computes it anew.
    """
    for path, part in recorder.root.named_modules():
        for name, value in part._buffers.items():
            full = f"{path}.{name}" if path else name
            if value is not None and recorder.name_of(value) != full and recorder.remembers(value, full):
                return full
    return None


def _record_run(model: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Run the model; :func:`.lines.user_line` looks for the user's code no further out than here."""
    return model(*args, **kwargs)


def _device(model: nn.Module, tensors: list[Tensor]) -> torch.device | None:
    if tensors:
        return tensors[0].device
    return next((parameter.device for parameter in model.parameters()), None)


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
        graph, root, notes, shapes = export_graph(model, inputs)
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {_one_line(error)}{_at(error)}.",
            fix="Fold the parts of the model that can be captured, one by one.",
        ) from error
    if random_state() != before:
        raise CaptureError(
            f"{type(model).__name__}.forward draws random numbers, which a captured graph would freeze.",
            fix="Make it deterministic in eval mode.",
        )
    _remove_dead(graph, root)
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
                return _recorded(part, *call)
        except CaptureError as error:
            errors.append(error)
            return None

    try:
        pieces = find_pieces(model, inputs, _holds_batch_norm, record, check=check)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs: {_one_line(error)}{_at(error)}.",
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
    "recorded": _recorded,
    "symbolic": _symbolic,
    "export": _exported,
    "piecewise": _piecewise,
}


def _remove_dead(graph: Graph, model: nn.Module) -> None:
    """Remove nodes whose value nobody reads and that do nothing but compute it."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not has_effect(node, model.get_submodule):
            graph.erase_node(node)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (text[:197] + "..." if len(text) > 200 else text).rstrip(".")


def _at(error: BaseException) -> str:
    line = line_of_error(error)
    return f", at {line}" if line else ""
