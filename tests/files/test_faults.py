"""Files stay whole when the writer is killed at any moment, told to stop, or runs out of disk."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnfold.files.save import Output, write_outputs
from tests.files.faults import NAMES, SIZE, content_of, is_whole, write_round

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, rounds: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.files.faults", str(folder), str(rounds), *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a started process still says; ``communicate`` would lose what ``readline`` has read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    said, errors = process.stdout.read(), process.stderr.read()
    process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    return said, errors


def stop(process: subprocess.Popen[str], number: signal.Signals, delay: float) -> tuple[str, str]:
    time.sleep(delay)
    process.send_signal(number)
    return rest_of(process)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in NAMES]


def kill_many_times(folder: Path, times: int, seed: int) -> int:
    """Kill the writer at random moments; return in how many of them it left temporaries behind."""
    chance, left = random.Random(seed), 0
    write_round(folder, 0)
    for _ in range(times):
        stop(start(folder, 100_000), signal.SIGKILL, chance.uniform(0.0, 0.05))
        for name in NAMES:
            assert is_whole(folder / name)
        left += bool(temporaries(folder))
        assert all(path.name.startswith(".bnfold-tmp-") for path in temporaries(folder))
    write_round(folder, 1)
    assert temporaries(folder) == []
    return left


def test_a_killed_writer_leaves_whole_files_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    kill_many_times(tmp_path, 5, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_250_kills_damage_nothing(tmp_path: Path) -> None:
    left = kill_many_times(tmp_path, 250, seed=2)
    assert left > 50, "the kills fell beside the work"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0.0, 0.013, 0.04])
def test_a_writer_told_to_stop_leaves_whole_files_and_no_temporaries(
    number: signal.Signals, delay: float, tmp_path: Path
) -> None:
    write_round(tmp_path, 0)
    process = start(tmp_path, 100_000)
    stop(process, number, delay)
    assert process.returncode == -number
    assert temporaries(tmp_path) == []
    for name in NAMES:
        assert is_whole(tmp_path / name)


@pytest.mark.parametrize("limit", [0, 1, 4096, 100_000, SIZE, SIZE + 10])
def test_a_full_disk_leaves_the_old_files(limit: int, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(content_of(7, name))
    process = start(tmp_path, 1, str(limit))
    said, errors = rest_of(process)
    assert errors == ""
    assert "larger than this system allows" in said
    assert "existing files are unchanged" in said
    assert temporaries(tmp_path) == []
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == content_of(7, name)


def test_two_writers_at_once_leave_whole_files(tmp_path: Path) -> None:
    processes = [start(tmp_path, 20) for _ in range(2)]
    for process in processes:
        said, errors = rest_of(process)
        assert (said, errors) == ("done\n", "")
    assert temporaries(tmp_path) == []
    for name in NAMES:
        assert is_whole(tmp_path / name)


def test_a_check_that_is_not_whole_would_be_noticed(tmp_path: Path) -> None:
    write_outputs([Output(tmp_path / NAMES[0], content_of(3, NAMES[0])[:-1])], inputs=[], force=False)
    assert not is_whole(tmp_path / NAMES[0])
