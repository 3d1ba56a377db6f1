"""A whole run: each model has one record with the right outcome, whatever becomes of it, and of the run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import bnfold.batch
from bnfold.batch import local
from bnfold.batch.progress import Silent
from bnfold.errors import BnfoldError, UsageError
from tests.batch import sixteen

ROOT = Path(__file__).resolve().parents[2]
WORKS = "tests.batch.works:"


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 2 GiB, so that what grabs all of it leaves some to the others."""
    monkeypatch.setattr(local, "machine_memory", lambda: 2 << 30)


class Hears(Silent):
    """Keeps what is said, and the records."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.stages: set[tuple[str, str]] = set()

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def ended(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def look(self, stages: Any, waiting: int) -> None:
        self.stages |= set(stages.items())


def rows(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "models.jsonl"
    path.write_text("".join(json.dumps({"model": "none:such", **row}) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("small_machine")
def test_of_sixteen_models_each_has_the_right_record_and_a_second_run_does_nothing(
    tmp_path: Path,
) -> None:
    manifest, output, hears = sixteen.make(tmp_path / "models"), tmp_path / "out", Hears()
    records = bnfold.batch.run(manifest, output, memory="1GiB", progress=hears)
    assert {record["name"]: record["outcome"] for record in records} == sixteen.EXPECTED
    assert Counter(map(json.dumps, records)) == Counter(map(json.dumps, sixteen.read(output)))
    assert Counter(record["name"] for record in hears.records) == Counter(list(sixteen.EXPECTED))
    assert not (tmp_path / "models" / "mark").exists(), "the malicious pickle ran"

    by_name = {record["name"]: record for record in records}
    good, grabs = by_name["good0"], by_name["grabs"]
    assert (good["exit_code"], good["summary"], good["attempts"]) == (0, {"fold": 1, "affine": 0, "keep": 0}, 1)
    assert [file["path"] for file in good["outputs"]] == ["folded.safetensors"]
    assert good["peak_bytes"] > 100 << 20
    assert len(good["sha256"]) == 64
    assert grabs["attempts"] == 2
    assert grabs["before"] == ["It ran out of memory with 1 GiB, and was tried again alone with 2 GiB."]
    assert by_name["missing"]["exit_code"] == 5
    assert "There is no file" in by_name["missing"]["error"]
    assert by_name["malicious"]["exit_code"] == 3
    assert by_name["not-foldable"]["exit_code"] == 6
    for name, record in by_name.items():
        folder = output / record["folder"]
        assert (folder / "log.txt").is_file(), name
        assert (folder / "report.html").is_file() == (record["outcome"] == "equivalent"), name
        assert not (folder / "state.json").exists()
    assert "equivalent in" in (output / good["folder"] / "log.txt").read_text()
    assert any(name == "hangs" and stage != "starting" for name, stage in hears.stages)

    before, hears = (output / "results.jsonl").read_bytes(), Hears()
    assert bnfold.batch.run(manifest, output, memory="1GiB", progress=hears) == records
    assert (hears.records, (output / "results.jsonl").read_bytes()) == ([], before)


def names_run(folder: Path) -> list[str]:
    return sorted((folder / "runs").read_text().split())


def test_what_is_recorded_for_the_same_content_is_not_done_again(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.pt").write_text(name)
    output = tmp_path / "out"
    manifest = rows(tmp_path, *({"name": name, "source": f"{name}.pt"} for name in "abc"))

    def ran(**options: Any) -> list[str]:
        (output / "runs").unlink(missing_ok=True)
        (output / "runs").parent.mkdir(exist_ok=True)
        (output / "runs").touch()
        records = bnfold.batch.run(manifest, output, work=WORKS + "short", **options)
        assert [record["name"] for record in records] == list("abc")
        assert len(sixteen.read(output)) == 3
        return names_run(output)

    assert ran() == ["a", "b", "c"]
    assert ran() == []
    (tmp_path / "b.pt").write_text("other")
    assert ran() == ["b"]
    assert ran(options={"merge": ["--merge"]}) == ["a", "b", "c"]
    assert ran() == ["a", "b", "c"]
    assert ran(again="FAILED") == []
    lines = sixteen.read(output)
    lines[0]["outcome"] = "timeout"
    (output / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ran() == []
    assert ran(again="FAILED") == [lines[0]["name"]]
    assert ran(again="ALL") == ["a", "b", "c"]


def test_records_of_other_models_stay(tmp_path: Path) -> None:
    bnfold.batch.run(rows(tmp_path, {"name": "a"}), tmp_path / "out", work=WORKS + "fine")
    bnfold.batch.run(rows(tmp_path, {"name": "b"}), tmp_path / "out", work=WORKS + "fine")
    assert [record["name"] for record in sixteen.read(tmp_path / "out")] == ["a", "b"]


def test_a_bad_row_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2, column seed"):
        bnfold.batch.run(rows(tmp_path, {"name": "a"}, {"name": "b", "seed": "x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [({"again": "SOME"}, "'SOME' names nothing"), ({"jobs": 0}, "0 models at a time"), ({"memory": "much"}, "no size")],
)
def test_arguments_that_cannot_be_are_told(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BnfoldError, match=told):
        bnfold.batch.run(rows(tmp_path, {"name": "a"}), tmp_path / "out", **options)


def test_a_limit_above_what_there_is_is_told_at_once(tmp_path: Path) -> None:
    hears = Hears()
    manifest = rows(tmp_path, {"name": "a", "memory": "900GiB"})
    bnfold.batch.run(manifest, tmp_path / "out", work=WORKS + "fine", progress=hears)
    assert "a may hold 900 GiB, and no machine has more than" in hears.said[0]


# --- a run that is killed -----------------------------------------------------------------------------------------

DRIVER = """
import sys
from bnfold.batch import local
import bnfold.batch
local.machine_memory = lambda: 2 << 30
if not sys.argv[3].endswith(":fold"):
    local.PRELOAD = ()
ray = sys.argv[4] if len(sys.argv) > 4 else None
bnfold.batch.run(sys.argv[1], sys.argv[2], jobs=2, memory="1GiB", work=sys.argv[3], ray=ray)
"""


def start(folder: Path, manifest: Path, work: str, *ray: str) -> subprocess.Popen[bytes]:
    script = folder / "driver.py"
    script.write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(script), str(manifest), str(folder / "out"), work, *ray],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def wait_for_records(output: Path, count: int, process: subprocess.Popen[bytes] | None = None) -> None:
    path = output / "results.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        if process is not None and process.poll() is not None:
            return  # there was nothing left to do
        time.sleep(0.02)


def kill_at_random(folder: Path, manifest: Path, work: str, kills: int, longest: float, seed: int) -> list[set[str]]:
    """Kill a run at random moments and start it again; then let it end. Return what was recorded after each kill."""
    chance, recorded = random.Random(seed), [set[str]()]
    while True:
        before = set(recorded[-1])
        process = start(folder, manifest, work)
        try:
            if len(recorded) <= kills:
                if chance.random() < 0.6:  # while it works, and else while it starts
                    wait_for_records(folder / "out", len(before) + 1, process)
                time.sleep(chance.uniform(0.0, longest))
                process.kill()
                process.wait()
            else:
                assert process.wait(timeout=600) == 0
                return recorded
        finally:
            process.kill()
            process.wait()
        path = folder / "out" / "results.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        names = [json.loads(line)["name"] for line in lines]
        assert len(names) == len(set(names)), "a record is there twice"
        assert before <= set(names), "a record is lost"
        recorded.append(set(names))


def test_a_driver_killed_at_random_moments_loses_doubles_and_halves_nothing(tmp_path: Path) -> None:
    every = {f"m{number}" for number in range(16)}
    manifest = rows(tmp_path, *({"name": name} for name in sorted(every)))
    recorded = kill_at_random(tmp_path, manifest, WORKS + "short", kills=4, longest=0.6, seed=1)
    records = sixteen.read(tmp_path / "out")
    assert Counter(record["name"] for record in records) == Counter(every)
    runs = Counter(names_run(tmp_path / "out"))
    lost = sum(runs.values()) - len(every)
    assert lost <= 2 * (len(recorded) - 1), "more was done again than ran when the driver was killed"
    assert 0 < len(recorded[-1]) < len(every), "the kills came while it worked"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sixteen_models_and_twenty_kills_of_the_driver_end_in_the_records_of_a_run_left_alone(tmp_path: Path) -> None:
    manifest = sixteen.make(tmp_path / "models")
    (tmp_path / "alone").mkdir()
    process = start(tmp_path / "alone", manifest, "bnfold.batch.child:fold")
    assert process.wait(timeout=900) == 0
    kill_at_random(tmp_path, manifest, "bnfold.batch.child:fold", kills=20, longest=5.0, seed=2)
    alone, killed = sixteen.read(tmp_path / "alone/out"), sixteen.read(tmp_path / "out")
    assert {record["name"]: record["outcome"] for record in killed} == sixteen.EXPECTED
    assert sixteen.facts(killed) == sixteen.facts(alone)


def test_an_interrupt_ends_the_children_and_leaves_whole_records(tmp_path: Path) -> None:
    import psutil

    manifest = rows(tmp_path, *({"name": f"m{number}"} for number in range(40)))
    process = start(tmp_path, manifest, WORKS + "short")
    try:
        wait_for_records(tmp_path / "out", 2)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
        process.wait()
    psutil.wait_procs(family, timeout=20)
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    records = sixteen.read(tmp_path / "out")
    assert 2 <= len(records) < 40
    assert {record["outcome"] for record in records} == {"equivalent"}
    assert (tmp_path / "out" / "index.html").read_text().count("<tr data-a=") == len(records)
