"""What ``bnfold.batch`` runs for a model of the zoo: the whole check in the place of a plain fold.

The libraries are imported with this module, which the server that local processes are forked from does once.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from functools import cache
from typing import Any

import torch

from benchmarks import shim
from benchmarks.zoo_check import check
from benchmarks.zoo_list import Entry, read_list
from bnfold.batch.child import State
from bnfold.batch.job import Job

__all__ = ["check_and_export", "check_only"]

os.environ |= {"YOLO_OFFLINE": "true", "HF_HUB_OFFLINE": "1"}
torch.set_num_threads(1)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for library in ("torchvision", "timm"):
        with contextlib.suppress(ImportError):
            shim.load(library)


def check_only(job: Job, state: State) -> dict[str, Any]:
    """Check the model that the job is named after."""
    return _work(job, state, export=False)


def check_and_export(job: Job, state: State) -> dict[str, Any]:
    """Check it, and export it to ONNX too."""
    return _work(job, state, export=True)


def _work(job: Job, state: State, *, export: bool) -> dict[str, Any]:
    seed = next((int(text.partition("=")[2]) for text in job.arguments if text.startswith("--seed=")), 0)
    state.stage("checking")
    record = check(_entries()[job.name], seed=seed, export=export, merge="--merge" in job.arguments)
    outcome = record["outcome"]
    return {
        "exit_code": 0 if outcome == "equivalent" else 1,
        "outcome": outcome,
        "error": record.get("message"),
        "summary": record.get("actions"),
        "check": record,
    }


@cache
def _entries() -> dict[str, Entry]:
    return {entry.key: entry for entry in read_list()}
