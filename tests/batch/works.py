"""What processes of the tests do instead of a fold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bnfold.batch.child import State
from bnfold.batch.job import Job

FINE = {"exit_code": 0, "outcome": "equivalent", "summary": None, "outputs": []}


def fine(job: Job, state: State) -> dict[str, Any]:
    """Say something, and end well."""
    print("said")
    return FINE


def sleeps(job: Job, state: State) -> dict[str, Any]:
    """Never end."""
    state.stage("sleeping")
    Path(job.folder, "half-written").write_text("half")
    while True:
        time.sleep(60)


def short(job: Job, state: State) -> dict[str, Any]:
    """Take some tenths of a second; count the runs in a file beside the results."""
    with Path(job.folder).parent.parent.joinpath("runs").open("a") as file:
        file.write(job.name + "\n")
    time.sleep(0.3)
    return FINE


def slow(job: Job, state: State) -> dict[str, Any]:
    """Take some seconds."""
    time.sleep(5)
    return FINE


def grabs(job: Job, state: State) -> dict[str, Any]:
    """Take a GiB, a little at a time, and keep it for a while."""
    _hold(1 << 30)
    return FINE


def children_grab(job: Job, state: State) -> dict[str, Any]:
    """Let two children take 300 MiB each, and be small itself."""
    children = [os.fork() for _ in range(1)]
    if 0 in children:
        _hold(300 << 20)
    other = subprocess.Popen(
        [sys.executable, "-c", "import time\nheld = b'1' * (300 << 20)\ntime.sleep(30)"], start_new_session=True
    )
    time.sleep(30)
    other.kill()
    return FINE


def shares(job: Job, state: State) -> dict[str, Any]:
    """Hold 200 MiB and fork four children, which share them."""
    held = b"1" * (200 << 20)
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            time.sleep(1.5 if held else 0)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return FINE


def memory_error(job: Job, state: State) -> dict[str, Any]:
    """Ask for more than there is."""
    return {"held": bytearray(1 << 60)}


def raises(job: Job, state: State) -> dict[str, Any]:
    """Go wrong as Python code does."""
    raise ValueError("no such thing")


def kills_itself(job: Job, state: State) -> dict[str, Any]:
    """Go wrong as C code does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return FINE


def exits(job: Job, state: State) -> dict[str, Any]:
    """End the process behind everyone's back."""
    os._exit(3)


def leaves_children(job: Job, state: State) -> dict[str, Any]:
    """End well, and leave a process in a session of its own, whose parent is gone; its id stands in a file."""
    script = (
        "import os, sys, time\nif os.fork():\n    sys.exit()\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    path = Path(job.folder, "pid")
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, start_new_session=True)
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    if job.name == "hangs":
        time.sleep(600)
    return FINE


def _hold(count: int) -> None:
    held = []
    for _ in range(count >> 24):
        held.append(b"1" * (1 << 24))
        time.sleep(0.01)
    time.sleep(30)
