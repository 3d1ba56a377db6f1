"""Fixtures for loading: a file of code, and files saved as if from elsewhere."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.files.nets import NET, make_net


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "nets_for_load.py"
    path.write_text(NET)
    return path


@pytest.fixture
def save_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Path, nn.Module]]:
    """Save a Net as if from a script or module of the given name."""

    def save(module_name: str) -> tuple[Path, nn.Module]:
        module, net = make_net(module_name)
        with monkeypatch.context() as patch:
            parents = module_name.split(".")[:-1]
            for depth in range(len(parents)):
                parent = ".".join(parents[: depth + 1])
                patch.setitem(sys.modules, parent, types.ModuleType(parent))
            patch.setitem(sys.modules, module_name, module)
            torch.save(net, tmp_path / "model.pt")
        return tmp_path / "model.pt", net

    return save
