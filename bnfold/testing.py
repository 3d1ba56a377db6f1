"""Equivalence in tests: pytest fixtures around :func:`bnfold.assert_equivalent`.

In a ``conftest.py``::

    pytest_plugins = ["bnfold.testing"]

and in a test::

    def test_the_deployed_model_is_the_trained_one(assert_equivalent):
        assert_equivalent(trained, deployed, torch.randn(1, 3, 224, 224))

    def test_every_batchnorm_folds(assert_folds):
        folding = assert_folds(trained, torch.randn(1, 3, 224, 224), onnx=True)

A failure is a failed test with the verifier's report as its message, without a traceback into bnfold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from bnfold.errors import BnfoldError, NotEquivalentError

if TYPE_CHECKING:
    from torch import nn

    from bnfold.fold.api import Folding

__all__ = ["AssertEquivalent", "AssertFolds", "assert_equivalent", "assert_folds"]


class AssertEquivalent(Protocol):
    """What the fixture ``assert_equivalent`` is."""

    def __call__(
        self, original: Any, candidate: Any, example_inputs: Any, *, onnx: bool = False, seed: int = 0
    ) -> None:
        """Fail the test unless the two compute the same function."""


class AssertFolds(Protocol):
    """What the fixture ``assert_folds`` is."""

    def __call__(
        self, model: nn.Module, example_inputs: Any, *, keep: Iterable[str] = (), onnx: bool = False, seed: int = 0
    ) -> Folding:
        """Fold, and fail the test unless every BatchNorm but those kept folds and the result is equivalent."""


@pytest.fixture
def assert_equivalent() -> AssertEquivalent:
    """Return :func:`bnfold.assert_equivalent`, with failures reported as pytest does its own."""

    def check(original: Any, candidate: Any, example_inputs: Any, *, onnx: bool = False, seed: int = 0) -> None:
        __tracebackhide__ = True
        from bnfold.verify import assert_equivalent

        try:
            assert_equivalent(original, candidate, example_inputs, onnx=onnx, seed=seed)
        except NotEquivalentError as error:
            pytest.fail(str(error), pytrace=False)

    return check


@pytest.fixture
def assert_folds() -> AssertFolds:
    """Return a function that folds a model and fails the test where a BatchNorm stays or the function changes."""

    def check(
        model: nn.Module, example_inputs: Any, *, keep: Iterable[str] = (), onnx: bool = False, seed: int = 0
    ) -> Folding:
        __tracebackhide__ = True
        from bnfold.fold.api import fold
        from bnfold.verify import verify

        kept = (keep,) if isinstance(keep, str) else tuple(keep)
        try:
            folding = fold(model, example_inputs, keep=kept)
            report = verify(model, folding.module, example_inputs, onnx=onnx, seed=seed, folding=folding)
        except BnfoldError as error:
            pytest.fail(str(error), pytrace=False)
        if not report.passed:
            pytest.fail(str(report), pytrace=False)
        stayed = [d for d in folding.plan if d.action != "fold" and d.batchnorm not in kept]
        if stayed:
            pytest.fail("\n".join(f"{d.batchnorm} did not fold: {d.detail}" for d in stayed), pytrace=False)
        return folding

    return check
