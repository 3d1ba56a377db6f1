"""The machine that a measurement was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bnfold.bench.result import Machine

__all__ = ["cores", "this_machine"]


def this_machine() -> Machine:
    """Return what is known of this machine; nothing of it names a person or a host."""
    system = f"{platform.system()} {platform.machine()}".strip() or "unknown system"
    return Machine(_processor(Path("/proc/cpuinfo")), cores(), system, _load())


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor(cpuinfo: Path) -> str:
    """Return the CPU's model as Linux tells it, else what Python knows."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown processor"


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None
