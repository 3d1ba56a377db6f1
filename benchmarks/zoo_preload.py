"""Imported once by the server that the processes of a run are forked from: the libraries, so that no model pays."""

from __future__ import annotations

import contextlib
import warnings

import torch

from benchmarks import shim

torch.set_num_threads(1)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for library in ("torchvision", "timm"):
        with contextlib.suppress(ImportError):
            shim.load(library)
