"""From a model to a graph: ``capture(model, example_inputs)``.

The ways, in the order in which they are tried: a recorded run (:mod:`.recorder`), ``torch.export`` (:mod:`.exported`),
and piece by piece (:mod:`.pieces`). What a way gives is compared with the model before it is believed (:mod:`.check`).
The model is not changed, whatever its ``forward`` writes while it runs. See :mod:`bnfold.graph.captured` for what a
capture holds.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch._functorch.eager_transforms
import torch._functorch.vmap
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from bnfold.capture.arguments import enter_arguments, leave_result
from bnfold.capture.check import ModelFailedError, difference, failure
from bnfold.capture.lines import line_of_error, user_line
from bnfold.capture.recorder import DataQuestionError, ImpureError, Recorder, WrittenLaterError
from bnfold.capture.restore import buffers_of, left_as_found, put_back, random_state
from bnfold.capture.taught_layers import teach
from bnfold.errors import BnfoldError, CaptureError, NeedsInputsError, UsageError, first_line
from bnfold.graph.captured import Capture
from bnfold.graph.effects import has_effect
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.names import refuse_names, require_writable
from bnfold.graph.native import rewrite_native
from bnfold.graph.proof import forget
from bnfold.graph.quiet import unlogged
from bnfold.graph.requires import require_ranks
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
    if how == "auto":
        ways = ("symbolic",) if inputs is None else ("recorded", "export", "piecewise")
    else:
        ways = (how,)
    first: CaptureError | None = None
    for way in ways:
        try:
            return _one_way(way, model, inputs, parts, check=check, given=given)
        except CaptureError as error:
            if isinstance(error, ImpureError):  # another way to capture it would freeze the same
                raise CaptureError(error.what, fix=error.fix) from error
            if first is None and given and not isinstance(error, DataQuestionError):
                _require_a_run(model, inputs)
            first = first or error
    assert first is not None
    if not any(_holds_batch_norm(part) for part in (model,)):
        raise CaptureError(
            f"{type(model).__name__} holds no BatchNorm: there is nothing to fold.", fix="Use the model as it is."
        ) from first
    if isinstance(first, DataQuestionError) and ways[-1] == "piecewise":  # no part of it could be captured either
        raise DataQuestionError(first.what, fix=_APART) from first
    raise first


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


def _one_way(
    way: str,
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    parts: Mapping[str, nn.Module],
    *,
    check: bool,
    given: bool,
) -> Capture:
    """Capture in one way, which leaves the model as it found it, and compare.

    Raises:
        CaptureError: this way does not take the model, or what it gives is not the model.
    """
    with left_as_found(parts.values()):
        if way == "piecewise":  # which compares each piece
            return _piecewise(model, inputs, check=check)
        captured = _WAYS[way](model, inputs)
    if not check or inputs is None:
        return captured
    begin = time.perf_counter()
    try:
        differs = difference(captured, model, inputs, {})
    except ModelFailedError as error:
        if given:
            raise CaptureError(
                f"{type(model).__name__} itself does not run on the example inputs: {error}.",
                fix="Pass inputs that it takes.",
            ) from error
        differs = None
    if differs is not None:
        raise CaptureError(
            f"What was captured of {type(model).__name__} is not the model: {differs}.",
            fix="Fold the parts of the model one by one.",
        )
    return replace(captured, check_seconds=time.perf_counter() - begin)


_MOST_RUNS = 12  # each finds a line that makes tensors which get values of the data later


def _recorded(model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any] | None = None) -> Capture:
    if inputs is None:
        raise NeedsInputsError("A recorded run needs inputs, and none were found.", fix="Pass example_inputs.")
    return _record(model, inputs, named or {})


def _symbolic(model: nn.Module, inputs: tuple[Any, ...] | None) -> Capture:
    """Record the calls without running them: nothing is known of shapes, and what asks for one is refused."""
    captured = _record(model, None, {})
    return replace(captured, way="symbolic", example_inputs=inputs)


def _record(model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any]) -> Capture:
    lines: set[str | None] = set()
    for _ in range(_MOST_RUNS):
        try:
            return _record_once(model, inputs, named, lines)
        except WrittenLaterError as error:
            if error.line in lines:
                break
            lines.add(error.line)
    raise CaptureError(
        f"forward writes values of its input into a tensor that it makes ({next(iter(lines))}), in a way that no graph "
        "records.",
        fix="Make the tensor of the input: x.new_zeros(...), torch.cat or torch.stack.",
    )


def _record_once(
    model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any], lines: set[str | None]
) -> Capture:
    tensors = [leaf for leaf in pytree.tree_leaves((inputs, dict(named))) if isinstance(leaf, Tensor)]
    recorder = Recorder(model, blind=inputs is None, device=_device(model, tensors), data_lines=lines)
    teach(recorder)
    before = random_state()
    parts = [*model.modules()]
    state = buffers_of(parts)
    args, kwargs = enter_arguments(recorder, model, inputs, named)
    replaced: str | None = None
    try:
        with left_as_found(parts), unlogged(), _refused(recorder), recorder.running():
            result = _record_run(model, args, kwargs)
            replaced = _replaced_buffer(recorder)
        recorder.graph.output(leave_result(recorder, result))
    except (BnfoldError, WrittenLaterError):
        raise
    except Exception as error:
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
    graph = recorder.graph
    if recorder.rank_asked:
        require_ranks(graph, recorder.shapes)
    _remove_dead(graph, model)
    left = rewrite_native(graph)
    require_writable(graph, type(model).__name__)
    shapes = () if inputs is None else (recorder.shapes,)
    held = dict(model.named_modules())
    return Capture(graph, model, recorder.constants, "recorded", inputs, left, shapes, _cache=dict(held))


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


@contextlib.contextmanager
def _refused(recorder: Recorder) -> Iterator[None]:
    """Stop where the model's code enters a region that no graph records: autocast, ``torch.vmap``, ``torch.func``."""
    enter = torch.autocast.__enter__

    def stop(what: str) -> CaptureError:
        line = user_line()
        return recorder.failed(
            CaptureError(
                f"forward enters {what}{f', at {line}' if line else ''}, which a graph would lose.",
                fix="Fold the model without it, or fold its parts one by one.",
            )
        )

    def autocast(self: torch.autocast) -> Any:
        if self._enabled and recorder.runs_here():
            raise stop("torch.autocast")
        return enter(self)  # type: ignore[no-untyped-call]

    def transform(original: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **kwargs: Any) -> Any:
            if recorder.runs_here():
                raise stop("torch.vmap or torch.func")
            return original(*args, **kwargs)

        return entered

    places = [(torch._functorch.vmap, "_vmap_increment_nesting")]
    places += [(torch._functorch.eager_transforms, f"_{kind}_increment_nesting") for kind in ("grad", "jvp")]
    saved = [(home, name, getattr(home, name)) for home, name in places if hasattr(home, name)]
    torch.autocast.__enter__ = autocast  # type: ignore[method-assign]
    for home, name, original in saved:
        setattr(home, name, transform(original))
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        for home, name, original in saved:
            setattr(home, name, original)


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
    return Capture(graph, root, {}, "export", inputs, (*notes, *left), shapes)


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
