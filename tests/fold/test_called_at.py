"""The line that is told of a BatchNorm is the model's own, where a line of a layer library would be all layers'."""

from __future__ import annotations

import inspect
import os
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.capture.lines import place_of
from bnfold.fold.called_at import called_at
from tests.report.samples import decision


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return y.relu()


class ConvNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # in the block


class Model(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.third = layer(3), layer(3), layer(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)  # first
        x = self.second(x)  # second
        return self.third(x)  # third


def line_of(words: str, where: type = Model) -> int:
    lines, start = inspect.getsourcelines(where)
    return start + next(number for number, line in enumerate(lines) if line.rstrip().endswith(f"# {words}"))


def lines_told(model: nn.Module, way: str) -> list[str]:
    plan = bnfold.plan(model.eval(), torch.zeros(2, 3, 4, 4), capture=way)
    return [(decision.source or "").rpartition("/")[2] for decision in plan]


@pytest.mark.parametrize("way", ["recorded", "export"])
@pytest.mark.parametrize("layer", [NormAct, ConvNorm])
def test_the_models_line_is_told_and_not_the_one_in_the_layer(layer: type[nn.Module], way: str) -> None:
    expected = [f"test_called_at.py:{line_of(name)}" for name in ("first", "second", "third")]
    assert lines_told(Model(layer), way) == expected


def test_the_only_layer_of_a_kind_tells_the_line_of_its_block() -> None:
    assert lines_told(ConvNorm(3), "recorded") == [f"test_called_at.py:{line_of('in the block', ConvNorm)}"]


def test_a_line_that_all_share_stays_where_the_next_is_shared_too() -> None:
    body = nn.Sequential(ConvNorm(3), ConvNorm(3), ConvNorm(3))
    told = set(lines_told(body, "recorded"))
    assert told == {f"test_called_at.py:{line_of('in the block', ConvNorm)}"}


def test_a_line_that_some_share_stays() -> None:
    every = [decision(f"bn{n}", site=f"bn{n}") for n in range(6)]
    chains = {f"bn{n}": ("block.py:1" if n < 3 else "block.py:2", f"net.py:{n}") for n in range(6)}
    assert [d.source for d in called_at(every, chains)] == ["block.py:1"] * 3 + ["block.py:2"] * 3


def test_a_decision_without_lines_keeps_what_it_has() -> None:
    assert called_at([decision(source="net.py:3")], {})[0].source == "net.py:3"


def test_a_place_is_told_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of(str(tmp_path / "nets" / "small.py")) == "nets/small.py"


def test_elsewhere_it_is_the_file_in_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "home" / "alice" / "zoo" / "nets"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert place_of(str(package / "small.py")) == "zoo/nets/small.py"
    assert place_of(str(tmp_path / "home" / "alone.py")) == "alone.py"


def test_an_installed_package_is_told_without_the_folder_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sysconfig.get_path("purelib")
    monkeypatch.chdir(sysconfig.get_path("data"))  # the environment lies below the working folder
    assert place_of(os.path.join(folder, "timm", "layers", "norm_act.py")) == "timm/layers/norm_act.py"
