"""Run every hostile or broken input of the corpus through ``bnfold fold``, and print what came of it.

    python -m tests.files.torture [WORD]

With WORD only the cases whose name holds it. Each case runs in a process of its own, forked after torch is imported,
with the command line's own ``main``; seconds and megabytes are what the case needed beyond that import. The last line
counts what was not as it must be: another exit code, a message of 400 characters or more, of several lines or with a
traceback, an output file, a marker file (code from the input was run), 2 seconds or 500 MB.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.files.cases import Case
from tests.files.corpus import GROUPS

MOST_SECONDS, MOST_MEGABYTES, MOST_CHARACTERS = 2.0, 500.0, 400


@dataclass(frozen=True)
class Outcome:
    """What one case did."""

    case: Case
    code: int
    said: str
    seconds: float
    megabytes: float
    extra_files: tuple[str, ...]

    @property
    def message(self) -> str:
        return self.said.removeprefix("bnfold: ").strip()

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        found = {
            f"exit code {self.code}, not {self.case.code}": self.code != self.case.code,
            "a traceback": "Traceback" in self.said,
            "no message": not self.message,
            f"{len(self.message)} characters": len(self.message) >= MOST_CHARACTERS,
            "characters that a terminal obeys": any(not char.isprintable() for char in self.message if char != "\n"),
            f"left {', '.join(self.extra_files)}": bool(self.extra_files),
            f"{self.seconds:.1f} s": self.seconds >= MOST_SECONDS,
            f"{self.megabytes:.0f} MB": self.megabytes >= MOST_MEGABYTES,
        }
        return [what for what, is_so in found.items() if is_so]


def command_of(case: Case, source: str, folder: Path) -> list[str]:
    """Return the command line of a case, without the program's name."""
    options = {"code": "--code", "model": "--model", "key": "--key"}
    command = ["fold", source, "-o", str(folder.parent / "out.onnx"), "--quiet"]
    for name, value in case.options.items():
        for one in value if isinstance(value, list) else [value]:
            command += [] if one is None else [options[name], str(one).format(folder=folder)]
    return command


def run(case: Case) -> Outcome:
    """Make a case's input in a fresh folder and run it in a fork."""
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name) / "in"
        folder.mkdir()
        limit = sys.getrecursionlimit()
        source = str(case.make(folder, Path(name) / "marker"))
        sys.setrecursionlimit(limit)
        before = set(Path(name).rglob("*"))
        with tempfile.TemporaryFile() as said:
            start = time.perf_counter()
            code, megabytes = _forked(command_of(case, source, folder), said.fileno())
            seconds = time.perf_counter() - start
            said.seek(0)
            text = said.read().decode(errors="backslashreplace")
        extra = tuple(sorted(str(path.relative_to(name)) for path in set(Path(name).rglob("*")) - before))
    return Outcome(case, code, text, seconds, megabytes, extra)


def _forked(command: list[str], said: int) -> tuple[int, float]:
    """Run the command line in a fork that writes to ``said``; return its exit code and its megabytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, Path("/proc/self/statm").read_bytes().split()[1])  # its pages so far: those of the import
        os.dup2(said, 1)
        os.dup2(said, 2)
        code = 99
        try:
            from bnfold.cli import main

            code = main(command)  # type: ignore[assignment,func-returns-value,call-arg]
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
    _, status, used = os.wait4(child, 0)
    before = int(os.read(reader, 100)) * resource.getpagesize()
    os.close(reader)
    os.close(writer)
    return os.waitstatus_to_exitcode(status), (used.ru_maxrss * 1024 - before) / 1e6


def main(word: str = "") -> int:
    """Print the table; return how many cases were not as they must be."""
    import torch

    import bnfold.cli  # noqa: F401

    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    for group, cases in GROUPS.items():
        print(f"\n{group}\n{'exit':>4} {'s':>6} {'MB':>6}  case")
        for case in cases:
            if word not in case.name:
                continue
            outcome = run(case)
            outcomes.append(outcome)
            print(f"{outcome.code:>4} {outcome.seconds:6.2f} {outcome.megabytes:6.1f}  {case.name}")
            print(f"{'':19} {outcome.message}")
            for fault in outcome.faults:
                print(f"{'':19} WRONG: {fault}")
    wrong = sum(bool(outcome.faults) for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    largest = max(outcomes, key=lambda outcome: outcome.megabytes)
    longest = max(outcomes, key=lambda outcome: len(outcome.message))
    print(f"\nslowest: {slowest.seconds:.2f} s, {slowest.case.name}")
    print(f"largest: {largest.megabytes:.1f} MB, {largest.case.name}")
    print(f"longest message: {len(longest.message)} characters, {longest.case.name}")
    print(f"{len(outcomes)} cases, {wrong} of them not as they must be")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
