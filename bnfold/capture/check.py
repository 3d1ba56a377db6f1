"""Does a capture compute what the model computes? Both run once on the example inputs and are compared to the bit.

The graph calls the same kernels on the same numbers in the same order, so nothing may differ. Where a layer was written
as the function that it was said or measured to be, or the graph is of aten operators, it may round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from bnfold.capture.nests import flatten, structure_difference
from bnfold.capture.restore import buffers_of, left_as_found, own_copies, put_back, same_random_numbers, seed
from bnfold.errors import OtherInputError, first_line
from bnfold.graph.batch_dimension import batch_positions
from bnfold.graph.captured import Capture
from bnfold.graph.runs import GraphRun

__all__ = ["ModelFailedError", "answers_twice_alike", "compare", "difference", "failure", "undisturbed"]

_SEED = 0


class ModelFailedError(Exception):
    """The model itself does not run on the example inputs."""


def difference(capture: Capture, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    """Return how the answer of a captured graph differs from the model's on some inputs; None where it does not.

    Args:
        capture: of the model as a whole.
        model: left as it is found.
        inputs: positional arguments; copied, since a model may write into them.
        named: keyword arguments.

    Raises:
        ModelFailedError: the model itself raises.
    """
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves((inputs, dict(named)))):
        return None  # a model without data has no answers
    found = _differs(capture, model, inputs, named)
    if isinstance(found, ModelFailedError):
        raise found
    if found is not None:
        return found
    places = batch_positions(inputs)
    if not places:
        return None
    # other numbers and another batch, which is small: an answer of an earlier run is none for these
    size = inputs[places[0]].shape[0]
    other = tuple(
        (value[-1:].flip(-1) if size > 1 else torch.cat([value, value.flip(-1)])) if position in places else value
        for position, value in enumerate(inputs)
    )
    found = _differs(capture, model, other, named, other_batch=True)
    return f"for a batch of {1 if size > 1 else 2}, {found}" if isinstance(found, str) else None


def _differs(
    capture: Capture, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], *, other_batch: bool = False
) -> str | ModelFailedError | None:
    """Return how the graph's answer differs from the model's; None where it does not, or by the model's own rounding.

    A check in the graph may refuse ``other_batch``.
    """
    expected = undisturbed(model, model, inputs, named)
    if isinstance(expected, Exception):
        failed = ModelFailedError(first_line(expected))
        failed.__cause__ = expected
        return failed
    graph = GraphRun(capture)
    actual = undisturbed(lambda *args, **kwargs: graph.run(*args, *kwargs.values()), model, inputs, named)
    if isinstance(actual, OtherInputError):
        text = f"a check in the graph does not hold for the inputs it was captured with: {actual.what}"
        return None if other_batch else text
    if isinstance(actual, Exception):
        return f"the graph raises {type(actual).__name__}: {first_line(actual)}"
    found = compare(expected, actual, exact=capture.exact)
    if found is None:
        return None
    again = undisturbed(model, model, inputs, named)
    if isinstance(again, Exception) or compare(expected, again, exact=False) is not None:
        return f"{found}, and the model itself answers otherwise in its next run"
    if compare(expected, again, exact=True) is not None and compare(expected, actual, exact=False) is None:
        return None  # a kernel that sums in another order each time
    where = _first(capture, model, inputs, named)
    return found + (f"; it first differs at {where}" if where else "")


def answers_twice_alike(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether two runs in a row answer alike, the second of the model as the first leaves it."""
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(inputs)):
        return True

    def twice(*args: Any, **kwargs: Any) -> Any:
        first = model(*own_copies(args), **own_copies(kwargs))
        seed(_SEED)
        return first, model(*args, **kwargs)

    answers = undisturbed(twice, model, inputs, {})
    return isinstance(answers, Exception) or compare(answers[0], answers[1], exact=True) is None


def failure(model: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """Return what the model itself raises on some inputs; None where it runs."""
    answer = undisturbed(model, model, inputs, {})
    return answer if isinstance(answer, Exception) else None


def undisturbed(call: Any, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Return what a call gives, or the exception that it raises; the model is left as it was."""
    parts = [*model.modules()]
    state = buffers_of(parts)
    with left_as_found(parts), same_random_numbers(), torch.no_grad():
        seed(_SEED)
        try:
            return call(*own_copies(inputs), **own_copies(dict(named)))
        except Exception as error:
            return error
        finally:
            put_back(state, by_content=True)


_ROUNDINGS = 1000  # of the largest value, where a layer was written as a function that rounds otherwise


def compare(expected: Any, actual: Any, *, exact: bool) -> str | None:
    """Return how one answer differs from another, to the bit or within roundings; None where it does not."""
    left, right = flatten(expected), flatten(actual)
    found = structure_difference(left, right)
    if found is not None:
        return found
    for one, other in zip(left, right, strict=True):
        if one.is_tensor and isinstance(other.value, FakeTensor):  # torch 2.6 exports some code to a graph of these
            return f"{one.name} holds no numbers"
        if one.is_tensor and not (same_bits(one.value, other.value) or (not exact and _near(one.value, other.value))):
            return f"{one.name} differs {_much(one.value, other.value)}"
    return None


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN where NaN is."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    return bool(((one == other) | (torch.isnan(one) & torch.isnan(other))).all())


def _near(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() or one.numel() == 0:
        return False
    peak = float(one.abs().max().nan_to_num(0.0, 0.0))
    allowed = _ROUNDINGS * torch.finfo(one.dtype).eps * peak
    return torch.allclose(one, other, rtol=0.0, atol=allowed, equal_nan=True)


def _much(one: Tensor, other: Tensor) -> str:
    if not one.is_floating_point():
        return f"in {int((one != other).sum())} of {one.numel()} places"
    peak = float(one.double().abs().nan_to_num().max())
    return f"by {float((one.double() - other.double()).abs().nan_to_num().max()):.2g}, of a peak of {peak:.2g}"


class _Watched(GraphRun):
    """Compares the answers of layers with what they answered in the model's own run."""

    def __init__(self, capture: Capture, answers: dict[str, list[Any]]) -> None:
        super().__init__(capture)
        self.answers = answers
        self.first: str | None = None

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        expected = self.answers.get(str(n.target), []) if n.op == "call_module" else []
        if expected and self.first is None:
            answer = expected.pop(0)
            if isinstance(value, Tensor) and isinstance(answer, Tensor) and not same_bits(answer, value):
                source = n.meta.get("source")
                self.first = f"`{n.target}`" + (f" ({source})" if source else "")
        return value


def _first(capture: Capture, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    """Return the first layer that does not get from the graph what it gets in the model."""
    answers: dict[str, list[Any]] = {}
    targets = {str(node.target) for node in capture.graph.nodes if node.op == "call_module"}
    handles = []
    parts = [*model.modules()]
    with left_as_found(parts):
        for name in targets:
            answers[name] = []

            def keep(_module: Any, _args: Any, output: Any, name: str = name) -> None:
                answers[name].append(output.clone() if isinstance(output, Tensor) else None)

            handles.append(model.get_submodule(name).register_forward_hook(keep))
        try:
            undisturbed(model, model, inputs, named)
        finally:
            for handle in handles:
                handle.remove()
    watched = _Watched(capture, answers)
    undisturbed(lambda *args, **kwargs: watched.run(*args, *kwargs.values()), model, inputs, named)
    return watched.first
