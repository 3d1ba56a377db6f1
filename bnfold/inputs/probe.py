"""Try a model on inputs without values: which shapes does it take, and what does each layer want?

A :class:`Probe` runs the model's own code on tensors that have a shape and no memory, so that a run computes shapes
alone. The model is left as it was found. A watch over the run tells where it stopped, and which size would have fitted
there.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnfold.capture.recorder import ImpureError, WrittenLaterError
from bnfold.capture.recording import MOST_RUNS, Recorded, Recording
from bnfold.capture.restore import buffers_of, left_as_found, put_back, same_random_numbers
from bnfold.errors import BnfoldError, first_line
from bnfold.graph.dataless import leaves, settle
from bnfold.graph.quiet import unlogged

__all__ = ["Guess", "Hint", "Need", "Probe", "Trial", "kept_batch", "required_inputs", "shapes_of_outputs"]

_CONVOLUTIONS = {f"conv{way}{n}d": n for n in (1, 2, 3) for way in ("", "_transpose")}


@dataclass(frozen=True)
class Guess:
    """What one input may look like; its spatial size is left open.

    Attributes:
        channels: number of channels, or of features; 0 where the input has no such dimension: sound, ``(N, length)``.
        space: number of spatial dimensions, 0 to 3.
        channels_last: ``(N, *space, channels)`` instead of ``(N, channels, *space)``.
        values: for an input of integers, how many values there are: they index an embedding. ``channels`` is 0 then.
    """

    channels: int
    space: int
    channels_last: bool = False
    values: int | None = None

    def shape(self, batch: int, size: int) -> tuple[int, ...]:
        """Return the shape for ``batch`` samples of ``size`` in every spatial dimension."""
        spatial = (size,) * self.space
        if self.values is not None or self.channels == 0:
            return (batch, *spatial)
        return (batch, *spatial, self.channels) if self.channels_last else (batch, self.channels, *spatial)


@dataclass(frozen=True)
class Need:
    """What the first layer on the way of an input wants of it.

    Attributes:
        index: which input.
        kind: ``"conv"``, ``"linear"``, ``"norm"`` or ``"embedding"``.
        have: channels that arrived there.
        want: channels that it takes; for an embedding, the number of its entries.
        space: spatial dimensions that it takes, where it says so.
    """

    index: int
    kind: str
    have: int
    want: int
    space: int | None = None

    @property
    def met(self) -> bool:
        """Whether what arrived was what is wanted."""
        return self.have == self.want


@dataclass(frozen=True)
class Hint:
    """A place where the spatial size must come out right: ``have`` numbers a sample arrived, ``want`` are wanted."""

    have: int
    want: int


@dataclass
class Trial:
    """What became of one run.

    Attributes:
        outputs: shapes of all output tensors; None if the run failed.
        error: what it failed of.
        needs: what the first layers on the way wanted, by input.
        hints: sizes seen and wanted, in the order of the run.
        reached: how many calls of torch the run came to.
        recording: of a run that came to its end.
    """

    outputs: list[tuple[int, ...]] | None = None
    error: str = ""
    needs: dict[int, Need] = field(default_factory=dict)
    hints: list[Hint] = field(default_factory=list)
    reached: int = 0
    recording: Recording | None = field(default=None, repr=False, compare=False)

    def recorded(self) -> Recorded | None:
        """Return what the run recorded, once; None where a run with values, or none that a graph can hold, was made."""
        recording, self.recording = self.recording, None
        if recording is None:
            return None
        try:
            recording.leave()
            return recording.capture()
        except Exception:  # who captures the model runs into it, and tells
            return None

    @property
    def unmet(self) -> Need | None:
        """The need that stopped the run, if one did."""
        return next((need for need in self.needs.values() if not need.met), None)


def required_inputs(model: nn.Module) -> list[str]:
    """Return the names of ``forward``'s arguments that must be given; an only ``*args`` counts as one."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in positional if p.default is p.empty]
    names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if names:
        return names
    if positional:  # every argument has a default: the first one is the input
        return [positional[0].name]
    return [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]


class Probe:
    """Runs a model on shapes.

    Args:
        model: in eval mode; left as it is found.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._data_lines: set[str | None] = set()
        self._needs_values = False
        floating = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.dtype = torch.float32 if floating is None else floating.dtype
        self.device = torch.device("cpu") if floating is None else floating.device

    def run(self, guesses: Sequence[Guess], batch: int, size: int) -> Trial:
        """Run on inputs of the guessed shapes: without values, or with real ones where the way depends on values."""
        if not self._needs_values:
            trial = self._recorded(guesses, batch, size)
            if trial is not None:
                return trial
            self._needs_values = True
        return self._real(self.inputs(guesses, batch, size))

    def inputs(
        self, guesses: Sequence[Guess], batch: int, size: int, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Return standard normal inputs, or indices, of the guessed shapes."""
        made = []
        for guess in guesses:
            shape = guess.shape(batch, size)
            if guess.values is None:
                made.append(
                    torch.randn(shape, generator=generator, device="cpu").to(device=self.device, dtype=self.dtype)
                )
            else:
                made.append(torch.randint(guess.values, shape, generator=generator, device="cpu").to(self.device))
        return made

    def _recorded(self, guesses: Sequence[Guess], batch: int, size: int) -> Trial | None:
        """Record a run on shapes alone; None where that cannot be done: the model's way depends on values, say."""
        for _ in range(MOST_RUNS):
            trial = Trial()
            inputs = tuple(
                torch.empty(
                    guess.shape(batch, size),
                    dtype=self.dtype if guess.values is None else torch.int64,
                    device="meta",
                )
                for guess in guesses
            )
            try:
                recording = Recording(self._model, inputs, {}, self._data_lines, self.device)
                with same_random_numbers():
                    outputs = recording.run(watch=_Watch(recording.args, trial))
            except WrittenLaterError as error:
                if error.line in self._data_lines:
                    return None
                self._data_lines.add(error.line)
            except BnfoldError as error:
                if isinstance(error, ImpureError):  # what a run with values writes into may be more than is put back
                    with contextlib.suppress(Exception):
                        self._model = copy.deepcopy(self._model)
                return None
            except Exception as error:
                trial.error = first_line(error, typed=True)
                return trial
            else:
                trial.outputs = shapes_of_outputs(outputs)
                trial.recording = recording
                return trial
        return None

    def _real(self, inputs: list[Tensor]) -> Trial:
        trial = Trial()
        parts = [*self._model.modules()]
        state = buffers_of(parts)
        try:
            with torch.no_grad(), unlogged(), same_random_numbers(), left_as_found(parts), _Watch(inputs, trial):
                outputs = self._model(*inputs)
            trial.outputs = shapes_of_outputs(outputs)
        except Exception as error:
            trial.error = first_line(error, typed=True)
        finally:
            put_back(state, by_content=True)
        return trial


def shapes_of_outputs(outputs: Any) -> list[tuple[int, ...]]:
    """Return the shape of every tensor in an output: nested containers, and objects with fields."""
    found: list[Tensor] = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__"):
            found += [value for value in vars(leaf).values() if isinstance(value, Tensor)]
    return [tuple(tensor.shape) for tensor in found]


class _Watch(TorchFunctionMode):
    """Follows the inputs through a run: what the first layers want, and where sizes matter."""

    def __init__(self, inputs: Sequence[Tensor], trial: Trial) -> None:
        super().__init__()
        self._trial = trial
        self._batch = inputs[0].shape[0]
        self._origin = {id(value): index for index, value in enumerate(inputs)}  # values no layer has seen yet
        self._derived = {id(value) for value in inputs}
        self._alive: list[Any] = list(inputs)  # an id names a tensor only as long as it lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # a recorder would take these for questions of the model's
            reads = [value for value in leaves((args, kwargs), []) if isinstance(value, Tensor)]
            met_layer = bool(reads) and self._look(name, reads, args, kwargs)
            self._trial.reached += 1
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if any(self._is_derived(value) for value in reads):
                self._follow(reads, result, met_layer)
        return result

    def _is_derived(self, value: Tensor) -> bool:
        """Whether a value depends on the inputs; without data, all that are on the meta device do."""
        return value.is_meta or id(value) in self._derived

    def _follow(self, reads: Sequence[Tensor], result: Any, met_layer: bool) -> None:
        origins = {self._origin[id(value)] for value in reads if id(value) in self._origin}
        for value in leaves(result, []):
            if not isinstance(value, Tensor):
                continue
            self._alive.append(value)
            self._derived.add(id(value))
            if met_layer:
                self._origin.pop(id(value), None)
            elif len(origins) == 1:
                self._origin[id(value)] = next(iter(origins))

    def _look(self, name: str, reads: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Note what this call wants of its first tensor; return whether it is a layer with weights."""
        x, weights = reads[0], reads[1:]
        if name in ("view", "reshape"):
            self._look_at_view(x, settle(args, _same))
        elif name in ("add", "__add__", "add_", "__iadd__") and len(reads) == 2:
            self._look_at_sum(*reads)
        if name == "embedding" and len(reads) == 2:
            x, table = reads if self._is_derived(reads[0]) else reads[::-1]
            self._need(x, "embedding", have=0, want=table.shape[0])
            return True
        if not weights or not self._is_derived(x):
            return False
        if name in _CONVOLUTIONS:
            space = _CONVOLUTIONS[name]
            groups = _groups(settle(args, _same), settle(kwargs, _same))
            want = weights[0].shape[0] if "transpose" in name else weights[0].shape[1] * groups
            have = x.shape[1] if x.ndim == space + 2 else -1
            self._need(x, "conv", have=have, want=want, space=space)
            return True
        if name == "linear":
            want = weights[0].shape[-1]
            self._need(x, "linear", have=x.shape[-1], want=want)
            self._trial.hints.append(Hint(x.shape[-1], want))
            return True
        if name in ("batch_norm", "instance_norm", "group_norm"):
            sizes = [value.shape[0] for value in weights if value.ndim == 1]
            if sizes and x.ndim > 1:
                self._need(x, "norm", have=x.shape[1], want=sizes[0])
            return True
        return False

    def _need(self, x: Tensor, kind: str, *, have: int, want: int, space: int | None = None) -> None:
        index = self._origin.get(id(x))
        if index is None or index in self._trial.needs:
            return
        if kind == "embedding" and x.dtype in (torch.int64, torch.int32):
            have = want
        self._trial.needs[index] = Need(index, kind, have, want, space)

    def _look_at_view(self, x: Tensor, args: Sequence[Any]) -> None:
        """Flattening to ``(-1, K)`` or ``(batch, K)``: a sample must hold K numbers."""
        target = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if not self._is_derived(x) or len(target) < 2 or not all(isinstance(size, int) for size in target):
            return
        lead, rest = target[0], target[1:]
        if lead in (-1, self._batch) and all(size > 0 for size in rest) and x.shape[0] == self._batch:
            self._trial.hints.append(Hint(x.numel() // self._batch, math.prod(rest)))

    def _look_at_sum(self, left: Tensor, right: Tensor) -> None:
        """A sum with a parameter of fixed size, such as an embedding of positions."""
        if self._is_derived(left) == self._is_derived(right) or left.ndim != right.ndim:
            return
        x, parameter = (left, right) if self._is_derived(left) else (right, left)
        extents = list(zip(x.shape[1:], parameter.shape[1:], strict=True))
        if sum(have != want for have, want in extents) <= 1:
            self._trial.hints += [Hint(have, want) for have, want in extents if 1 not in (have, want)]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _groups(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the groups of a call ``conv(x, weight, bias, stride, padding, dilation, groups)``."""
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    return groups if isinstance(groups, int) else 1


def kept_batch(trials: Iterable[tuple[int, Trial]]) -> bool:
    """Whether every run kept its batch: each output has it in front, or is the same for all; at least one has it.

    Args:
        trials: the batch size and the result of each run.
    """
    runs = list(trials)
    shapes = [trial.outputs for _, trial in runs]
    if any(outputs is None for outputs in shapes) or len({len(outputs or ()) for outputs in shapes}) != 1:
        return False
    batched = 0
    for outputs in zip(*(outputs or () for outputs in shapes), strict=True):
        rest = {shape[1:] for shape in outputs}
        if len(rest) == 1 and all(shape[:1] == (batch,) for (batch, _), shape in zip(runs, outputs, strict=True)):
            batched += 1
        elif len(set(outputs)) != 1:
            return False
    return batched > 0
