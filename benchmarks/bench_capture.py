"""How long does a capture take, beside torch.fx.symbolic_trace and torch.export.export? One table, as Markdown.

    python benchmarks/bench_capture.py                 # 20 networks that fx cannot trace, 13 that it can: minutes
    python benchmarks/bench_capture.py tf_efficientnet_b0 resnet50

All run in turn in one process, three times (an export once); the least of each counts. A capture here includes no
comparison with the model, as neither of the others does one. Needs timm and torchvision: see ``zoo.py``.
"""

from __future__ import annotations

import fnmatch
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that this runs as a file and as a module
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, fx, nn  # noqa: E402

from benchmarks import shim  # noqa: E402
from bnfold.capture.ways import capture  # noqa: E402

NOT_TRACED = (
    "tf_efficientnet_b0 tf_efficientnet_b1 tf_efficientnet_lite0 tf_efficientnetv2_b0 tf_efficientnetv2_b1 tf_mixnet_s "
    "tf_mixnet_m tf_mobilenetv3_small_075 tf_mobilenetv3_large_075 tf_mobilenetv3_large_100 mobilevit_xxs mobilevit_xs "
    "mobilevitv2_050 mobilevitv2_075 efficientvit_m0 efficientvit_m1 efficientvit_b0 bat_resnext26ts tiny_vit_5m_224 "
    "vgg16_bn"
).split()
TRACED = (
    "resnet50 resnet152 densenet121 mobilenetv2_100 inception_v3 dla34 hrnet_w18_small dpn68 levit_128s halonet26t "
    "edgenext_xx_small repvit_m0_9 csatv2"
).split()
RUNS = 3


def main(names: list[str]) -> None:
    """Print the table for some models of timm, by name."""
    torch.set_num_threads(1)
    timm = shim.load("timm")
    chosen = [name for pattern in names for name in fnmatch.filter(timm.list_models(), pattern)]
    columns = (
        "network",
        "nodes",
        "symbolic_trace, ms",
        "torch.export, ms",
        "capture, ms",
        "of the first",
        "of the second",
    )
    print("| " + " | ".join(columns) + " |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    ratios: dict[str, list[float]] = {"fx": [], "export": []}
    for name in chosen or [*NOT_TRACED, *TRACED]:
        _tried(name, timm, ratios)
    for way, text in (("export", "torch.export, where fx cannot trace"), ("fx", "symbolic_trace, where it can")):
        if ratios[way]:
            middle, worst = statistics.median(ratios[way]), max(ratios[way])
            print(f"\n{len(ratios[way])} networks: {middle:.2f} of {text} (median), at most {worst:.2f}")


def _tried(name: str, timm: Any, ratios: dict[str, list[float]]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name).eval()
            _row(name, model, torch.randn(2, *model.pretrained_cfg.get("input_size", (3, 224, 224))), ratios)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:80]
        print(f"| {name} | | | | {type(error).__name__}: {text} | | |", flush=True)


def _row(name: str, model: nn.Module, x: Tensor, ratios: dict[str, list[float]]) -> None:
    captured = capture(model, x, "recorded", check=False)
    recorded = _least(lambda: capture(model, x, "recorded", check=False))
    traced = exported = None
    try:
        traced = _least(lambda: fx.symbolic_trace(model))
        ratios["fx"].append(recorded / traced)
    except Exception:  # control flow that fx cannot follow
        batch = {0: torch.export.Dim("batch")}
        exported = _least(lambda: torch.export.export(model, (x,), dynamic_shapes=(batch,)), 1)
        ratios["export"].append(recorded / exported)
    cells = [name, str(len(captured.graph.nodes)), _ms(traced), _ms(exported), _ms(recorded)]
    cells += [f"{recorded / other:.2f}" if other else "" for other in (traced, exported)]
    print("| " + " | ".join(cells) + " |", flush=True)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f}"


def _least(run: Callable[[], object], runs: int = RUNS) -> float:
    times = []
    with torch.no_grad():
        for _ in range(runs):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main(sys.argv[1:])
