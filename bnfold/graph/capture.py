"""From a model to a graph: ``capture(model, example_inputs)``.

The model is not changed by the capture, whatever its ``forward`` writes while it runs. See :mod:`.captured` for what a
capture holds.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnfold.errors import CaptureError, NeedsInputsError, UsageError
from bnfold.graph.captured import Capture
from bnfold.graph.effects import has_effect
from bnfold.graph.facts import Facts
from bnfold.graph.names import refuse_names, require_writable
from bnfold.graph.native import rewrite_native
from bnfold.graph.proof import forget
from bnfold.graph.proxies import is_foreign
from bnfold.graph.restore import buffers_of, left_as_found, put_back, random_state
from bnfold.graph.tracer import ModelTracer, carries_hooks
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


def capture(model: nn.Module, example_inputs: Any = None, how: str = "auto") -> Capture:
    """Capture the graph of a model in eval mode.

    Args:
        model: not changed.
        example_inputs: a tensor or a tuple of positional inputs. Arguments of ``forward`` beyond them that have a
            default keep it; without example inputs, all arguments that have a default do.
        how: ``"auto"``, or one of the ways by name.

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
    _require_room(model, inputs or ())
    if how == "auto":
        return _automatic(model, inputs, parts)
    return _one_way(how, model, inputs, parts)


class _ImpureError(CaptureError):
    """``forward`` does more than compute its output from its input, and no graph records that."""


def _one_way(how: str, model: nn.Module, inputs: tuple[Any, ...] | None, parts: Mapping[str, nn.Module]) -> Capture:
    """Capture in one way, which leaves the model as it found it, also for the next way."""
    with left_as_found(parts.values()):
        return _WAYS[how](model, inputs)


def _automatic(model: nn.Module, inputs: tuple[Any, ...] | None, parts: Mapping[str, nn.Module]) -> Capture:
    """Trace symbolically; where that fails, export; where that fails too, say both."""
    try:
        return _one_way("symbolic", model, inputs, parts)
    except CaptureError as error:
        if isinstance(error, _ImpureError):  # another way to capture it would freeze the same
            raise CaptureError(error.what, fix=error.fix) from error
        first = error
    if inputs is None:
        raise NeedsInputsError(
            first.what, fix="Pass example_inputs, so that torch.export can capture it by running it."
        ) from first
    try:
        return _one_way("export", model, inputs, parts)
    except CaptureError as error:
        second = error
    try:
        return _one_way("piecewise", model, inputs, parts)
    except CaptureError as error:
        raise CaptureError(f"{first.what} {second.what} {error.what}", fix=error.fix) from error


def _symbolic(model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any] | None = None) -> Capture:
    parts = dict(model.named_modules())
    tracer = ModelTracer(inputs or (), named)
    before = random_state()
    state = buffers_of(parts.values())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = tracer.trace(model)
    except UsageError:  # what was said of a module of the user's is wrong
        raise
    except Exception as error:
        raise CaptureError(
            f"torch.fx cannot trace {type(model).__name__}: {_one_line(error)}{_where(error)}.",
            fix="Symbolic tracing does not follow control flow that depends on values or shapes.",
        ) from error
    finally:
        written = put_back(state)
    if written:
        name = next((name for name, buffer in model.named_buffers() if buffer is written[0]), "that it replaces")
        raise _ImpureError(
            f"{type(model).__name__}.forward writes into the buffer `{name}`, which a traced graph would freeze.",
            fix="Let it leave its buffers alone in eval mode.",
        )
    if random_state() != before:
        raise _ImpureError(
            f"{type(model).__name__}.forward draws random numbers, which a traced graph would freeze.",
            fix="Make it deterministic in eval mode.",
        )
    _remove_dead(graph, model)
    left = rewrite_native(graph)
    require_writable(graph, type(model).__name__)
    captured = Capture(graph, model, tracer.constants, "symbolic", inputs, left, _cache=dict(parts))
    _refuse_written_constants(captured)
    return captured


def _refuse_written_constants(captured: Capture) -> None:
    """A tensor that ``forward`` makes anew each time would, once recorded, keep what was written into it."""
    if not captured.constants:
        return
    facts = Facts.of(captured)
    for node in captured.graph.nodes:
        if node.op == "get_attr" and node.target in captured.constants and facts.memory.written_in_place(node):
            raise _ImpureError(
                f"forward writes into a tensor that it makes itself{_at(node)}, which a traced graph would keep.",
                fix="Use an operation that is not in place.",
            )


def _at(node: Node) -> str:
    source = next((user.meta.get("source") for user in node.users if user.meta.get("source")), None)
    return f", at {source}" if source else ""


def _exported(model: nn.Module, inputs: tuple[Any, ...] | None) -> Capture:
    if inputs is None:
        raise NeedsInputsError("torch.export captures a model by running it.", fix="Pass example_inputs.")
    hooked = [name for name, module in model.named_modules() if carries_hooks(module)]
    if hooked:
        raise CaptureError(
            f"`{hooked[0]}` carries hooks, which torch.export would freeze.", fix="Remove them before folding."
        )
    from bnfold.graph.exported import export_graph

    before = random_state()
    try:
        graph, root, notes, shapes = export_graph(model, inputs)
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {_one_line(error)}{_where(error)}.",
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


def _piecewise(model: nn.Module, inputs: tuple[Any, ...] | None) -> Capture:
    if inputs is None:
        raise NeedsInputsError("A piecewise capture runs the model to see its parts.", fix="Pass example_inputs.")
    from bnfold.graph.pieces import find_pieces

    def try_capture(part: nn.Module, call: Any) -> Capture | None:
        args, kwargs = call
        if wrapper_refusal(part) is not None or isinstance(part, nn.modules.batchnorm._BatchNorm):
            return None
        try:
            return _symbolic(part, args, kwargs)
        except CaptureError:
            return None

    try:
        pieces = find_pieces(model, inputs, _holds_batch_norm, try_capture)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs: {_one_line(error)}{_where(error)}.",
            fix="Pass inputs that it takes.",
        ) from error
    if not pieces:
        raise CaptureError("No part of it that holds a BatchNorm can be traced.", fix="Fold its parts one by one.")
    return Capture(Graph(), model, {}, "piecewise", inputs, pieces=pieces)


def _holds_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(getattr(part, "running_mean", None), Tensor) for part in module.modules())


_WAYS: dict[str, Callable[[nn.Module, tuple[Any, ...] | None], Capture]] = {
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


def _where(error: BaseException) -> str:
    """Say the innermost line of the user's code that the error passed."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_foreign(frame.filename):
            return f", at {frame.filename}:{frame.lineno}"
    return ""
