"""``bnfold bench``: the table, the JSON, the reports, and how it ends."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.cli.conftest import CODE, Run

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")  # each measurement collects garbage before
QUICK = ("--target", "eager", "--seconds", "0", "--threads", "1")


def test_the_table_shows_both_models_the_machine_and_the_plan(run: Run, seed_file: Path) -> None:
    result = run("bench", seed_file, *CODE, *QUICK)
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "target batch original min … max folded min … max speedup 95 % interval" in text
    assert "torch eager 1 " in text
    assert "1 thread of" in text
    assert "wall time; 15 rounds" in text
    assert "1 BatchNorm: 1 folded, 0 explicit affine, 0 kept" in text
    assert sorted(seed_file.parent.iterdir()) == [seed_file]


def test_batches_and_targets_may_be_several(run: Run, seed_file: Path) -> None:
    result = run("bench", seed_file, *CODE, *QUICK, "--target", "channels-last", "--batch", 1, "--batch", 4, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["bench"]
    assert [(timing["target"], timing["batch"]) for timing in found["timings"]] == [("eager", 1), ("eager", 4)]
    # its `view` takes no channels_last
    assert [(skip["target"], skip["batch"]) for skip in found["skipped"]] == [
        ("channels-last", 1),
        ("channels-last", 4),
    ]


def test_json_alone_stands_on_stdout_with_the_keys_of_every_report(run: Run, seed_file: Path) -> None:
    result = run("bench", seed_file, *CODE, *QUICK, "--cpu-time", "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert data["schema"] == 1
    assert data["command"] == "bench"
    assert data["outcome"] == "measured"
    assert data["summary"] == {"fold": 1, "affine": 0, "keep": 0}
    assert data["bench"]["clock"] == "cpu"
    assert data["bench"]["threads"] == 1
    assert data["seconds"]["measure"] > 0
    assert "torch eager" in result.err  # the table, for who looks on


def test_the_batch_of_a_shape_that_is_given_is_measured(run: Run, seed_file: Path) -> None:
    result = run("bench", seed_file, *CODE, *QUICK, "--input-shape", "3,1,28,28", "--json")
    assert [timing["batch"] for timing in json.loads(result.out)["bench"]["timings"]] == [3]


def test_reports_are_written_in_their_formats(run: Run, seed_file: Path) -> None:
    result = run("bench", seed_file, *CODE, *QUICK, "--report", "r.json", "--report", "r.md", "--report", "r.xml")
    assert result.code == 0, result.err
    assert json.loads(Path("r.json").read_text())["bench"]["timings"][0]["target"] == "eager"
    markdown = Path("r.md").read_text(encoding="utf-8")
    assert "| torch eager | 1 |" in markdown
    assert "wrote r.xml" in result.out
    assert "1 thread of" in markdown
    assert 'classname="bnfold.bench" name="torch eager batch 1"' in Path("r.xml").read_text(encoding="utf-8")


def test_what_cannot_be_measured_is_told(run: Run, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(), "model.pt")
    result = run("bench", "model.pt", *QUICK, "--target", "channels-last")
    assert result.code == 0, result.err
    assert "torch eager, channels_last was not measured: channels_last is a format of images" in result.out
    assert "torch eager 1" in " ".join(result.out.split())


def test_two_different_functions_are_warned_of(run: Run, seed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = importlib.import_module("bnfold.fold.api")
    real = api.fold

    def wrong(*args: Any, **kwargs: Any) -> Any:
        folding = real(*args, **kwargs)
        with torch.no_grad():
            next(folding.module.parameters()).mul_(1.5)
        return folding

    monkeypatch.setattr(api, "fold", wrong)
    result = run("bench", seed_file, *CODE, *QUICK)
    assert "times of two different functions" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--batch", "0"), 2, "0 is not in the range"),
        (("--threads", "0"), 2, "0 is not in the range"),
        (("--seconds", "-1"), 2, "-1.0 is not in the range"),
        (("--target", "gpu"), 2, "'gpu' is not one of"),
        (("--report", "r.pdf"), 2, "names no format"),
        (("--input-shape", "2,7"), 2, "does not run on these inputs"),
        (("--keep", "bn7"), 2, "no BatchNorm named 'bn7'"),
    ],
)
def test_a_mistake_exits_2_and_says_what_it_is(
    run: Run, seed_file: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = run("bench", seed_file, *CODE, *QUICK, *arguments)
    assert result.code == code
    assert said in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_a_file_that_is_not_there_exits_5(run: Run) -> None:
    result = run("bench", "none.pt")
    assert result.code == 5
    assert "none.pt" in result.err
