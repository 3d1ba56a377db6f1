"""Four tiny models of timm through the whole check; skipped where timm and torchvision are not installed."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import shim, zoo, zoo_check
from benchmarks.zoo_build import Subject, build
from benchmarks.zoo_check import check
from benchmarks.zoo_list import Entry, read_list
from benchmarks.zoo_summary import read_checks
from bnfold.batch.manifest import read_manifest
from bnfold.files.code import looks_like_spec

needs_timm = pytest.mark.skipif(
    not shim.available("timm"), reason="timm and torchvision are not installed: benchmarks/shim.py says how"
)
ENTRIES = {entry.key: entry for entry in read_list()}


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    if shim.available("timm"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shim.load("timm")


@needs_timm
@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_efficientnet", "test_coatnet"])
def test_a_tiny_model_of_timm_folds_completely_and_is_equivalent(name: str) -> None:
    record = check(ENTRIES[f"timm/{name}"])
    assert record["outcome"] == "equivalent", record.get("message")
    assert record["error"]["float64"] <= 1e-11
    assert record["calls"] == record["batchnorms"] == record["actions"]["fold"]
    assert record["left"] == 0
    assert record["unseen"] == []


@needs_timm
def test_a_model_is_built_with_numbers_that_hide_nothing_and_twice_the_same() -> None:
    first, second = (build(ENTRIES["timm/test_resnet"], seed=3) for _ in range(2))
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    layers = [layer for layer in first.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    scales = torch.cat([layer.weight for layer in layers])
    assert 0.2 < float((scales < 0).double().mean()) < 0.5
    assert bool((scales.abs() < 1e-3).any())
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert not bool((layer.running_mean == 0).any())
        assert float(layer.running_var.min()) > 0
    assert not first.model.training
    assert first.shape == (3, 64, 64)


@needs_timm
def test_an_input_at_which_some_batch_norms_are_not_seen_gives_way_to_a_larger_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blind_below_100(subject: Subject, record: dict[str, Any], **_options: bool) -> None:
        record |= {"outcome": "equivalent", "unseen": ["bn1"] if subject.shape[-1] < 100 else []}

    monkeypatch.setattr(zoo_check, "examine", blind_below_100)
    record = check(ENTRIES["timm/test_resnet"])
    assert (record["shape"], record["unseen"]) == ([3, 128, 128], [])


@needs_timm
def test_a_run_writes_one_line_per_model_and_does_not_repeat_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["timm/test_resnet", "--output", str(tmp_path)]
    assert zoo.main(arguments) == 0
    assert zoo.main(arguments) == 0
    assert "1 of 1 models are done already" in capsys.readouterr().err
    (record,) = read_checks(tmp_path / "results.jsonl").values()
    assert (record["model"], record["outcome"]) == ("test_resnet", "equivalent")
    assert zoo.main(["--summary", str(tmp_path / "results.jsonl")]) == 0
    assert "| timm | 1 | 1 | 1 | 0 |" in capsys.readouterr().out


def test_the_list_holds_the_820_models_and_every_family_is_named() -> None:
    entries = [entry for entry in read_list() if not entry.builder]
    assert len(entries) == len({entry.key for entry in entries}) == 820
    assert sum(entry.batchnorms for entry in entries) == 61_910
    assert all(entry.family for entry in entries)


def test_every_client_says_how_it_is_built_at_which_shape_and_that_it_holds_batch_norms() -> None:
    clients = [entry for entry in read_list() if entry.builder]
    assert 110 <= len(clients) == len({entry.key for entry in clients})
    assert len({entry.library for entry in clients}) >= 7
    for entry in clients:
        module, _, expression = entry.builder.partition(":")
        assert module.split(".")[0] == entry.library, entry.key
        compile(expression, entry.key, "eval")
        assert entry.batchnorms > 0, entry.key
        assert len(entry.shape) >= 2, entry.key
        assert len(entry.other) in (0, len(entry.shape)), entry.key
        assert entry.other != entry.shape, entry.key


class _OfALibrary(nn.Module):
    """A network as a client library may have it: a second input, a dictionary for an output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.bn(self.conv(x)), "lengths": lengths}


def _client(monkeypatch: pytest.MonkeyPatch, builder: str) -> Entry:
    library = ModuleType("a_client_library")
    vars(library).update(nn=nn, Network=_OfALibrary)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.setattr(shim, "load", lambda library: None)
    more = "torch.full((len(x),), x.shape[2]),"
    return Entry(library.__name__, "none", "none", 0, 1, ("BatchNorm2d",), (3, 16, 12), True, builder, more)


def test_a_client_is_built_by_its_expression_and_gets_the_inputs_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    record = check(_client(monkeypatch, "a_client_library:Network(channels=8)"))
    assert record["outcome"] == "equivalent", record.get("message")
    assert (record["shape"], record["calls"], record["capture"]) == ([3, 16, 12], 1, "recorded")
    assert (record["batch_free"], record["size_free"]) == (True, True)
    assert record["export_seconds"] > 0


def test_a_client_that_cannot_be_built_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    record = check(_client(monkeypatch, "a_client_library:Network(no_such=8)"))
    assert (record["outcome"], record["stage"]) == ("build-failed", "build")
    assert "no_such" in record["message"]


def test_without_the_libraries_a_run_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shim, "available", lambda library: library != "timm")
    assert zoo.main(["test_resnet", "--output", str(tmp_path / "zoo.jsonl")]) == 2
    assert "timm cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no_such_model"], "no model of the zoo is like that"), (["--shard", "5/4"], "'5/4' is not a shard")],
)
def test_a_selection_that_cannot_be_is_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_list_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["--library", "torchvision", "--family", "vgg", "--max-params", "133e6", "--list"]) == 0
    (line, *_) = capsys.readouterr().out.splitlines()
    assert line.split()[:3] == ["torchvision/vgg11_bn", "vgg", "132.87"]


def test_the_manifest_names_every_model_by_a_spec_with_the_memory_that_it_needs(tmp_path: Path) -> None:
    zoo.write_manifest(tmp_path / "manifest.jsonl", list(ENTRIES.values()))
    jobs = read_manifest(tmp_path / "manifest.jsonl", tmp_path / "out")
    assert [job.name for job in jobs] == list(ENTRIES)
    assert len({job.arguments[0] for job in jobs}) == len(jobs)
    assert all(looks_like_spec(job.arguments[0]) for job in jobs)
    assert min(job.memory or 0 for job in jobs) > 1 << 30


def test_the_operators_that_stand_in_for_torchvisions_suppress_boxes() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 5]], dtype=torch.float32)
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7])
    # 1 overlaps 0 by 81 of 119 and 3 by 36 of 114; 3 overlaps 0 by 50 of 100
    assert shim._nms(boxes, scores, 0.6).tolist() == [1, 3, 2]
    assert shim._nms(boxes, scores, 0.7).tolist() == [1, 3, 0, 2]
    assert shim._nms(boxes, scores, 0.3).tolist() == [1, 2]
    assert shim._nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_a_library_that_is_not_there_is_not_available() -> None:
    assert not shim.available("no_such_library")


def test_every_entry_knows_its_key() -> None:
    entry = Entry("timm", "resnet", "resnet18", 11_689_512, 20, ("BatchNorm2d",), (3, 224, 224), True)
    assert ENTRIES["timm/resnet18"] == entry
    assert entry.key == "timm/resnet18"
