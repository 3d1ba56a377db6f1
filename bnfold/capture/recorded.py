"""A graph by recording a run of the model, or, without inputs, by recording its calls alone."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.capture.check import ModelFailedError, difference
from bnfold.capture.lines import line_of_error
from bnfold.capture.plain_calls import functions_of, keeping_sizes
from bnfold.capture.recorder import WrittenLaterError
from bnfold.capture.recording import MOST_RUNS, Recorded, Recording
from bnfold.capture.restore import caches_of, empty_caches, holders_of, is_filled, left_as_found, outdate
from bnfold.errors import BnfoldError, CaptureError, NeedsInputsError, first_line
from bnfold.graph.captured import Capture
from bnfold.graph.requires import pinned_numbers

__all__ = ["recorded", "symbolic"]


def recorded(
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    named: Mapping[str, Any] | None = None,
    first: Recorded | None = None,
) -> Capture:
    """Record a run of a model, in which it computes what it keeps of earlier runs.

    Args:
        model: left as it is found.
        inputs: positional arguments.
        named: keyword arguments.
        first: what a run on these inputs gave, where one was recorded already.

    Raises:
        CaptureError: the run asks for data, or does what no graph records.
    """
    if inputs is None:
        raise NeedsInputsError("A recorded run needs inputs, and none were found.", fix="Pass example_inputs.")
    named = named or {}
    anew = _recorded_anew(model, inputs, named, empty_caches) if caches_of(model.modules()) else None
    if anew is not None:
        return anew
    captured = _record(model, inputs, named, first=first)
    kept = _kept_numbers(model, captured, inputs, named)
    anew = _recorded_anew(model, inputs, named, functools.partial(outdate, kept)) if kept else None
    return captured if anew is None else anew


def _kept_numbers(
    model: nn.Module, captured: Capture, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> list[tuple[nn.Module, str]]:
    """Return attributes that hold a number to which a size is compared, and that a run at other sizes writes."""
    numbers = pinned_numbers(captured.graph)
    found = holders_of(model.modules(), numbers) if numbers else []
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
            _record_making(model, given[0], given[1], look)
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
    first: Recorded | None = None,
) -> Capture:
    made = first or _record_making(model, inputs, named, look)
    captured = made.captured
    functions: dict[Any, Any] = {}
    while inputs is not None and made.plain_calls:
        found = functions_of(made.plain_calls)
        if found.keys() <= functions.keys():
            break
        functions |= found
        try:
            with keeping_sizes(functions):
                made = _record_making(model, inputs, named, look)
        except CaptureError:  # what was recorded is right for fewer sizes
            break
        captured = made.captured
    return captured


def _record_making(
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    named: Mapping[str, Any],
    look: Callable[[], None],
) -> Recorded:
    """Record a run, again where tensors that it makes turn out to get values of the data."""
    lines: set[str | None] = set()
    while len(lines) < MOST_RUNS:
        made = _record_once(model, inputs, named, lines, look)
        if isinstance(made, Recorded):
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
) -> Recorded | WrittenLaterError:
    recording = Recording(model, inputs, named, lines)
    try:
        recording.run(look)
        recording.leave()
    except WrittenLaterError as error:
        return error
    except BnfoldError:
        raise
    except Exception as error:
        if recording.error is not None:
            raise recording.error from error
        line = line_of_error(error)
        raise CaptureError(
            f"A run of {type(model).__name__} cannot be recorded: {first_line(error)}{f', at {line}' if line else ''}.",
            fix="Fold the parts of the model one by one.",
        ) from error
    return recording.capture()
