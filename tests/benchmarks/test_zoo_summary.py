"""The file of records and the tables made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo_summary import read_checks, summary

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def record(model: str, outcome: str = "equivalent", **more: Any) -> dict[str, Any]:
    return {"library": "timm", "model": model, "family": model[:3], "batchnorms": 10, "outcome": outcome, **more}


def folded(model: str, fold: int, affine: int, **more: Any) -> dict[str, Any]:
    return record(
        model,
        capture="symbolic",
        calls=fold + affine,
        actions={"fold": fold, "affine": affine, "keep": 0},
        directions={"backward": fold - 1, "forward": 1},
        reasons={"several-readers": affine} if affine else {},
        kept={},
        left=0,
        error={"algebra": 1e-15, "float64": 2e-15, "original32": 1e-6, "folded32": 2e-6},
        seconds={"fold": 0.5},
        unseen=[],
        **more,
    )


def latest(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{each['library']}/{each['model']}": each for each in records}


def test_checks_are_read_from_both_kinds_of_file_the_last_of_a_model_and_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    batch = {"name": "timm/c", "seconds": 9.0, "peak_bytes": 7, "error": None}
    lines = [
        record("a", "crash"),
        record("b"),
        record("a"),
        {**batch, "outcome": "equivalent", "check": record("c", calls=3)},
        {**batch, "name": "timm/d", "outcome": "out-of-memory", "error": "It ran out of memory."},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"library": "timm", "mod')
    checks = read_checks(path)
    assert {key: check["outcome"] for key, check in checks.items()} == {
        "timm/a": "equivalent",
        "timm/b": "equivalent",
        "timm/c": "equivalent",
        "timm/d": "memory",
    }
    assert (checks["timm/c"]["calls"], checks["timm/c"]["peak_bytes"]) == (3, 7)
    assert "| timm/d | memory | It ran out of memory. |" in summary(checks)


@pytest.mark.parametrize(("name", "models"), [("zoo", 819), ("zoo_clients", 130), ("zoo_export", 66)])
def test_the_records_that_are_kept_can_be_read(name: str, models: int) -> None:
    checks = read_checks(RESULTS / f"{name}.jsonl")
    assert len(checks) >= models
    assert "**Outcomes**" in summary(checks)


def test_the_tables_say_how_many_folded_and_why_the_others_did_not() -> None:
    text = summary(
        latest(
            [
                folded("resnet", 9, 0, fuse={"takes": True, "left": 3, "wrong": True, "error": 1.0, "seconds": 0.2}),
                folded("repvgg", 5, 5, fuse={"takes": False, "message": "TraceError"}),
                record("levit", "crash", message="KeyError: a | b", fuse={"takes": False, "message": "TraceError"}),
            ]
        )
    )
    assert "| timm | 3 | 3 | 2 | 0 | 1 |" in text
    assert "| symbolic | 2 | 19 | 14 (73.7 %) | 5 (26.3 %) | 0 (0.0 %) | 12 | 2 | 0 | 0 |" in text
    assert "| several-readers | affine | 5 | 1 | repvgg |" in text
    # levit's 10 modules were touched by neither; fuse did not take repvgg's 10 calls either and left 3 of resnet
    assert "| bnfold | 2 of 3 | 29 | 10 | 15 | 0 |" in text
    assert "| torch.fx.experimental.optimization.fuse | 1 of 3 | 29 | 23 | 23 | 1 |" in text
    assert "| timm/levit | crash | KeyError: a \\| b |" in text
    assert "| float32, folded, over the original's | 2.00 | 2.00 |" in text


def test_detectors_whose_lists_jump_in_float32_are_named_and_not_averaged() -> None:
    jumping = folded("fcos", 9, 0) | {
        "error": {"algebra": 1e-15, "float64": 2e-15, "original32": "inf", "folded32": "inf"}
    }
    text = summary(latest([folded("resnet", 9, 0), jumping]))
    assert "| float32, folded | 2.0e-06 | 2.0e-06 |" in text
    assert "1 detectors are left out of the float32 rows" in text


def test_each_way_of_capture_is_set_beside_an_export_of_torch() -> None:
    def captured(model: str, capture: float, export: float | None, **more: Any) -> dict[str, Any]:
        return folded(model, 9, 0, export_seconds=export, **more) | {"seconds": {"fold": 1.0, "capture": capture}}

    text = summary(
        latest(
            [
                captured("a", 0.5, 2.0, batch_free=True, size_free=None),
                captured("b", 1.5, 2.0, batch_free=False, size_free=False),
                captured("c", 9.0, None, batch_free=True, size_free=True),
            ]
        )
    )
    assert "| symbolic | 3 | 2 | 1 of 2 | 2 | 1.00 | 2.00 | 0.50 |" in text
    assert "Captures" not in summary(latest([folded("resnet", 9, 0)]))


def test_exports_are_summed_up_where_there_are_any() -> None:
    good = folded("resnet", 9, 0, export={"batch_normalization": 0, "nodes": 50, "seconds": 1.0})
    bad = folded("repvgg", 9, 0, export={"failed": "ExportError: no"})
    text = summary(latest([good, bad]))
    assert "| 2 | 1 | 0 |" in text
    assert "| repvgg | ExportError: no |" in text
    assert "ONNX" not in summary(latest([folded("resnet", 9, 0)]))


def test_no_records_make_no_tables() -> None:
    assert summary({}) == "No records."
