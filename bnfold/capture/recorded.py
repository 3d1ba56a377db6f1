"""A graph by recording a run of the model, or, without inputs, by recording its calls alone."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from bnfold.capture.arguments import enter_arguments, leave_result
from bnfold.capture.check import ModelFailedError, difference
from bnfold.capture.lines import line_of_error
from bnfold.capture.plain_calls import PlainCalls, functions_of, keeping_sizes
from bnfold.capture.recorder import ImpureError, Recorder, WrittenLaterError
from bnfold.capture.restore import (
    Change,
    buffers_of,
    caches_of,
    empty_caches,
    forget_sizes,
    holders_of,
    is_filled,
    left_as_found,
    outdate,
    put_back,
    random_state,
)
from bnfold.capture.taught_layers import teach
from bnfold.errors import BnfoldError, CaptureError, NeedsInputsError, first_line
from bnfold.graph.captured import Capture
from bnfold.graph.effects import has_effect
from bnfold.graph.leaves import is_torchs
from bnfold.graph.names import require_writable
from bnfold.graph.native import rewrite_native
from bnfold.graph.quiet import collecting_later, unlogged
from bnfold.graph.requires import pinned_numbers, require_ranks

__all__ = ["recorded", "remove_dead", "symbolic"]

_MOST_RUNS = 12  # each finds a line that makes tensors which get values of the data later


def recorded(model: nn.Module, inputs: tuple[Any, ...] | None, named: Mapping[str, Any] | None = None) -> Capture:
    """Record a run of a model, in which it computes what it keeps of earlier runs.

    Args:
        model: left as it is found.
        inputs: positional arguments.
        named: keyword arguments.

    Raises:
        CaptureError: the run asks for data, or does what no graph records.
    """
    if inputs is None:
        raise NeedsInputsError("A recorded run needs inputs, and none were found.", fix="Pass example_inputs.")
    named = named or {}
    anew = _recorded_anew(model, inputs, named, empty_caches) if caches_of(model.modules()) else None
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


def symbolic(model: nn.Module, inputs: tuple[Any, ...] | None) -> Capture:
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
    parts = [*recorder.modules.values()]
    state = buffers_of(parts)
    args, kwargs = enter_arguments(recorder, model, inputs, named)
    replaced: str | None = None
    changed: list[Change] = []
    try:
        with collecting_later(), left_as_found(parts, changed), unlogged(), recorder.running():
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
        if recorder.hashed:
            forget_sizes()
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
    changes = _named_changes(model, changed)
    plain |= recorder.plain_calls
    graph = recorder.graph
    if recorder.rank_asked:
        require_ranks(graph, recorder.shapes)
    remove_dead(graph, model)
    left = rewrite_native(graph)
    require_writable(graph, type(model).__name__)
    shapes = () if inputs is None else (recorder.shapes,)
    rest: dict[str, Any] = {"exact": not recorder.special, "changes": changes, "_cache": dict(recorder.modules)}
    return Capture(graph, model, recorder.constants, "recorded", inputs, left, shapes, **rest)


def _named_changes(model: nn.Module, changed: list[Change]) -> tuple[str, ...]:
    """Return the attributes that a run changed, by name.

    Raises:
        CaptureError: one is a setting of a layer of torch's, which the graph calls as it is.
    """
    owners = {id(part.__dict__): (path, part) for path, part in model.named_modules()} if changed else {}
    names = []
    for state, attribute in changed:
        path, part = owners.get(id(state), ("", None))
        name = f"{path}.{attribute}" if path else attribute
        if part is not None and path and is_torchs(part) and not isinstance(part, nn.Sequential):
            raise CaptureError(
                f"forward changes `{name}`, which a graph would leave as it is.",
                fix="Call the function instead of the layer.",
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def _replaced_buffer(recorder: Recorder) -> str | None:
    """Return the name of a buffer that the run replaced by what it computed from it, or from the model's input.

    What is computed from sizes alone, a cache, may take a buffer's place: the graph computes it anew.
    """
    for path, part in recorder.modules.items():
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


def remove_dead(graph: Graph, model: nn.Module) -> None:
    """Remove nodes whose value nobody reads and that do nothing but compute it."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not has_effect(node, model.get_submodule):
            graph.erase_node(node)
