"""``results.jsonl`` is whole after a kill at any moment, and belongs to one run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bnfold.batch.records import Records, hold_folder, read_records
from bnfold.errors import FileAccessError


def record(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "outcome": "equivalent", "error": "a\nb", **more}


def test_a_file_cut_at_any_byte_has_the_whole_records_and_takes_new_ones(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        for name in ("a", "b"):
            records.append(record(name))
    content = records.path.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(len(content) + 1):
        records.path.write_bytes(content[:cut])
        with Records(tmp_path) as again:
            assert list(again.done) == ["a", "b"][: (cut >= first) + (cut == len(content))]
            again.append(record("c"))
        assert [each["name"] for each in read_records(again.path)] == list(again.done)
        assert all(json.loads(line) for line in again.path.read_text().splitlines())


def test_dropping_leaves_the_others_in_order(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        for name in "abcd":
            records.append(record(name))
        records.drop(["b", "d", "none"])
        assert [each["name"] for each in read_records(records.path)] == ["a", "c"]
        records.append(record("b"))
    assert [each["name"] for each in read_records(records.path)] == ["a", "c", "b"]
    assert not records.path.with_suffix(".tmp").exists()


def test_a_number_that_json_lacks_becomes_text(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.append(record("a", error={"worst": [float("nan"), float("inf"), 1.5]}))
    assert read_records(records.path)[0]["error"] == {"worst": ["nan", "inf", 1.5]}


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '{"name": 3}'])
def test_a_line_that_is_no_record_is_told_with_its_number(line: str, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(record("a")) + f"\n{line}\n" + json.dumps(record("b")) + "\n")
    with pytest.raises(FileAccessError, match="line 2, is no record"), Records(tmp_path):
        pass
    with pytest.raises(FileAccessError, match="line 2"), Records(tmp_path):  # the lock was given back
        pass


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    told = pytest.raises(FileAccessError, match="Another bnfold batch is at work in")
    with Records(tmp_path), told, Records(tmp_path):
        pass
    with Records(tmp_path):
        pass


def test_a_run_waits_for_what_a_killed_one_left(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom bnfold.batch.records import hold_folder\nhold_folder(sys.argv[1])\n"
        "print('held', flush=True)\ntime.sleep(0.5)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"held\n"
        with Records(tmp_path):
            assert left.wait(10) == 0 or left.poll() is not None


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    held = hold_folder(str(tmp_path))
    monkeypatch.setattr("bnfold.batch.records._PATIENCE", 0.1)
    with pytest.raises(FileAccessError, match="Processes of an earlier run are at work"), Records(tmp_path):
        pass
    os.close(held)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="cannot be written to"), Records(tmp_path / "file" / "out"):
        pass
