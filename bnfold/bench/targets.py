"""What is timed: a model made ready to run on one target, as a function without arguments.

Making it ready may fail, for many reasons that are nobody's mistake: then :class:`NotReadyError` says why, in one
sentence, and the other targets are measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.errors import BnfoldError, first_line
from bnfold.export.dynamic import DEFAULT, Dynamic, wanted
from bnfold.graph.batch_dimension import as_tuple, batch_positions, with_batch
from bnfold.graph.quiet import unlogged

__all__ = ["TARGETS", "NotReadyError", "Target", "make_target"]

Run = Callable[[], object]


class NotReadyError(Exception):
    """A model does not run on a target; the message is one sentence."""


class Target:
    """One model on one target.

    Args:
        module: in eval mode; not changed.
        inputs: example inputs.
        threads: how many it may compute with.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], threads: int) -> None:
        self.module = module
        self.inputs = inputs
        self.threads = threads

    def run(self, batch: int | None) -> Run:
        """Return a call of the model at a batch size, after having made it once.

        Called again, it lays out anew in memory what it can: sessions, inputs.

        Raises:
            NotReadyError: the model does not run here, or not at this batch size.
        """
        inputs = self.inputs if batch is None else with_batch(self.inputs, batch)
        call = self._call(inputs)
        with _telling(f"does not run at batch {batch}" if batch is not None else "does not run"), unlogged():
            call()
        return call

    def _call(self, inputs: tuple[Any, ...]) -> Run:
        return _without_gradients(self.module, inputs)


class ChannelsLast(Target):
    """torch eager, weights and inputs in the channels_last memory format."""

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], threads: int) -> None:
        if not any(isinstance(value, Tensor) and value.ndim == 4 for value in inputs):
            raise NotReadyError("channels_last is a format of images, and no input has 4 dimensions")
        with _telling("cannot be copied"):
            changed = copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(changed, inputs, threads)

    def _call(self, inputs: tuple[Any, ...]) -> Run:
        return super()._call(tuple(_channels_last(value) for value in inputs))


class Compiled(Target):
    """``torch.compile`` with its defaults, compiled for each batch size on its own."""

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], threads: int) -> None:
        with _telling("cannot be compiled"):
            compiled = torch.compile(module, dynamic=False)
        super().__init__(compiled, inputs, threads)  # type: ignore[arg-type]


class OnnxRuntime(Target):
    """The ONNX export under ONNX Runtime with its graph optimiser at full.

    Args:
        module: in eval mode; not changed.
        inputs: example inputs.
        threads: how many it may compute with.
        dynamic: what stays free in the export. Where the batch does not, each batch size has its own.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], threads: int, dynamic: Dynamic = DEFAULT) -> None:
        super().__init__(module, inputs, threads)
        self._wanted = wanted(dynamic)
        self._exported: dict[int | None, Any] = {}
        if self._wanted.batch or self._wanted.shapes is not None:
            self._export(inputs)

    def _export(self, inputs: tuple[Any, ...]) -> Any:
        """Return the export that takes these inputs."""
        from bnfold.export import onnx_of
        from bnfold.verify.runtime import require_onnxruntime

        positions = batch_positions(inputs)
        fixed = not self._wanted.batch and self._wanted.shapes is None and bool(positions)
        size = int(inputs[positions[0]].shape[0]) if fixed else None
        if size not in self._exported:
            with _telling("cannot be exported"):
                require_onnxruntime()
                self._exported[size] = onnx_of(self.module, inputs, dynamic=self._wanted).model
        return self._exported[size]

    def _call(self, inputs: tuple[Any, ...]) -> Run:
        from bnfold.verify.runtime import OrtModel

        model = self._export(inputs)
        with _telling("does not load"):
            return OrtModel(model, "full", threads=self.threads).prepared(*inputs)


class OtherRuntime(OnnxRuntime):
    """The ONNX export under a witness: one run in a process apart, since it may crash, and then here, to be timed."""

    def __init__(
        self, witness: str, module: nn.Module, inputs: tuple[Any, ...], threads: int, dynamic: Dynamic
    ) -> None:
        super().__init__(module, inputs, threads, dynamic)
        self.witness = witness

    def _call(self, inputs: tuple[Any, ...]) -> Run:
        from bnfold.verify.runtime import OrtModel
        from bnfold.witness.registry import find
        from bnfold.witness.session import Session, as_file

        with _telling("does not load"), as_file(self._export(inputs)) as path:
            feed = OrtModel(path, "off", threads=1).feed(inputs)
            session = Session(self.witness, path)
            try:
                session(feed)
            finally:
                session.close()
            run = find(self.witness).load()(str(path), threads=self.threads)
        return lambda: run(feed)


TARGETS: dict[str, Callable[..., Target]] = {
    "eager": Target,
    "channels-last": ChannelsLast,
    "compile": Compiled,
    "onnxruntime": OnnxRuntime,
}


def make_target(name: str, module: nn.Module, inputs: Any, threads: int, dynamic: Dynamic = DEFAULT) -> Target:
    """Return a model made ready for a target.

    Args:
        name: one of :data:`TARGETS`, or of a witness.
        module: in eval mode; not changed.
        inputs: a tensor, or a tuple of positional inputs.
        threads: how many it may compute with.
        dynamic: what stays free in an export.

    Raises:
        NotReadyError: the target does not take the model.
    """
    given = as_tuple(inputs)
    if name == "onnxruntime" or name not in TARGETS:  # an example of one sample would freeze the batch
        positions = batch_positions(given)
        size = next((value.shape[0] for value in (given[position] for position in positions)), 2)
        given = with_batch(given, max(2, size), positions)
    with unlogged():
        if name not in TARGETS:
            return OtherRuntime(name, module, given, threads, dynamic)
        return TARGETS[name](module, given, threads, *([dynamic] if name == "onnxruntime" else []))


def _without_gradients(module: Callable[..., Any], inputs: tuple[Any, ...]) -> Run:
    def call() -> object:
        with torch.no_grad():
            return module(*inputs)

    return call


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turn whatever a model or a compiler raises into a sentence."""
    try:
        yield
    except NotReadyError:
        raise
    except BnfoldError as error:
        raise NotReadyError(error.what.rstrip(".")) from error
    except Exception as error:
        raise NotReadyError(f"the model {what}: {first_line(error)}") from error
