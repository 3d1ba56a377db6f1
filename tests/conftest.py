"""What all tests share: a quiet torch, hypothesis profiles, and long tests left out unless asked for."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors on shared cores: more threads only wait for each other
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that a test starts compiles torch anew: 2 to 5 s

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that `from tests.networks import ...` works however pytest was started
    sys.path.insert(0, str(ROOT))

torch.set_num_threads(1)
gc.set_threshold(10_000, 10, 100)  # a search through all of torch and onnx takes half a second; a test leaves little
settings.register_profile(
    "default", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", parent=settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure() -> None:
    """Take signals as a shell in the foreground would, and the width of a pipe.

    Who runs tests in the background has some signals ignored, and who runs them in parallel sets a width.
    """
    os.environ.pop("COLUMNS", None)
    for name, usual in (
        ("SIGINT", signal.default_int_handler),
        ("SIGHUP", signal.SIG_DFL),
        ("SIGTERM", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests, unless ``--long`` or ``-m long`` asks for them."""
    if config.getoption("--long") or "long" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def _a_torch_left_as_found() -> Iterator[None]:
    """Seed torch for each test, and put back its global switches."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed also queues a seed for each GPU not yet in use
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)


@pytest.fixture(autouse=True)
def _one_table_of_onnx_operators() -> None:
    """Let torch's ONNX exporter make its tables of operators once: it does so for each export, in most of its time."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")  # there once something was exported
    read = getattr(getattr(exporter, "ONNXRegistry", None), "from_torchlib", None)
    if exporter is None or read is None or hasattr(read, "cache_info"):
        return
    exporter.ONNXRegistry.from_torchlib = staticmethod(functools.cache(read))
    for place in map(sys.modules.get, ("torch.export.exported_program", "torch.export.decomp_utils")):
        for name in ("_collect_all_valid_cia_ops", "autograd_not_implemented"):
            if hasattr(place, name):
                setattr(place, name, functools.cache(getattr(place, name)))
    if hasattr(torch._ops, "Callable"):  # an annotation that is evaluated thousands of times; typing has it cached
        torch._ops.Callable = typing.Callable


@pytest.fixture
def modules_are_no_garbage() -> Iterator[None]:
    """Leave what is there out of searches for garbage: with torch and onnx in it, each takes half a second.

    Only for tests that do little else: bnfold itself looks through what ``gc`` knows of, for functions and caches.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT
