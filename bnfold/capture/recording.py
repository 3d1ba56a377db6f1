"""One recorded run: what was set up for it, what it left behind, and the capture that is made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from bnfold.capture.arguments import enter_arguments, leave_result
from bnfold.capture.exact_types import exact_types
from bnfold.capture.plain_calls import PlainCalls
from bnfold.capture.recorder import ImpureError, Recorder
from bnfold.capture.restore import Change, buffers_of, forget_sizes, left_as_found, put_back, random_state
from bnfold.capture.taught_layers import teach
from bnfold.errors import CaptureError
from bnfold.graph.captured import Capture
from bnfold.graph.effects import has_effect
from bnfold.graph.leaves import is_torchs
from bnfold.graph.names import require_writable
from bnfold.graph.native import rewrite_native
from bnfold.graph.quiet import collecting_later, unlogged
from bnfold.graph.requires import require_ranks

__all__ = ["MOST_RUNS", "Recorded", "Recording", "remove_dead"]

MOST_RUNS = 12
"""How often a run is recorded again: each finds a line that makes tensors which get values of the data later."""


class Recorded(NamedTuple):
    """What a recorded run gives.

    Attributes:
        captured: the graph.
        plain_calls: where the model's code made plain numbers of sizes, which the graph holds fast.
    """

    captured: Capture
    plain_calls: PlainCalls


class Recording:
    """One run of a model, under the eyes of a recorder: :meth:`run`, :meth:`leave`, :meth:`capture`, in this order.

    Args:
        model: left as it is found.
        inputs: positional arguments, of which nothing is read but shapes and types; None for the calls alone.
        named: keyword arguments.
        lines: source lines where tensors are made that get values of the data later.
        device: of the inputs, where they are only shapes themselves.

    Raises:
        CaptureError: an argument is one that no graph can hold.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...] | None,
        named: Mapping[str, Any],
        lines: set[str | None],
        device: torch.device | None = None,
    ) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves((inputs, dict(named))) if isinstance(leaf, Tensor)]
        device = device or _device(model, tensors)
        self._model = model
        self._inputs = inputs
        self._recorder = Recorder(model, blind=inputs is None, device=device, data_lines=lines)
        teach(self._recorder)
        self.args, self._kwargs = enter_arguments(self._recorder, model, inputs, named)
        self._result: Any = None
        self._replaced: str | None = None
        self._changed: list[Change] = []
        self._written: list[Tensor] = []
        self._draws = False

    @property
    def error(self) -> Exception | None:
        """What was raised first while the model ran: its code may have caught it."""
        return self._recorder.error

    def run(
        self,
        look: Callable[[], None] = lambda: None,
        watch: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(),  # noqa: B008 - holds nothing
    ) -> Any:
        """Run the model and return its result.

        Args:
            look: is called at the model as the run leaves it.
            watch: is entered for the run.

        Raises:
            WrittenLaterError: it must be run again, with a line more in ``lines``.
            CaptureError: the run asks for data, or does what no graph records.
            Exception: whatever else the model's code raises.
        """
        recorder = self._recorder
        before = random_state()
        parts = [*recorder.modules.values()]
        state = buffers_of(parts)
        try:
            with (
                collecting_later(),
                left_as_found(parts, self._changed),
                unlogged(),
                exact_types(parts),
                recorder.running(),
                watch,
            ):
                self._result = _record_run(self._model, self.args, self._kwargs)
                self._replaced = _replaced_buffer(recorder)
                look()
        finally:
            self._written = put_back(state, by_content=True)
            if recorder.hashed:
                forget_sizes()
        self._draws = random_state() != before
        return self._result

    def leave(self) -> None:
        """Let the graph give what the run gave."""
        self._recorder.graph.output(leave_result(self._recorder, self._result))
        self._result = None

    def capture(self) -> Recorded:
        """Return what was recorded.

        Raises:
            CaptureError: the run did more than a graph does.
        """
        model, recorder, written = self._model, self._recorder, self._written
        if written or self._replaced:
            buffers = model.named_buffers()
            name = next((name for name, buffer in buffers if written and buffer is written[0]), self._replaced)
            raise ImpureError(
                f"{type(model).__name__}.forward writes into the buffer `{name}`, which a graph would freeze.",
                fix="Let it leave its buffers alone in eval mode.",
            )
        if self._draws:
            raise ImpureError(
                f"{type(model).__name__}.forward draws random numbers, which a graph would freeze.",
                fix="Make it deterministic in eval mode.",
            )
        changes = _named_changes(model, self._changed)
        graph = recorder.graph
        if recorder.rank_asked:
            require_ranks(graph, recorder.shapes)
        remove_dead(graph, model)
        left = rewrite_native(graph)
        require_writable(graph, type(model).__name__)
        shapes = () if self._inputs is None else (recorder.shapes,)
        rest: dict[str, Any] = {"exact": not recorder.special, "changes": changes, "_cache": dict(recorder.modules)}
        captured = Capture(graph, model, recorder.constants, "recorded", self._inputs, left, shapes, **rest)
        return Recorded(captured, recorder.plain_calls)


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
