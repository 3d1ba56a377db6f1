"""What works on this machine: each package's version, and each thing that bnfold does, tried on a tiny network.

Nothing here is trusted to be there: a check that fails, in whatever way, is a row of the result and no error.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bnfold._version import __version__
from bnfold.errors import BnfoldError, first_line

__all__ = ["OPTIONAL", "PACKAGES", "Check", "Doctor", "Package", "examine"]

PACKAGES = {
    "torch": "2.6",
    "onnx": "1.21",
    "onnxruntime": "1.23",
    "onnxscript": "0.6",
    "numpy": "1.26",
    "safetensors": "0.5",
    "click": "8.1",
    "rich": "13.9",
    "jinja2": "3.1",
    "markupsafe": "2.1",
    "pebble": "5.1",
    "psutil": "7",
}
"""What bnfold needs, and the first version that it works with; the same as in pyproject.toml."""

OPTIONAL = {"torchvision": "models by name", "timm": "models by name", "scikit-learn": "`make demo`"}
"""What only some uses need, and which."""

_OLDEST_PYTHON = (3, 10)


@dataclass(frozen=True)
class Package:
    """One package: its version, or None where it is not installed, and what helps where it is not good enough."""

    name: str
    version: str | None
    oldest: str | None
    needed: bool
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that bnfold does.

    Attributes:
        name: what was tried.
        works: whether it did.
        needed: whether bnfold is of little use without it.
        seconds: how long it took.
        detail: what was found, or what went wrong.
        fix: what helps, where it does not work.
    """

    name: str
    works: bool
    needed: bool
    seconds: float
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Doctor:
    """All that was found."""

    packages: tuple[Package, ...]
    checks: tuple[Check, ...]

    @property
    def well(self) -> bool:
        """Whether all that is needed works."""
        return not any(package.needed and package.fix for package in self.packages) and all(
            check.works or not check.needed for check in self.checks
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        return {
            "schema": 1,
            "bnfold": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "well": self.well,
            "packages": [asdict(package) for package in self.packages],
            "checks": [asdict(check) for check in self.checks],
        }


def examine(progress: Callable[[str, float], None] = lambda _sentence, _done: None) -> Doctor:
    """Try everything.

    Args:
        progress: is told what is being tried, and how far it is from 0 to 1.
    """
    packages = [_package(name, oldest, needed=True) for name, oldest in PACKAGES.items()]
    packages += [_package(name, None, needed=False) for name in OPTIONAL]
    found: dict[str, Any] = {}
    checks = []
    for number, (name, try_it, needed, fix) in enumerate(_CHECKS):
        progress(name, number / len(_CHECKS))
        checks.append(_tried(name, try_it, found, needed=needed, fix=fix))
    return Doctor(tuple(packages), tuple(checks))


def _package(name: str, oldest: str | None, *, needed: bool) -> Package:
    try:
        version: str | None = metadata.version(name)
    except Exception:  # not installed, or its record is damaged
        version = None
    if version is None:
        return Package(name, None, oldest, needed, f"Run `pip install {name}`.")
    if oldest is not None and _numbers(version) < _numbers(oldest):
        return Package(name, version, oldest, needed, f"Run `pip install --upgrade {name}`.")
    return Package(name, version, oldest, needed)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _tried(
    name: str, try_it: Callable[[dict[str, Any]], str], found: dict[str, Any], *, needed: bool, fix: str
) -> Check:
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detail, works = try_it(found), True
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        detail, works, fix = f"the package {package} is not installed", False, f"Run `pip install {package}`."
    except KeyError as error:
        detail, works, fix = f"not tried: it needs {error.args[0]}", False, "See the row above."
    except BnfoldError as error:
        detail, works, fix = error.what, False, error.fix
    except Exception as error:
        detail, works = first_line(error, typed=True), False
    return Check(name, works, needed, time.perf_counter() - begin, detail, "" if works else fix)


def _python(_found: dict[str, Any]) -> str:
    if sys.version_info < _OLDEST_PYTHON:
        raise RuntimeError(f"Python {platform.python_version()} is too old")
    return f"Python {platform.python_version()}"


def _torch(found: dict[str, Any]) -> str:
    torch = found["torch"] = importlib.import_module("torch")
    torch.ones(2, 2) @ torch.ones(2, 2)
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def _fold(found: dict[str, Any]) -> str:
    torch = found["torch"]
    from bnfold.fold.api import fold

    nn, generator = torch.nn, torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU()).eval()
    for tensor in (model[2].running_mean, model[2].running_var, model[2].weight.data, model[2].bias.data):
        tensor.uniform_(0.5, 2.0, generator=generator)
    inputs = torch.randn(2, 2, 8, 8, generator=generator)
    folding = fold(model, inputs, capture="recorded")
    with torch.no_grad():
        wanted = model(inputs)
        error = float((folding.module(inputs) - wanted).abs().max())
    if folding.plan.summary["fold"] != 1 or not error < 1e-5:
        raise RuntimeError(f"the folded network is off by {error:.1e}")
    found |= {"folding": folding.module, "model": model, "inputs": inputs, "wanted": wanted}
    return "a BatchNorm behind a max pool folded"


def _torch_export(found: dict[str, Any]) -> str:
    model, inputs = found["model"], found["inputs"]
    from bnfold.fold.api import fold

    if fold(model, inputs, capture="export").plan.summary["fold"] != 1:
        raise RuntimeError("the BatchNorm did not fold")
    return "for models whose run cannot be recorded"


def _program(found: dict[str, Any]) -> str:
    import io

    folding, inputs, wanted = found["folding"], found["inputs"], found["wanted"]
    from bnfold.export import to_program
    from bnfold.files.programs import module_of_program

    buffer = io.BytesIO()
    found["torch"].export.save(to_program(folding, inputs), buffer)
    buffer.seek(0)
    _same(module_of_program(buffer)(inputs), wanted)
    return f"written and loaded, {len(buffer.getvalue()):,} bytes"


def _onnx(found: dict[str, Any]) -> str:
    folding, inputs = found["folding"], found["inputs"]
    from bnfold.export import to_onnx

    model = found["ONNX export"] = to_onnx(folding, inputs)
    return f"opset {model.opset_import[0].version}, {len(model.graph.node)} nodes"


def _onnxruntime(found: dict[str, Any]) -> str:
    model, inputs, wanted = found["ONNX export"], found["inputs"], found["wanted"]
    from bnfold.verify.runtime import OrtModel

    _same(OrtModel(model, "off")(inputs)[0], wanted)
    _same(OrtModel(model, "full")(inputs)[0], wanted)
    return "the exported network computes the same"


def _weights(found: dict[str, Any]) -> str:
    folding = found["folding"]
    import safetensors.torch

    tensors = safetensors.torch.load(safetensors.torch.save(folding.state_dict()))
    return f"{len(tensors)} tensors written and loaded"


def _writing(_found: dict[str, Any]) -> str:
    from bnfold.files.destinations import check_folders

    check_folders([Path("model.onnx")])
    return "the current folder can be written to"


def _same(found: Any, wanted: Any) -> None:
    error = float((found - wanted).abs().max())
    if not error < 1e-5:
        raise RuntimeError(f"it computes something else, off by {error:.1e}")


_ONNX_FIX = "Without it, `-o model.pt2` still works."
_CHECKS: tuple[tuple[str, Callable[[dict[str, Any]], str], bool, str], ...] = (
    ("Python", _python, True, "Install Python 3.10 or newer."),
    ("torch", _torch, True, "Install torch again: its own libraries do not load."),
    ("fold", _fold, True, "Please report this with the lines above."),
    ("torch.export", _torch_export, True, "Please report this with the lines above."),
    ("writing .pt2", _program, True, "Please report this with the lines above."),
    ("ONNX export", _onnx, True, _ONNX_FIX),
    ("ONNX Runtime", _onnxruntime, True, _ONNX_FIX),
    ("writing .safetensors", _weights, True, "Without it, `-o model.pt2` still works."),
    ("this folder", _writing, False, "Give -o a path elsewhere."),
)
