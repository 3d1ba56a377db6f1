"""Fold one small model of every kind of timm and torchvision (about 90), and print the tables: a quarter of an hour.

The whole zoo is run by ``zoo.py``. Where timm and torchvision are not installed this says so and does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import shim, zoo  # noqa: E402

OUTPUT = ROOT / "build" / "zoo-sample"


def main() -> int:
    if not (shim.available("timm") and shim.available("torchvision")):
        print("timm and torchvision are not installed, so the zoo was left out; benchmarks/zoo.py says how to get them")
        return 0
    status = zoo.main(
        ["--library", "timm", "--library", "torchvision", "--sample", "--again", "ALL", "--output", str(OUTPUT)]
    )
    zoo.main(["--summary", str(OUTPUT / "results.jsonl")])
    return status


if __name__ == "__main__":
    sys.exit(main())
