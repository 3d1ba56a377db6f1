"""Which memory limit is right for torch: RLIMIT_AS, or a watched resident size? What docs/decisions/0008 rests on.

Prints what address space and what memory a process takes that imports torch, computes with many threads, folds a
network or maps a file; what becomes of a fold under RLIMIT_AS; and by how much an allocation outruns the watcher.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

MIB = 1 << 20
MAKE = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512))]
    return nn.Sequential(*layers).eval()
"""
FOLD = "from bnfold.cli import main; main(['fold', 'net.py:net', '--input-shape', '2,512,4,4', '-q', '--force'])"
TAKES = {
    "import torch": "import torch",
    "a product with 64 threads": "import torch; torch.set_num_threads(64)\n"
    "torch.ones(2000, 2000) @ torch.ones(2000, 2000)",
    "a fold of 9.4 million parameters": FOLD,
    "the same with 64 threads": "import torch; torch.set_num_threads(64)\n" + FOLD,
    "import torch, and map a file of 4 GiB": "import torch, mmap\nfile = open('large', 'rb')\n"
    "held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)",
}
SIZES = """
import re
text = open('/proc/self/status').read()
print('sizes', *(int(re.search(name + r':\\s+(\\d+)', text)[1]) for name in ('VmPeak', 'VmHWM')))
"""


def run(code: str, folder: str, address_space: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if address_space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def sizes(code: str, folder: str) -> tuple[int, int]:
    """Return the most address space and the most memory that a process took, in MiB."""
    done = run(code + SIZES, folder)
    line = next(line for line in done.stdout.splitlines() if line.startswith("sizes"))
    space, memory = line.split()[1:]
    return int(space) // 1024, int(memory) // 1024


def overshoot(folder: str, limit: int) -> tuple[str, int]:
    """Let a process fill memory as fast as it can; return the outcome, and how far it got over its limit, in MiB."""
    from bnfold.batch.job import Job
    from bnfold.batch.local import start_watcher
    from bnfold.batch.watch import Limits

    job = Job("fills", None, (), str(Path(folder, "models", "fills")), work="benchmarks.bench_memory_limits:fills")
    told = start_watcher(job, Limits(limit, 60.0), "spawn").result()
    return told["outcome"], (told["peak_bytes"] - limit) // MIB


def fills(_job: object, _state: object) -> dict[str, object]:
    """Fill 3 GiB."""
    held = [b"1" * (64 * MIB) for _ in range(48)]
    return {"exit_code": 0, "outcome": "equivalent", "held": len(held)}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "net.py").write_text(MAKE)
        with open(Path(folder, "large"), "wb") as file:
            file.truncate(4 << 30)
        print("| process | address space, MiB | memory, MiB |\n| --- | ---: | ---: |")
        taken = {name: sizes(code, folder) for name, code in TAKES.items()}
        for name, (space, memory) in taken.items():
            print(f"| {name} | {space} | {memory} |")
        print("\nThat fold, under RLIMIT_AS of a part of what it takes:\n")
        for share in (1.05, 0.9, 0.7, 0.5):
            limit = int(taken["a fold of 9.4 million parameters"][0] * share) * MIB
            done = run(FOLD.replace("main(", "raise SystemExit(main(") + ")", folder, limit)
            last = (done.stderr.strip().splitlines() or ["nothing said"])[0][:110]
            print(f"- {share:.0%}, {limit // MIB} MiB: exit code {done.returncode}; {last}")
        print("\nOver a watched limit, filling memory as fast as it goes:\n")
        for limit in (512 * MIB, 1024 * MIB):
            outcome, over = overshoot(folder, limit)
            print(f"- limit {limit // MIB} MiB: {outcome}, {over} MiB over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
