"""The whole corpus through the command line, with the table of outcomes printed: ``make torture``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_case_ends_as_it_must_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.files.torture"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    with capsys.disabled():
        print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith(", 0 of them not as they must be")
