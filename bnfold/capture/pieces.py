"""Capture piece by piece, for models whose own ``forward`` cannot be captured: detectors, samplers, recurrent loops.

The model is run on the example inputs to see which of its parts are called, how, and by whom. Each largest part that
is called always in the same way, holds a BatchNorm and can be recorded is a piece; where an ``nn.Sequential`` cannot be
recorded as a whole, its longest runs of neighbours are. A part whose inner layers are also used from outside of it is
no piece, since a fold would change them for that caller too.

Then the model is run once more, and each piece answers beside the part that it stands for: what differs, or refuses a
size that the model itself passes, is no piece.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from bnfold.capture.arguments import CHOICES
from bnfold.capture.check import compare
from bnfold.capture.restore import buffers_of, left_as_found, own_copies, put_back, same_random_numbers
from bnfold.errors import first_line
from bnfold.graph.captured import Capture
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.runs import GraphRun
from bnfold.graph.shells import shell

__all__ = ["Pieces", "find_pieces"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
Record = Callable[[nn.Module, Call], "Capture | None"]

_COMPARED = 3  # calls of a piece, and beyond them one for each new size


@dataclass
class Pieces:
    """What was found.

    Attributes:
        found: the pieces, by the place that each takes.
        differing: how others, that were tried, differ from the parts that they stand for.
        check_seconds: how long it took to compare them.
    """

    found: dict[str, Capture]
    differing: dict[str, str]
    check_seconds: float


def find_pieces(
    model: nn.Module,
    inputs: tuple[Any, ...],
    holds_batch_norm: Callable[[nn.Module], bool],
    record: Record,
    *,
    check: bool,
) -> Pieces:
    """Find the pieces of a model.

    Args:
        model: left as it is found.
        inputs: positional.
        holds_batch_norm: whether a part does.
        record: captures a part for the arguments of a call; returns None where it cannot.
        check: compare the pieces with the parts that they stand for.
    """
    seen = _Seen()
    _see(model, inputs, seen)
    if seen.stopped is not None and not seen.first:
        raise seen.stopped
    # The same values in another order, in the hope that the code decides otherwise: who else uses a part?
    other = _Seen()
    _see(model, _shuffled(inputs), other)
    seen.take_users(other)
    finder = _Finder(model, seen, holds_batch_norm, record)
    differing: dict[str, str] = {}
    seconds = 0.0
    while True:
        pieces = finder.pieces()
        # A piece answers for the size it was recorded with; whether it does for another, only a run tells.
        tried = {place: piece for place, piece in pieces.items() if check or len(seen.sizes[place]) > 1}
        begin = time.perf_counter()
        wrong = _differing(model, inputs, tried, check=check, may_stop=seen.stopped is not None)
        seconds += time.perf_counter() - begin
        if not wrong:
            return Pieces(pieces, differing, seconds)
        differing |= wrong
        finder.refused.update((place, *pieces[place].passed) for place in wrong)


# --- what a run of the model shows --------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What a run of the model shows of its parts, by name.

    Attributes:
        first: the arguments of the first call.
        sizes: the different sizes of arguments.
        unlike: parts that are called in different ways.
        callers: the parts whose code called it, or whose parts' code did.
        entered: parts of which an inner layer was called, or a tensor read, while the part itself was not running.
        stopped: what ended the run. That may come after the layers have run: post-processing that needs an operator
            which is not installed, say.
    """

    first: dict[str, Call] = field(default_factory=dict)
    sizes: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))
    unlike: set[str] = field(default_factory=set)
    callers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    entered: set[str] = field(default_factory=set)
    stopped: Exception | None = None

    def take_users(self, other: _Seen) -> None:
        """Take over what another run shows of who uses which part, and how."""
        self.entered |= other.entered
        self.unlike |= other.unlike
        for name, callers in other.callers.items():
            self.callers[name] |= callers
        for name, call in other.first.items():
            if name in self.first and _way_of(call) != _way_of(self.first[name]):
                self.unlike.add(name)


def _see(model: nn.Module, inputs: tuple[Any, ...], seen: _Seen) -> None:
    running: list[str] = []
    copy = shell(model, {})

    def enter(name: str) -> Callable[..., None]:
        outer = _outer(name)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = (args, kwargs)
            if _way_of(call) != _way_of(seen.first.setdefault(name, call)):
                seen.unlike.add(name)
            seen.sizes[name].add(_sizes_of(call))
            seen.callers[name].add(running[-1] if running else "")
            seen.entered.update(part for part in outer if part not in running)
            running.append(name)

        return before

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in copy.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):  # of which there is no shell
            module.register_forward_pre_hook(enter(name), with_kwargs=True)
            module.register_forward_hook(leave, always_call=True)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners[id(tensor)].append(name)

    def read(tensor: Tensor) -> None:
        names = owners[id(tensor)]
        if not any(name in running for name in names):
            seen.entered.update(part for name in names for part in (*_outer(name), name) if part not in running)

    with _uncompiled():
        seen.stopped = _run(copy, model, inputs, _Reads(owners.keys(), read))


def _uncompiled() -> Any:
    """While entered, what ``torch.compile`` made runs as it was written: it would be compiled anew to be watched."""
    compiler = sys.modules.get("torch._dynamo")
    return contextlib.nullcontext() if compiler is None else torch.compiler.set_stance("force_eager")


def _run(copy: nn.Module, model: nn.Module, inputs: tuple[Any, ...], mode: Any = None) -> Exception | None:
    """Run a shell of a model, which is left as it is found; return what stopped it."""
    parts = [*model.modules()]
    state = buffers_of(parts)
    with left_as_found(parts), torch.no_grad(), same_random_numbers(), mode or contextlib.nullcontext():
        try:
            copy(*own_copies(inputs))
        except Exception as error:  # whatever the model's code raises
            return error
        finally:
            put_back(state)
    return None


class _Reads(TorchFunctionMode):
    """Tells which of some tensors are read by calls of torch; quickly, since post-processing makes many of them."""

    def __init__(self, known: Collection[int], read: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.known, self.read = known, read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See a call of torch, and run it."""
        waiting = [*args, *kwargs.values()] if kwargs else [*args]
        for value in waiting:  # grows
            if isinstance(value, (list, tuple)):
                waiting += value
            elif id(value) in self.known and not _only_asks(func):
                self.read(value)
        return func(*args, **(kwargs or {}))


def _only_asks(func: Any) -> bool:
    """Whether a call asks for what no fold changes: the size of a tensor, its type."""
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ not in _VIEWS if name == "__get__" else name in _QUESTIONS


_VIEWS = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))  # attributes that are more than a question
_QUESTIONS = frozenset("size dim ndimension numel nelement stride is_floating_point is_complex element_size".split())


def _outer(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _way_of(call: Call) -> Any:
    """How a part is called: which arguments, and the choices that it is given by them."""
    args, kwargs = call
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    return len(args), set(kwargs), {where: value for where, value in given.items() if isinstance(value, CHOICES)}


def _sizes_of(call: Call) -> Any:
    return tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in pytree.tree_leaves(call)
    )


def _shuffled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def shuffled(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
            return value
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        return value.detach().reshape(-1)[order].reshape(value.shape)

    found: tuple[Any, ...] = pytree.tree_map(shuffled, inputs)
    return found


# --- which parts are pieces ---------------------------------------------------------------------------------------


class _Finder:
    """Finds the pieces of a model. What was recorded once is kept, for when some of it turns out not to be right."""

    def __init__(
        self, model: nn.Module, seen: _Seen, holds_batch_norm: Callable[[nn.Module], bool], record: Record
    ) -> None:
        self.model = model
        self.seen = seen
        self.holds_batch_norm = holds_batch_norm
        self.record = record
        self.refused: set[tuple[str, ...]] = set()
        self.recorded: dict[tuple[str, ...], Capture | None] = {}
        self.names = {id(part): name for name, part in model.named_modules()}
        self.places = {name: index for index, name in enumerate(self.names.values())}

    def pieces(self) -> dict[str, Capture]:
        """Return the pieces by place, in the order of the model's parts."""
        found = dict(self.inside("", self.model))
        return dict(sorted(found.items(), key=lambda item: self.places[item[0]]))

    def inside(self, name: str, part: nn.Module) -> Iterator[tuple[str, Capture]]:
        """Yield the pieces in a part that is none itself."""
        children = {_join(name, key): child for key, child in part.named_children()}
        taken: set[str] = set()
        if _runs_in_order(part):
            for place, piece in self.runs(name, part):
                yield place, piece
                taken |= {place, *piece.passed}
        for place, child in children.items():
            if place in taken or not self.holds_batch_norm(child):
                continue
            alone = self.of((place,), child, place + ".")
            if alone is not None:
                yield place, alone
            else:
                yield from self.inside(place, child)

    def runs(self, name: str, part: nn.Module) -> Iterator[tuple[str, Capture]]:
        """Yield the longest runs of two and more neighbours in a Sequential that are pieces."""
        places = [_join(name, key) for key in part._modules]
        layers: list[Any] = [*part._modules.values()]
        own = [self.is_own(name, place, child, layers) for place, child in zip(places, layers, strict=True)]
        begin = 0
        while begin < len(places):
            end = begin
            while end < len(places) and own[end]:
                end += 1
            # What can be recorded up to some place can be up to any earlier one: search for the longest by halves.
            good, bad, middle = begin, end + 1, end
            while bad - good > 1:
                if self.run(name, places[begin:middle], layers[begin:middle]) is not None:
                    good = middle
                else:
                    bad = middle
                middle = (good + bad) // 2
            first, last = begin, good
            while first < last and not _has_state(layers[first]):
                first += 1
            while first < last and not _has_state(layers[last - 1]):
                last -= 1
            if last - first > 1 and any(map(self.holds_batch_norm, layers[first:last])):
                piece = self.run(name, places[first:last], layers[first:last])
                if piece is not None:
                    yield places[first], piece
            begin = max(good, begin + 1)

    def run(self, name: str, places: list[str], layers: list[Any]) -> Capture | None:
        """Return the capture of neighbours in a Sequential."""
        root = nn.Sequential(OrderedDict(zip((place.rpartition(".")[2] for place in places), layers, strict=True)))
        root.training = False
        return self.of(tuple(places), root, name + "." if name else "")

    def of(self, places: tuple[str, ...], part: nn.Module, prefix: str) -> Capture | None:
        """Return the capture of what stands in some places."""
        seen, place = self.seen, places[0]
        if places in self.refused or place not in seen.first or place in seen.unlike | seen.entered:
            return None
        if places not in self.recorded:
            made = self.record(part, seen.first[place])
            self.recorded[places] = made and replace(made, prefix=prefix, passed=places[1:])
        return self.recorded[places]

    def is_own(self, name: str, place: str, child: Any, layers: list[Any]) -> bool:
        """Whether a child of a Sequential is used by it alone, once in each of its calls or without a state."""
        if child is None:
            return False
        known = self.names[id(child)]
        if _has_state(child) and (known != place or sum(other is child for other in layers) > 1):
            return False
        return self.seen.callers[known] == {name} and known not in self.seen.entered


def _join(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def _runs_in_order(part: nn.Module) -> bool:
    """Whether calling a part calls its children one after another, and does nothing else."""
    kind: Any = type(part)
    return (
        isinstance(part, nn.Sequential)
        and kind.forward is nn.Sequential.forward
        and kind.__iter__ is nn.Sequential.__iter__
        and kind.__call__ is nn.Module.__call__
        and "forward" not in part.__dict__
        and not carries_hooks(part)
    )


def _has_state(part: nn.Module) -> bool:
    return any(True for _ in part.parameters()) or any(True for _ in part.buffers())


# --- do they answer as the parts do? ------------------------------------------------------------------------------


def _differing(
    model: nn.Module, inputs: tuple[Any, ...], pieces: dict[str, Capture], *, check: bool, may_stop: bool
) -> dict[str, str]:
    """Return how pieces differ from the parts that they stand for, by place, in a run of the model.

    Args:
        model: left as it is found.
        inputs: positional.
        pieces: by place.
        check: whether to compare what they answer; if not, they need only run.
        may_stop: whether the model's run stops before its end.
    """
    wrong: dict[str, str] = {}
    if not pieces:
        return wrong
    copy = shell(model, {})
    for place, piece in pieces.items():
        _Trial(place, piece, wrong, check).watch(copy)
    stopped = _run(copy, model, inputs)
    if stopped is not None and not may_stop:
        raise stopped
    return wrong


class _Trial:
    """Lets a piece answer beside the part that it stands for."""

    def __init__(self, place: str, piece: Capture, wrong: dict[str, str], check: bool) -> None:
        self.place, self.piece, self.wrong, self.check = place, piece, wrong, check
        self.count = 0
        self.sizes: set[Any] = set()
        self.pending: list[tuple[Call, Call] | None] = []

    def watch(self, model: nn.Module) -> None:
        """Compare in each run of a model from now on."""
        last = self.piece.passed[-1] if self.piece.passed else self.place
        model.get_submodule(self.place).register_forward_pre_hook(self.before, with_kwargs=True)
        model.get_submodule(last).register_forward_hook(self.after)

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments: the part may write into them."""
        sizes = _sizes_of((args, kwargs))
        wanted = self.place not in self.wrong and (self.count < _COMPARED or sizes not in self.sizes)
        self.count += 1
        self.sizes.add(sizes)
        self.pending.append(((args, kwargs), (own_copies(args), own_copies(kwargs))) if wanted else None)

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Let the piece answer, and compare."""
        pending = self.pending.pop()
        if pending is None:
            return
        call, (args, kwargs) = pending
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(call)):
            return  # a model without data has no answers
        names = [node.target for node in self.piece.graph.nodes if node.op == "placeholder" and node.target in kwargs]
        try:
            answer = GraphRun(self.piece).run(*args, *(kwargs[name] for name in names))
            # With the arguments, since both may have written into them.
            exact = self.piece.exact
            found = compare((output, *call), (answer, args, kwargs), exact=exact) if self.check else None
        except Exception as error:  # a check of a size, above all; what it is must not end the model's run
            found = first_line(error)
        if found is not None:
            self.wrong[self.place] = found
