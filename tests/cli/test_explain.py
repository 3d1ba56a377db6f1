"""``bnfold explain``: the decisions, and one layer's equation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.conftest import CODE, Run
from tests.networks import seed_network


def test_without_a_name_the_decision_for_each_batchnorm_is_told_and_nothing_written(run: Run, seed_file: Path) -> None:
    result = run("explain", seed_file, *CODE)
    assert result.code == 0, result.err
    assert "bn1 folded backward conv1 pool" in " ".join(result.out.split())
    assert sorted(seed_file.parent.iterdir()) == [seed_file]


def test_why_one_would_not_fold_is_told(run: Run, negative_file: Path) -> None:
    result = run("explain", negative_file, *CODE)
    assert result.code == 0, result.err
    assert "1 of 32 scales is negative" in result.out


def test_a_name_gets_its_equation_its_numbers_and_the_ways_of_writing_it(run: Run, seed_file: Path) -> None:
    result = run("explain", seed_file, "bn1", *CODE)
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "y = (x - running_mean[c]) / sqrt(running_var[c] + eps) * weight[c] + bias[c]" in text
    assert f"{seed_network().bn1.running_mean[0].item():.7g}" in text
    assert "biased_variance(batch)" in text
    assert "fma(x, alpha, beta) 0 0 0 0.0% the layer's own way" in text
    assert "w * (x - m) / sqrt(v + eps) + b" in text


def test_a_name_gets_its_chain_and_its_scales_drawn(run: Run, seed_file: Path) -> None:
    lines = run("explain", seed_file, "bn1", *CODE).out.splitlines()
    assert [line.split()[0] for line in lines if any(joint in line for joint in ("<┐", " │ ", "─┘"))][:3] == [
        "conv1",
        "pool",
        "bn1",
    ]
    start = next(number for number, line in enumerate(lines) if line.startswith("The 32 scales, from "))
    assert "█" in lines[start + 1]


@pytest.mark.parametrize(("name", "said"), [("bn2", "Did you mean `bn1`?"), ("zzzzzz", "There are `bn1`.")])
def test_a_wrong_name_exits_2_with_the_names_that_are(run: Run, seed_file: Path, name: str, said: str) -> None:
    result = run("explain", seed_file, name, *CODE)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


def test_a_layer_that_uses_its_batch_has_no_equation(run: Run, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval(), "model.pt")
    result = run("explain", "model.pt", "1")
    assert result.code == 2
    assert "uses the mean and variance of each batch" in result.err


def test_a_model_without_batchnorms_has_none(run: Run, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3)).eval(), "model.pt")
    result = run("explain", "model.pt")
    assert result.code == 0, result.err
    assert "0 BatchNorms" in result.out
    assert run("explain", "model.pt", "bn1").code == 2


def test_a_batchnorm_written_as_a_function_is_told_by_its_node(run: Run, tmp_path: Path) -> None:
    (tmp_path / "functional.py").write_text(
        "import torch\n"
        "import torch.nn.functional as F\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(1, 2, 3)\n"
        "        self.register_buffer('mean', torch.ones(2))\n"
        "        self.register_buffer('var', torch.full((2,), 2.0))\n"
        "    def forward(self, x):\n"
        "        return F.batch_norm(self.conv(x), self.mean, self.var)\n"
    )
    plain = run("explain", "functional.py:Net", "--report", "-")
    assert plain.code == 0, plain.err
    name = json.loads(plain.out)["batchnorms"][0]["batchnorm"]
    result = run("explain", "functional.py:Net", name)
    assert result.code == 0, result.err
    assert "conv" in result.out


def test_no_report_is_left_where_the_name_is_wrong(run: Run, seed_file: Path) -> None:
    assert run("explain", seed_file, "bn7", *CODE, "--report", "plan.json").code == 2
    assert not Path("plan.json").exists()


def test_a_report_of_the_plan_is_written(run: Run, seed_file: Path) -> None:
    result = run("explain", seed_file, *CODE, "--report", "plan.json")
    assert result.code == 0, result.err
    assert "wrote plan.json" in result.out
    data = json.loads(Path("plan.json").read_text())
    assert data["summary"] == {"fold": 1, "affine": 0, "keep": 0}
    assert data["verification"] is None


@pytest.mark.parametrize("command", ["fold", "explain"])
def test_a_model_without_a_batchnorm_is_told_so_first_of_all(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()\n"
    )
    result = run(command, "net.py:make", "--input-shape", "2,3,8,8")
    assert result.code == 0, result.err
    assert result.err.splitlines()[0] == "note: The model holds no BatchNorm: there is nothing to fold."
