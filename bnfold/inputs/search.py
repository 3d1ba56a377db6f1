"""Inputs for a model: found by trying shapes, given as shapes, or read from a file.

:func:`find_inputs` needs no help for most networks. The first layer tells the channels. Spatial sizes are tried on fake
tensors until the model runs and its outputs keep the batch, at batch 2 and 3. (That a model runs is not enough: with
``x.view(-1, 32 * 14 * 14)`` a network for 28x28 images takes 224x224 too, and makes 64 rows of each image.) A view or a
Linear that wants another number of features tells in which direction to look, so that few sizes need be tried.

The run at batch 2 is recorded, and who captures the model needs no other. Its graph also answers for batch 3 where its
checks hold there; where one does not, or the graph loses the batch, the model itself is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.capture.recording import Recorded
from bnfold.errors import UsageError
from bnfold.graph.shapes import larger_batch
from bnfold.inputs.probe import Guess, Hint, Probe, Trial, kept_batch, required_inputs, shapes_of_outputs

__all__ = ["FoundInputs", "find_inputs", "inputs_of_shapes"]

BATCH = 2  # an export with an example batch of 1 can freeze the batch
_COMMON = {
    0: (1,),
    1: (256, 1024, 16000, 128, 512, 2048, 4096, 8000, 64, 32, 3000, 16, 8, 4),
    2: (224, 28, 32, 64, 256, 299, 96, 128, 384, 227, 112, 160, 192, 240, 288, 320, 448, 512, 48, 84, 40, 16, 8, 4),
    3: (32, 16, 64, 112, 28, 96, 128, 48, 8, 224, 4),
}
_LARGEST = {0: 1, 1: 200_000, 2: 2048, 3: 512}
_TRIALS = 400  # an end to the search; a trial takes milliseconds for a small network
_FIX = "Give the shape with --input-shape, for example --input-shape 1,3,224,224, or give real inputs with --inputs."


@dataclass(frozen=True)
class FoundInputs:
    """Example inputs, and how they were obtained.

    Attributes:
        inputs: positional inputs.
        how: a few words for the user.
        guessed: whether the sizes were found by trying, so that nobody has asked for these.
        recorded: what the search recorded of a run on them; None where it did not record one.
    """

    inputs: tuple[Tensor, ...]
    how: str
    guessed: bool = False
    recorded: Recorded | None = field(default=None, repr=False, compare=False)


def find_inputs(model: nn.Module, *, seed: int = 0) -> FoundInputs:
    """Find inputs that a model takes, without being told their shape.

    Args:
        model: in eval mode; not changed, and not run on real numbers unless its way depends on them.
        seed: of the inputs' standard normal values.

    Returns:
        Inputs for a batch of 2, in the model's dtype and on its device.

    Raises:
        UsageError: no shape was found on which the model runs and keeps its batch.
    """
    names = required_inputs(model)
    if not names:
        raise UsageError(f"The forward of {type(model).__name__} takes no input.", fix="Pass a model that has one.")
    try:
        search = _Search(model, len(names))
    except Exception as error:
        raise UsageError(
            f"The input shape of {type(model).__name__} cannot be searched for: a copy of it fails ({error}).",
            fix=_FIX,
        ) from error
    found = search.told(model) or search.found()
    if found is None:
        raise UsageError(
            f"No input shape was found on which {type(model).__name__} runs and keeps its batch "
            f"({search.count} were tried{search.furthest}).",
            fix=_FIX,
        )
    guesses, size, how = found
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(search.probe.inputs(guesses, BATCH, size, generator))
    made = search.recorded
    if made is not None:
        made = made._replace(captured=replace(made.captured, example_inputs=inputs))
    return FoundInputs(inputs, how, guessed=True, recorded=made)


def inputs_of_shapes(model: nn.Module, shapes: Sequence[Sequence[int]], *, seed: int = 0) -> FoundInputs:
    """Return standard normal inputs of the given shapes, in the model's dtype and on its device.

    Raises:
        UsageError: there are more or fewer shapes than the model has inputs.
    """
    names = required_inputs(model)
    if len(shapes) < len(names):
        raise UsageError(
            f"{type(model).__name__} takes {len(names)} inputs ({', '.join(names)}), and {len(shapes)} --input-shape "
            f"{'was' if len(shapes) == 1 else 'were'} given.",
            fix="Give one --input-shape for each, in that order.",
        )
    generator = torch.Generator().manual_seed(seed)
    floating = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    inputs = tuple(
        torch.randn(tuple(shape), generator=generator, device="cpu").to(device=floating.device, dtype=floating.dtype)
        for shape in shapes
    )
    return FoundInputs(inputs, "given with --input-shape")


Found = tuple[tuple[Guess, ...], int, str]


class _Search:
    """The search for one model: what was tried, and what came of it."""

    def __init__(self, model: nn.Module, inputs: int) -> None:
        self.probe = Probe(model)
        self._model = model
        self._inputs = inputs
        self.count = 0
        self._known: dict[tuple[tuple[Guess, ...], int, int], Trial] = {}
        self._furthest = Trial()
        self._latest = Trial()
        self.recorded: Recorded | None = None  # of a run on the shapes that were found

    @property
    def furthest(self) -> str:
        """What the run failed of that came furthest, for a message; empty if none failed."""
        return f"; the one that came furthest stopped with {self._furthest.error}" if self._furthest.error else ""

    def told(self, model: nn.Module) -> Found | None:
        """Use the input size that timm's models carry with them."""
        for attribute in ("pretrained_cfg", "default_cfg"):
            config = getattr(model, attribute, None)
            size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
            if isinstance(size, (tuple, list)) and len(size) == 3 and size[1] == size[2] and self._inputs == 1:
                guesses = (Guess(int(size[0]), 2),)
                if self.works(guesses, int(size[1])):
                    return guesses, int(size[1]), f"from the model's {attribute}"
        return None

    def found(self) -> Found | None:
        """Search: channels first, then sizes."""
        for guesses in self._layouts():
            size = self._size(guesses)
            if size is not None:
                return guesses, size, _in_words(guesses, size)
            if self.count >= _TRIALS:
                break
        return None

    def trial(self, guesses: tuple[Guess, ...], size: int, batch: int = BATCH) -> Trial:
        """Run once, or remember."""
        key = (guesses, size, batch)
        if key not in self._known:
            self.count += 1
            trial = self._known[key] = self.probe.run(guesses, batch, size)
            self._latest.recording, self._latest = None, trial  # one is kept: hundreds would take gigabytes
            if trial.error and (trial.reached > self._furthest.reached or not self._furthest.error):
                self._furthest = trial
        return self._known[key]

    def works(self, guesses: tuple[Guess, ...], size: int) -> bool:
        """Whether the model runs at batch 2 and 3 and keeps the batch."""
        first = self.trial(guesses, size)
        if first.outputs is None or not any(shape[:1] == (BATCH,) for shape in first.outputs):
            return False
        made = first.recorded()
        # where its checks hold, the graph of the run is what the model does for another batch, at a tenth of the time
        larger = None if made is None else larger_batch(made.captured)
        if made is not None and larger is not None:
            captured, outputs = larger
            if kept_batch([(BATCH, first), (BATCH + 1, Trial(shapes_of_outputs(outputs)))]):
                self.recorded = made._replace(captured=captured)
                return True
        if kept_batch([(BATCH, first), (BATCH + 1, self.trial(guesses, size, BATCH + 1))]):
            self.recorded = made
            return True
        return False

    def _layouts(self) -> Iterator[tuple[Guess, ...]]:
        """Yield what the inputs may look like, the likeliest first, each once."""
        seen = set()
        starts = [Guess(3 if space >= 2 else 1, space) for space in (2, 0, 1, 3)]
        starts += [*_first_layers(self._model), Guess(0, 1)]
        for guess in starts:
            start = (guess,) * self._inputs
            for guesses in self._repaired(start):
                if guesses not in seen:
                    seen.add(guesses)
                    yield guesses

    def _repaired(self, guesses: tuple[Guess, ...]) -> list[tuple[Guess, ...]]:
        """Give the first layers what they want; return the layouts worth searching for sizes, in order."""
        others: list[tuple[Guess, ...]] = []
        for _ in range(2 * self._inputs + 2):
            trial = self.trial(guesses, _COMMON[guesses[0].space][0])
            for need in trial.needs.values():
                if need.kind == "linear":  # vectors of its features; else a sequence; else an image, flattened
                    vector, sequence = Guess(need.want, 0), Guess(need.want, 1, channels_last=True)
                    others += [_with(guesses, need.index, other) for other in (vector, sequence)]
                    others += [_with(guesses, need.index, Guess(c, 2)) for c in (1, 3) if need.want % c == 0]
            unmet = trial.unmet
            if unmet is None or unmet.kind == "linear":
                break
            if unmet.kind in ("conv", "norm"):  # or the code swaps the channels to their place
                last = Guess(unmet.want, guesses[unmet.index].space or 1, channels_last=True)
                others.append(_with(guesses, unmet.index, last))
            fitted = _fitted(guesses[unmet.index], unmet.kind, unmet.have, unmet.want, unmet.space)
            if fitted is None:
                break
            guesses = _with(guesses, unmet.index, fitted)
        flat = [other for other in others if all(guess.space == 0 for guess in other)]
        return [*flat, guesses, *(other for other in others if other not in flat)]

    def _size(self, guesses: tuple[Guess, ...]) -> int | None:
        """Return a size that works, the most common first, or None."""
        space = max(guess.space for guess in guesses)
        searched: set[int] = set()
        for size in self._sizes(space):
            if self.count >= _TRIALS:
                return None
            if self.works(guesses, size):
                return size
            trial = self.trial(guesses, size)
            if trial.outputs is None and trial.unmet is not None:
                return None  # the first layer already does not take it: no size will help
            for want in dict.fromkeys(hint.want for hint in reversed(trial.hints) if hint.have != hint.want):
                if want not in searched and len(searched) < 4:
                    searched.add(want)
                    fitting = self._size_for(guesses, space, want)
                    if fitting is not None:
                        return fitting
        return None

    def _sizes(self, space: int) -> Iterator[int]:
        yield from _COMMON[space]
        if space == 2:
            yield from (size for size in range(1, 65) if size not in _COMMON[space])

    def _size_for(self, guesses: tuple[Guess, ...], space: int, want: int) -> int | None:
        """Return a size at which the place that wants ``want`` numbers gets them: they grow with the size."""
        low = self._smallest(guesses, space, want)
        if low is None or self._have(guesses, low, want) != want:
            return None
        beyond = self._smallest(guesses, space, want + 1, target=want) or low + 1
        fitting = [size for size in _COMMON[space] if low <= size < beyond]
        fitting += [low, *(size for size in range(low, min(beyond, low + 64)) if size % 8 == 0)]
        return next((size for size in dict.fromkeys(fitting) if self.works(guesses, size)), None)

    def _smallest(self, guesses: tuple[Guess, ...], space: int, least: int, target: int | None = None) -> int | None:
        """Return the smallest size that brings at least ``least`` numbers to the place that wants ``target``."""
        want = least if target is None else target
        low, high = 0, 1
        while self._have(guesses, high, want) < least:
            low, high = high, high * 2
            if high > _LARGEST[space] or self.count >= _TRIALS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._have(guesses, middle, want) < least else (low, middle)
        return high

    def _have(self, guesses: tuple[Guess, ...], size: int, want: int) -> int:
        """Return how many numbers arrive, at this size, where ``want`` are wanted; 0 if the run does not get there."""
        hints: list[Hint] = self.trial(guesses, size).hints
        return next((hint.have for hint in reversed(hints) if hint.want == want), 0)


def _first_layers(model: nn.Module) -> list[Guess]:
    """Return what the first convolution takes, by the order in which layers are held: code may ask before it is met."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
            return [Guess(layer.in_channels, len(layer.kernel_size))]
    return []


def _with(guesses: tuple[Guess, ...], index: int, guess: Guess) -> tuple[Guess, ...]:
    return (*guesses[:index], guess, *guesses[index + 1 :])


def _fitted(guess: Guess, kind: str, have: int, want: int, space: int | None) -> Guess | None:
    """Return the guess changed to what a layer wants, or None where it is not clear how."""
    if kind == "embedding":
        return Guess(0, 1, values=want)
    if space is not None and have == -1:
        return replace(guess, space=space, channels=want)
    if have > 0 and guess.channels * want % have == 0:  # channels may have been multiplied on the way
        return replace(guess, channels=guess.channels * want // have)
    if have > 0 and have % guess.channels == 0 and want % (have // guess.channels) == 0:
        return replace(guess, channels=want // (have // guess.channels))
    return replace(guess, channels=want) if guess.channels != want else None


def _in_words(guesses: Sequence[Guess], size: int) -> str:
    """Say what was found: for images, that the channels are the first layer's and the size one that fits."""
    if all(guess.space == 0 for guess in guesses):
        return "found: what the first layer takes"
    unit = {1: f"length {size}", 2: f"{size}x{size}", 3: f"{size}x{size}x{size}"}[max(g.space for g in guesses)]
    return f"found: the channels are the first layer's, and the model keeps its batch at {unit}"


def shapes_in_words(inputs: Sequence[Any]) -> str:
    """Return the shapes of inputs as ``2x1x28x28``, several of them joined with a comma."""
    shapes = ["x".join(map(str, value.shape)) or "scalar" for value in inputs if isinstance(value, Tensor)]
    return ", ".join(shapes)
