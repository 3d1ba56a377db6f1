"""Sixteen models: ten that fold, and one for each way in which a model can go wrong; and what must become of each."""

from __future__ import annotations

import csv
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

CODE = '''
import os
import signal
import time

import torch
from torch import nn


class OnValues(nn.Module):
    """Decides on its values, and cannot be captured."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) if float(x.detach().numpy().mean()) > 0 else x


def hangs():
    while True:
        time.sleep(1)


def grabs():
    held = []
    while len(held) < 25 * 16:  # 25 GiB, in parts of 64 MiB, each written to
        held.append(torch.ones(1 << 24))
        time.sleep(0.01)
    return nn.Identity()


def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def decides():
    return OnValues().eval()
'''

EXPECTED = {f"good{number}": "equivalent" for number in range(10)} | {
    "hangs": "timeout",
    "grabs": "out-of-memory",
    "kills": "died",
    "missing": "failed",
    "malicious": "refused",
    "not-foldable": "failed",
}


def network(seed: int) -> nn.Module:
    """Return a tiny network whose BatchNorm is not near the identity."""
    torch.manual_seed(seed)
    channels = 3 + seed % 5
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return nn.Sequential(nn.Conv2d(3, channels, 3), norm, nn.ReLU()).eval()


class Malicious:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def malicious(path: Path, mark: Path) -> None:
    """Write a file as torch.save does, with a pickle that runs code."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(mark), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def make(folder: Path, *, hang: float = 8.0) -> Path:
    """Write the sixteen models into a folder, and return their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "code.py").write_text(CODE, encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for number in range(10):
        torch.save(network(number), folder / f"good{number}.pt")
        rows.append({"name": f"good{number}", "source": f"good{number}.pt"})
    malicious(folder / "malicious.pt", folder / "mark")
    rows[3:3] = [
        {"name": "hangs", "model": "code.py:hangs", "timeout": hang},
        {"name": "grabs", "model": "code.py:grabs"},
        {"name": "kills", "model": "code.py:kills_itself"},
        {"name": "missing", "source": "missing.pt"},
        {"name": "malicious", "source": "malicious.pt"},
        {"name": "not-foldable", "model": "code.py:decides"},
    ]
    names = ["name", "source", "model", "timeout", "input_shape", "output"]
    manifest = folder / "models.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(row | {"input_shape": "2,3,8,8", "output": "folded.safetensors"} for row in rows)
    return manifest


def facts(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what must be equal in two runs, by name."""
    kept = ("outcome", "exit_code", "summary", "sha256", "outputs", "attempts", "key")
    return {record["name"]: {name: record[name] for name in kept} for record in records}


def read(output: Path) -> list[dict[str, Any]]:
    """Return the records of a folder, each line of which must be whole."""
    lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    return [json.loads(line) for line in lines]
