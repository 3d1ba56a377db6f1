"""A model's process: every way to end, its limits, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bnfold.batch.job import Job
from bnfold.batch.local import start_watcher
from bnfold.batch.watch import Limits

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


def job(folder: Path, work: str, name: str = "model") -> Job:
    return Job(name, None, (), str(folder / "models" / name), work=f"tests.batch.works:{work}")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def told(folder: Path, work: str, name: str = "model", **limits: Any) -> dict[str, Any]:
    limits = {"memory": 4096 * MIB, "seconds": 60.0} | limits
    return dict(start_watcher(job(folder, work, name), Limits(**limits)).result(timeout=100))


def gone(pid: int) -> bool:
    """Whether a process has ended, or does so within a second."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_what_ends_well_has_its_result_its_log_and_its_peak(tmp_path: Path) -> None:
    record = told(tmp_path, "fine")
    assert (record["outcome"], record["exit_code"], record["error"]) == ("equivalent", 0, None)
    assert record["peak_bytes"] > 5 * MIB
    assert 0 < record["seconds"] < 60
    assert (tmp_path / "models/model/log.txt").read_text() == "said\n"
    assert [path.name for path in (tmp_path / "models/model").iterdir()] == ["log.txt"]


@pytest.mark.parametrize(
    ("work", "outcome", "error"),
    [
        ("raises", "failed", "ValueError: no such thing"),
        ("kills_itself", "died", "Its process was ended by SIGSEGV while starting."),
        ("exits", "died", "Its process ended itself with exit code 3 while starting."),
        ("memory_error", "out-of-memory", "It ran out of memory while starting: it may hold 4 GiB."),
        ("no_such_work", "failed", "AttributeError: module 'tests.batch.works' has no attribute 'no_such_work'"),
    ],
)
def test_each_way_to_go_wrong_has_its_outcome(work: str, outcome: str, error: str, tmp_path: Path) -> None:
    record = told(tmp_path, work)
    assert (record["outcome"], record["error"]) == (outcome, error)
    assert (record["summary"], record["outputs"]) == (None, [])


def test_the_log_of_what_raised_has_the_traceback(tmp_path: Path) -> None:
    told(tmp_path, "raises")
    assert "in raises" in (tmp_path / "models/model/log.txt").read_text()


def test_what_hangs_is_ended_and_says_where_it_was(tmp_path: Path) -> None:
    record = told(tmp_path, "sleeps", seconds=0.5)
    assert (record["outcome"], record["exit_code"]) == ("timeout", None)
    assert record["error"] == "It took longer than 0.5 s while sleeping, and was ended."
    assert not (tmp_path / "models/model/half-written").exists()


def test_what_holds_too_much_is_ended_before_it_holds_all(tmp_path: Path) -> None:
    record = told(tmp_path, "grabs", memory=500 * MIB)
    assert (record["outcome"], record["exit_code"]) == ("out-of-memory", None)
    assert 490 * MIB < record["peak_bytes"] < 900 * MIB


def test_children_count_too_be_they_in_a_session_of_their_own(tmp_path: Path) -> None:
    record = told(tmp_path, "children_grab", memory=550 * MIB)
    assert record["outcome"] == "out-of-memory"
    assert record["peak_bytes"] > 550 * MIB


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    record = told(tmp_path, "shares", memory=900 * MIB)
    assert record["outcome"] == "equivalent", record["error"]


@pytest.mark.parametrize("name", ["ends", "hangs"])
def test_what_a_process_leaves_is_ended_with_it(name: str, tmp_path: Path) -> None:
    done = start_watcher(job(tmp_path, "leaves_children", name), Limits(4096 * MIB, 3.0))
    path = tmp_path / "models" / name / "pid"
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    pid = int(path.read_text())
    assert done.result(timeout=60)["outcome"] == {"ends": "equivalent", "hangs": "timeout"}[name]
    assert gone(pid)


SCRIPT = """
import sys, time
from pathlib import Path
from bnfold.batch.local import start_watcher
from bnfold.batch.watch import Limits
from tests.batch.test_watch import job
future = start_watcher(job(Path(sys.argv[1]), "leaves_children", "hangs"), Limits(1 << 32), sys.argv[2])
path = Path(sys.argv[1], "models/hangs/pid")
while not (path.exists() and path.read_text()):
    time.sleep(0.01)
print(path.read_text(), flush=True)
if sys.argv[3] == "cancel":
    future.cancel()
time.sleep(600)
"""


@pytest.fixture
def driver() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize(("method", "way"), [("forkserver", "kill"), ("spawn", "kill"), ("forkserver", "cancel")])
def test_where_whoever_started_it_goes_away_nothing_is_left(
    method: str, way: str, tmp_path: Path, driver: list[subprocess.Popen[str]]
) -> None:
    """The script has no guard around its main part: it is not run again in the processes that it starts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), method, way], stdout=subprocess.PIPE, text=True
    )
    driver.append(process)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    family = [psutil.Process(pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 3
    if way == "kill":
        os.kill(process.pid, signal.SIGKILL)
        assert all(gone(one.pid) for one in family)
    else:
        assert gone(pid)
