"""Whether ``bnfold fold`` of an .onnx file takes half as long as that of the same network from torch, proofs included.

    python benchmarks/bench_onnx_speed.py [RUNS] [--write]

ResNet-50 with random statistics, as a file of weights with its code, and exported unfolded. The commands run in turn,
each in a process of its own: wall time, and the processor time of one thread, which other work on the machine moves
less. ``benchmarks/zoo.py`` says how to get torchvision.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import shim  # noqa: E402
from benchmarks.networks import with_statistics  # noqa: E402

CODE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import shim
resnet50 = shim.load("torchvision").models.resnet50
"""


def make(folder: Path) -> dict[str, list[str]]:
    """Write the network in both forms; return the arguments of both commands."""
    import onnx

    from bnfold.export.onnx_model import to_onnx

    library = shim.load("torchvision")
    torch.manual_seed(0)
    model = with_statistics(library.models.resnet50()).eval()
    for part in model.modules():
        if hasattr(part, "bn3"):
            torch.nn.init.uniform_(part.bn3.weight, 0.1, 0.3)  # else the sums of sixteen blocks grow
    torch.save(model.state_dict(), folder / "resnet50.pth")
    (folder / "code.py").write_text(CODE, encoding="utf-8")
    onnx.save(to_onnx(model, torch.randn(2, 3, 224, 224), optimize=False), folder / "resnet50.onnx")
    spec = f"{folder / 'code.py'}:resnet50"
    shape = ["--input-shape", "2,3,224,224", "--force", "--report", "-"]
    return {
        "torch": [str(folder / "resnet50.pth"), "--model", spec, "-o", str(folder / "torch.onnx"), *shape],
        "onnx": [str(folder / "resnet50.onnx"), "-o", str(folder / "onnx.onnx"), *shape],
    }


def timed(arguments: list[str], threads: int | None) -> tuple[float, float, dict[str, float]]:
    """Run a command; return wall seconds, processor seconds, and those of its stages."""
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "fold", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    report = json.loads(done.stdout)
    assert report["verification"]["passed"]
    assert report["summary"] == {"fold": 53, "affine": 0, "keep": 0}
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, report["seconds"]


def main() -> None:
    """Measure, and print medians."""
    warnings.simplefilter("ignore")
    runs = next((int(word) for word in sys.argv[1:] if word.isdigit()), 3)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        commands = make(Path(folder))
        for threads in (1, None):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(runs):
                for name, arguments in commands.items():
                    wall, processor, stages = timed(arguments, threads)
                    found[name].append((wall, processor))
                    print(name, threads, round(wall, 1), round(processor, 1), stages, flush=True)
            for place, what in enumerate(("wall", "processor")):
                medians = {name: statistics.median(pair[place] for pair in pairs) for name, pairs in found.items()}
                ratio = statistics.median(
                    one[place] / other[place] for one, other in zip(found["onnx"], found["torch"], strict=True)
                )
                how = "one thread" if threads else "all threads"
                rows.append([f"{what}, {how}", *(f"{medians[n]:.1f}" for n in ("torch", "onnx")), f"{ratio:.2f}"])
    from benchmarks.onnx_results import table, write_section

    text = (
        f"`python benchmarks/bench_onnx_speed.py`: `bnfold fold` of ResNet-50 with its proof, from torch (weights and "
        f"code; traced, exported) and from an unfolded .onnx file; medians of {runs} runs in turn, seconds, on a "
        f"machine that other work shared.\n\n{table(['', 'torch', 'ONNX', 'ONNX / torch'], rows)}"
    )
    print(text)
    if "--write" in sys.argv:
        write_section("The time of a fold with its proof", text)


if __name__ == "__main__":
    main()
