"""Model files, and a command line that runs in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bnfold.cli import main
from tests.networks import seed_network, seed_network_negative

ROOT = Path(__file__).resolve().parents[2]
CODE = ("--code", str(ROOT / "examples" / "seed_network.py"))


@dataclass(frozen=True)
class Result:
    """What a run of the command line did."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``bnfold`` with the arguments given, in an empty folder, not in a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def bnfold(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return bnfold


@pytest.fixture
def seed_file(tmp_path: Path) -> Path:
    """The seed network, pickled whole; its BatchNorm folds."""
    torch.save(seed_network(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def negative_file(tmp_path: Path) -> Path:
    """The seed network with one negative scale; its BatchNorm becomes an explicit affine."""
    torch.save(seed_network_negative(), tmp_path / "negative.pt")
    return tmp_path / "negative.pt"
