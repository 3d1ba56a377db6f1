"""Right folds under another runtime: how many of a zoo of models it lets pass, as it should all.

    python benchmarks/bench_witness.py [RUNTIME] [COUNT]      (openvino, 60)

Models of timm with random weights and BatchNorm statistics, scales of both signs, at 96x96 or the least that they
take. A record for each goes to ``benchmarks/results/witness_RUNTIME.jsonl``: the verdict, and the error of the
runtime in units of the original's own. Run again, it goes on where it stopped.
``tests/verify/calibrate_witness.py`` is the other side: wrong folds, which it must not let pass.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnfold

try:
    from benchmarks import shim
except ImportError:  # run as a script
    import shim  # type: ignore[import-not-found,no-redef]

NAMES = (  # small ones first
    "lcnet_050 ese_vovnet19b_dw lcnet_100 resnet18 seresnet18 resnest14d "
    "mobilenetv3_small_050 tinynet_d mobilenetv3_small_100 visformer_tiny hardcorenas_a resnet26 regnetx_002 "
    "regnety_002 skresnet18 dla46_c mobilenetv4_conv_small mobilenetv3_large_100 semnasnet_075 dla34 mixnet_s "
    "gernet_s efficientnet_lite0 mobilenetv2_050 mnasnet_050 efficientnet_b0 mobilenetv2_100 mnasnet_100 "
    "regnety_004 resnet34 levit_128s vovnet39a mixnet_m dpn48b tinynet_a rexnet_100 spnasnet_100 repvgg_a0 "
    "fbnetc_100 selecsls42b fastvit_t8 resnetv2_50 regnetx_004 cspresnet50 efficientnet_b1 resnext50_32x4d "
    "resnet50 ecaresnet50t seresnet50 dpn68 dla60 ghostnet_100 darknet53 cspdarknet53 repvgg_b0 mobileone_s1 "
    "hrnet_w18_small res2net50_26w_4s xception41 repvit_m0_9 repghostnet_050 inception_v3 wide_resnet50_2 "
    "ghostnetv2_100 densenet121 vgg11_bn vgg13_bn vgg16_bn densenet169 mobileone_s0"
).split()


def model_of(name: str) -> nn.Module:
    """Return a model with statistics that are not the identity."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name)
    for part in model.modules():
        variance: Any = getattr(part, "running_var", None)
        if variance is not None:
            variance.uniform_(0.5, 2.0)
            part.running_mean.normal_(0, 0.5)  # type: ignore[operator]
            if isinstance(part.weight, nn.Parameter):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                part.weight.data[::7] *= -1
    return model.eval()


def inputs_of(model: nn.Module) -> torch.Tensor:
    """Return a batch of two that the model takes."""
    for size in (96, 160, 224, 299):
        images = torch.randn(2, 3, size, size)
        try:
            with torch.no_grad():
                model(images)
        except Exception:
            continue
        return images
    raise RuntimeError("takes no size that was tried")


def measured(name: str, runtime: str) -> dict[str, Any]:
    """Fold one model, verify it under the runtime too, and return the record."""
    begin = time.perf_counter()
    model = model_of(name)
    images = inputs_of(model)
    folding = bnfold.fold(model, images)
    report = bnfold.verify(model, folding.module, images, folding=folding, witnesses=[runtime])
    mine = [comparison for comparison in report.comparisons if comparison.name.startswith(runtime)]
    floors = {comparison.name: comparison.floors for comparison in report.comparisons}
    return {
        "model": name,
        "batchnorms": len(folding.plan),
        "folded": folding.plan.summary["fold"],
        "verdict": "passed" if report.passed else f"{report.verdict}: {report.reason}",
        "compared": len(mine),
        "passed": bool(mine) and all(comparison.passed for comparison in mine),
        "floors_onnxruntime": floors.get("ONNX Runtime, optimisations on"),
        "floors_runtime": max((comparison.floors for comparison in mine), default=None),
        "seconds": round(time.perf_counter() - begin),
    }


def table(records: list[dict[str, Any]], runtime: str) -> str:
    """Return the records as a table in Markdown, with the sum below it."""
    lines = [
        "| model | BatchNorms folded | verdict | floors, ONNX Runtime | floors, runtime |",
        "| --- | --- | --- | --- | --- |",
    ]
    tried = [record for record in records if "error" not in record]
    for record in tried:
        floors = " | ".join(
            "-" if record[key] is None else f"{record[key]:.2f}" for key in ("floors_onnxruntime", "floors_runtime")
        )
        folds = f"{record['folded']} of {record['batchnorms']}"
        lines.append(f"| {record['model']} | {folds} | {record['verdict']} | {floors} |")
    lines += ["", f"{sum(record['passed'] for record in tried)} of {len(tried)} right folds pass under {runtime}."]
    lines += [f"Not tried: {record['model']}: {record['error']}." for record in records if "error" in record]
    return "\n".join(lines)


def main() -> None:
    """Measure what has no record yet, and print the table."""
    runtime = sys.argv[1] if len(sys.argv) > 1 else "openvino"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    path = Path(__file__).parent / "results" / f"witness_{runtime}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    shim.load("torchvision")
    for name in NAMES:
        if sum("error" not in record for record in records) >= count:
            break
        if any(record["model"] == name for record in records):
            continue
        try:
            record = measured(name, runtime)
        except Exception as error:
            record = {"model": name, "error": f"{type(error).__name__}: {str(error)[:100]}"}
        records.append(record)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    print(table(records, runtime))


if __name__ == "__main__":
    main()
