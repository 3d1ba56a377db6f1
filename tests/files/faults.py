"""A process that writes outputs, to be killed, starved or stopped from outside.

    python -m tests.files.faults FOLDER ROUNDS [LIMIT]

Each round replaces two files with content that names the round, so that a reader can tell whole ones from parts. With
LIMIT, files may have at most so many bytes, and SIGXFSZ is ignored: the disk is full as far as the process can tell.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path

from bnfold.errors import FileAccessError
from bnfold.files.save import Output, write_outputs

SIZE = 300_000
NAMES = ("model.onnx", "report.json")


def content_of(number: int, name: str) -> bytes:
    """Return what a round writes: its number, and bytes that follow from it."""
    seed = f"{number} {name} ".encode()
    return seed + hashlib.sha256(seed).digest() * (SIZE // 32)


def is_whole(path: Path) -> bool:
    """Whether a file is exactly what one round wrote."""
    data = path.read_bytes()
    return data == content_of(int(data.split(b" ", 1)[0]), path.name)


def write_round(folder: Path, number: int) -> None:
    outputs = [Output(folder / name, content_of(number, name), _slow_check) for name in NAMES]
    write_outputs(outputs, inputs=[], force=True)


def _slow_check(path: Path) -> None:
    if not is_whole(path):
        raise ValueError("not whole")


def _said(folder: Path, number: int) -> str:
    try:
        write_round(folder, number)
    except FileAccessError as error:
        return f"{error}\n"
    return ""


def main(folder: str, rounds: str, limit: str = "") -> None:
    if limit:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    print("ready", flush=True)
    for number in range(int(rounds)):
        print(_said(Path(folder), number), end="", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
