"""A pytest plugin: models fold, stay equivalent, and leave no more explicit affines than a lock file records.

pytest loads it by itself where bnfold is installed (``-p no:bnfold.testing`` leaves it out). In a test::

    def test_the_deployed_model_is_the_trained_one(assert_equivalent):
        assert_equivalent(trained, deployed, torch.randn(1, 3, 224, 224))

    @pytest.mark.bnfold(onnx=True)
    def test_every_batchnorm_folds(assert_folds):
        folding = assert_folds(trained, torch.randn(1, 3, 224, 224))

A failure is a failed test with the verifier's report as its message, without a traceback into bnfold. The BatchNorms
that may stay stand in ``bnfold.lock`` (:mod:`bnfold.testing.lock`); ``pytest --bnfold-update`` rewrites it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from bnfold.errors import BnfoldError, NotEquivalentError
from bnfold.testing.lock import Lock

if TYPE_CHECKING:
    from torch import nn

    from bnfold.fold.api import Folding

__all__ = ["AssertEquivalent", "AssertFolds", "assert_equivalent", "assert_folds"]

_LOCK: pytest.StashKey[Lock] = pytest.StashKey()
_OPTIONS = frozenset(("keep", "merge", "onnx", "seed", "witnesses"))
_SENT = "bnfold_lock"  # what a worker of pytest-xdist sends to the process that started it


class AssertEquivalent(Protocol):
    """What the fixture ``assert_equivalent`` is."""

    def __call__(
        self,
        original: Any,
        candidate: Any,
        example_inputs: Any,
        *,
        onnx: bool = False,
        seed: int = 0,
        witnesses: Sequence[str] = (),
    ) -> None:
        """Fail the test unless the two compute the same function."""


class AssertFolds(Protocol):
    """What the fixture ``assert_folds`` is."""

    def __call__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        keep: Iterable[str] = (),
        merge: bool = False,
        onnx: bool = False,
        seed: int = 0,
        witnesses: Sequence[str] = (),
        name: str = "",
    ) -> Folding:
        """Fold, and fail the test unless the result is equivalent and every BatchNorm folds but those that may stay.

        Those kept may stay, and those that the lock file records under the test (and ``name``, where one test folds
        several models). The marker ``bnfold`` gives other defaults: ``@pytest.mark.bnfold(onnx=True)``.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bnfold-update`` and the ini option ``bnfold_lock``."""
    group = parser.getgroup("bnfold")
    group.addoption(
        "--bnfold-update",
        action="store_true",
        help="write down which BatchNorms do not fold in the tests that run, instead of failing for those",
    )
    parser.addini(
        "bnfold_lock", "lock file of the BatchNorms that may stay, from the root folder", default="bnfold.lock"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the lock file, and make the marker known."""
    config.addinivalue_line(
        "markers",
        "bnfold(keep=(), merge=False, onnx=False, seed=0, witnesses=()): a model folds; defaults for assert_folds",
    )
    path = Path(config.rootpath, config.getini("bnfold_lock"))
    try:
        config.stash[_LOCK] = Lock.read(path, update=config.getoption("bnfold_update", default=False))
    except BnfoldError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the lock file, or send what belongs in it to the process that does."""
    lock = session.config.stash.get(_LOCK, None)
    if lock is None or not lock.update:
        return
    sent = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent[_SENT] = lock.found
    else:
        lock.write()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of pytest-xdist found."""
    node.config.stash[_LOCK].found.update(getattr(node, "workeroutput", {}).get(_SENT, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what became of the lock file."""
    for line in config.stash[_LOCK].told():
        terminalreporter.write_line(f"bnfold: {line}")


@pytest.fixture
def assert_equivalent() -> AssertEquivalent:
    """Return :func:`bnfold.assert_equivalent`, with failures reported as pytest does its own."""

    def check(original: Any, candidate: Any, example_inputs: Any, **options: Any) -> None:
        __tracebackhide__ = True
        from bnfold.verify import assert_equivalent

        try:
            assert_equivalent(original, candidate, example_inputs, **options)
        except NotEquivalentError as error:
            pytest.fail(str(error), pytrace=False)

    return check


@pytest.fixture
def assert_folds(request: pytest.FixtureRequest) -> AssertFolds:
    """Return a function that folds a model and fails the test where a BatchNorm stays or the function changes."""
    lock, marked = request.config.stash[_LOCK], _marked(request)

    def check(model: nn.Module, example_inputs: Any, *, name: str = "", **options: Any) -> Folding:
        __tracebackhide__ = True
        from bnfold.fold.api import fold
        from bnfold.verify import verify

        told = marked | options
        keep = told.pop("keep", ())
        kept = (keep,) if isinstance(keep, str) else tuple(keep)
        onnx = told.pop("onnx", False)
        try:
            folding = fold(model, example_inputs, keep=kept, merge=told.pop("merge", False))
            report = verify(model, folding.module, example_inputs, onnx=onnx, folding=folding, **told)
        except BnfoldError as error:
            pytest.fail(str(error), pytrace=False)
        if not report.passed:
            pytest.fail(str(report), pytrace=False)
        problem = lock.check(" ".join(filter(None, (request.node.nodeid, name))), folding.plan, kept)
        if problem:
            pytest.fail(problem, pytrace=False)
        return folding

    return check


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of the test's markers, the nearest first."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("bnfold"))):
        unknown = marker.kwargs.keys() - _OPTIONS
        if marker.args or unknown:
            what = ", ".join(sorted(unknown)) or "positional arguments"
            pytest.fail(f"The marker bnfold takes {', '.join(sorted(_OPTIONS))}; not {what}.", pytrace=False)
        options |= marker.kwargs
    return options
