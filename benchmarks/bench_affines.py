"""Affines by constants in networks that people use: how many fold, and how far the fold is off.

    python benchmarks/bench_affines.py [NAME:SIZE ...]

Networks of timm with random weights, their layer scales drawn anew, folded with ``affines=True, merge=True``. The error
is the largest over the peak: of the fold in float32, and of the same plan in float64.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from typing import Any

import torch
from torch import nn

import bnfold
from benchmarks.shim import load

NETWORKS = (
    *("convnext_atto:64", "deit3_small_patch16_224:224", "fastvit_t8:64", "caformer_s18:64", "davit_tiny:64"),
    *("nfnet_f0:64", "swinv2_cr_tiny_ns_224:224"),
)


def drawn(model: nn.Module) -> nn.Module:
    """Return the model in eval mode, with statistics and scales that are none of their beginnings."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif any(part in name for part in ("gamma", "scale", "running_mean")) and tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + 0.5)
    return model.eval()


def off(found: Any, right: Any) -> float:
    return float((found - right).abs().max() / right.abs().max())


def main(networks: list[str]) -> None:
    """Print a table."""
    warnings.filterwarnings("ignore")
    timm: Any = load("timm")
    print(
        "| network | BatchNorms | affines | why they stay | float32 | float64 |\n| --- | --- | --- | --- | --- | --- |"
    )
    for network in networks or NETWORKS:
        name, size = network.split(":")
        model, x = drawn(timm.create_model(name)), torch.randn(2, 3, int(size), int(size))
        folding = bnfold.fold(model, x, affines=True, merge=True, check=False)
        with torch.no_grad():
            narrow = off(folding.module(x), model(x))
            original, exact = folding.in_float64()
            wide = off(exact(x.double()), original(x.double()))
        told = {kind: [d for d in folding.plan if d.kind == kind] for kind in ("batchnorm", "affine")}
        counts = [f"{sum(d.action == 'fold' for d in each)} of {len(each)}" for each in told.values()]
        why = Counter(d.reason for d in told["affine"] if d.reason)
        reasons = ", ".join(f"{reason} {count}" for reason, count in why.items())
        print(f"| {name} | {counts[0]} | {counts[1]} | {reasons} | {narrow:.1e} | {wide:.1e} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
