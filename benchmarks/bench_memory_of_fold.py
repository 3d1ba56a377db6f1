"""How much memory a fold takes over the loaded model, as a Markdown table.

    python benchmarks/bench_memory.py [--model efficientnet_l2]

In a process of its own, the peak of resident memory during ``bnfold.fold`` above what the loaded model takes, against
the bytes of the folded weights (those that are not shared with the original) plus one layer in float64. Linux only:
the kernel keeps the peak (``VmHWM``), and resets it on request. Needs timm (see ``benchmarks/shim.py``).
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def status(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def measure(name: str) -> dict[str, int]:
    """Load a model, fold it, and return what that took, in bytes."""
    import torch

    from benchmarks import shim
    from benchmarks.networks import with_statistics
    from bnfold.fold.api import fold

    torch.set_num_threads(1)
    timm = shim.load("timm")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    with_statistics(model)
    fold(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).eval())  # imports are no fold's cost
    gc.collect()
    loaded = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    folding = fold(model)
    peak = status("VmHWM")
    shared = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    new = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in (*folding.module.parameters(), *folding.module.buffers())
        if tensor.data_ptr() not in shared
    }
    kept = sum(tensor.nbytes for tensor in folding.module.parameters() if tensor.data_ptr() in shared)
    return {
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "loaded": loaded,
        "over": peak - loaded,
        "folded": sum(new.values()),
        "layer": 2 * max(new.values()),
        "shared": kept,
        "batchnorms": len(folding.plan),
        "explicit": folding.plan.summary["affine"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_l2", help="of timm")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.model)))
        return
    command = [sys.executable, __file__, "--model", given.model, "--here"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    allowed = found["folded"] + found["layer"]
    print("| model | parameters | loaded | folded weights | one layer in float64 | peak over the model | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cells = [f"{found[key] / 2**20:,.0f} MiB" for key in ("loaded", "folded", "layer", "over")]
    millions = f"{found['parameters'] / 1e6:.0f} M"
    print(f"| {given.model} | {millions} | " + " | ".join(cells) + f" | {found['over'] / allowed:.3f}x |")
    print(
        f"\n{found['batchnorms']} BatchNorms, {found['explicit']} explicit; {found['shared'] / 2**20:,.1f} MiB of "
        "parameters are shared with the original."
    )


if __name__ == "__main__":
    main()
