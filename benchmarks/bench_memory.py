"""How much memory ``bnfold fold`` with its proof holds, in bytes a parameter, as a Markdown table.

    python benchmarks/bench_memory.py [--millions 150 700] [--outputs safetensors onnx]
                                      [--sources safetensors pt spec onnx apart.onnx]

A network of 16 convolutions and BatchNorms, once wide and once narrow; each is folded in a process of its own on images
of 8x8, and the peak of its resident memory is read from the kernel (``VmHWM``, which a stage resets). Resident memory
counts the pages of mapped files too, although the system takes those back where others need them. The figure is the
difference of the two peaks over that of the numbers of parameters. ``-v`` shows each stage. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NARROW = 16
SOURCES = ("safetensors", "pt", "spec", "onnx", "apart.onnx")
LAYERS = 16
CODE = """
import torch
from torch import nn

def net(width={width}):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
    for _ in range({layers}):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 1.5)
            part.running_mean.normal_(0, 0.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.5)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    return model.eval()
"""

EXPORT = """
import onnx
from torch.onnx import TrainingMode
whole, apart = 'net{width}.onnx', 'net{width}.apart.onnx'
torch.onnx.export(
    model, (torch.randn(2, 3, 8, 8),), whole, dynamo=False, input_names=['x'], dynamic_axes={{'x': {{0: 'batch'}}}},
    do_constant_folding=False, training=TrainingMode.PRESERVE,
)
onnx.save(onnx.load(whole), apart, save_as_external_data=True, location='net{width}.apart.data')
"""


def resident(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


class _Stages:
    """Reads and resets the peak whenever a stage begins."""

    def __init__(self) -> None:
        self.peaks: list[tuple[str, int, int, int]] = []
        self._name = "start"

    def stage(self, sentence: str) -> None:
        self.peaks.append((self._name, resident("VmHWM"), resident("VmRSS"), resident("RssFile")))
        self._name = sentence
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def error(self, what: str, fix: str) -> None:
        print(what, fix, file=sys.stderr)


def measure(arguments: list[str]) -> None:
    """Run one command here, and print the peak of each stage."""
    sys.path.insert(0, str(ROOT))
    from bnfold.cli import main
    from bnfold.cli.listener import listen

    stages = _Stages()
    listen(stages)
    code = main(arguments)
    stages.stage("end")
    print(json.dumps({"code": code, "peaks": stages.peaks}))


def made(folder: Path, width: int, *, onnx: bool) -> int:
    """Write a network in each form that is folded, and return how many parameters it has."""
    (folder / f"net{width}.py").write_text(CODE.format(width=width, layers=LAYERS))
    done = run(
        f"import sys; sys.path.insert(0, '.'); import torch, net{width}, safetensors.torch\n"
        f"model = net{width}.net()\n"
        f"torch.save(model, 'net{width}.pt')\n"
        f"safetensors.torch.save_model(model, 'net{width}.safetensors')\n"
        f"{EXPORT.format(width=width) if onnx else ''}"
        "print(sum(p.numel() for p in model.parameters()))",
        folder,
    )
    return int(done.stdout.splitlines()[-1])


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )


def peak(folder: Path, width: int, source: str, output: str, options: list[str], verbose: bool) -> int:
    """Return the most that a fold holds, in bytes."""
    model = {"spec": f"net{width}.py:net"}.get(source, f"net{width}.{source}")
    arguments = ["fold", model, "-o", f"folded.{output}", "--input-shape", "2,3,8,8", "--force", "-q", *options]
    if source == "safetensors":
        arguments += ["--model", f"net{width}.py:net"]
    done = run(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom benchmarks.bench_memory import measure\n"
        f"measure({arguments!r})",
        folder,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == 0, told
    if verbose:
        for name, *sizes in told["peaks"]:
            most, now, mapped = (f"{size / 2**20:6.0f}" for size in sizes)
            print(f"    {most} MiB; at its end {now}, of which mapped {mapped}: {name}", file=sys.stderr)
    return max(int(most) for _, most, *_ in told["peaks"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[150])
    parser.add_argument("--sources", nargs="+", default=["safetensors"], choices=list(SOURCES))
    parser.add_argument("--outputs", nargs="+", default=["safetensors", "onnx"])
    parser.add_argument("--options", nargs="*", default=[], help="further options of bnfold fold, without their dashes")
    parser.add_argument("-v", "--verbose", action="store_true")
    given = parser.parse_args()
    print("| parameters | model | output | peak, MiB | that of the small one, MiB | bytes a parameter |")
    print("| --- | --- | --- | --- | --- | --- |")
    options = [f"--{option}" for option in given.options]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx = any(source.endswith("onnx") for source in given.sources)
        few = made(folder, NARROW, onnx=onnx)
        for millions in given.millions:
            width = int((millions * 1e6 / LAYERS / 9) ** 0.5)
            many = made(folder, width, onnx=onnx)
            for source in given.sources:
                for output in given.outputs:
                    small = peak(folder, NARROW, source, output, options, given.verbose)
                    large = peak(folder, width, source, output, options, given.verbose)
                    each = (large - small) / (many - few)
                    print(
                        f"| {many / 1e6:,.0f} M | {source} | {output} | {large / 2**20:,.0f} | {small / 2**20:,.0f} | "
                        f"{each:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
