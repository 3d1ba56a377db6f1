"""Right folds under another runtime: how many of a zoo of models it lets pass, as it should all.

    python benchmarks/bench_witness.py [RUNTIME] [COUNT]      (openvino, 60)

Models of timm with random weights and BatchNorm statistics, scales of both signs, at 96x96 or the least that they
take. A row for each: the verdict, and the runtime's error in units of the original's own. ``tests/verify/
calibrate_witness.py`` is the other side: wrong folds, which it must not let pass.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import nn

import bnfold

try:
    from benchmarks import shim
except ImportError:  # run as a script
    import shim  # type: ignore[import-not-found,no-redef]

NAMES = (
    "resnet18 resnet26 resnet34 resnet50 resnetv2_50 wide_resnet50_2 resnext50_32x4d seresnet18 "
    "seresnet50 skresnet18 ecaresnet50t densenet121 densenet169 dpn48b dpn68 vgg11_bn vgg13_bn vgg16_bn "
    "mobilenetv2_050 mobilenetv2_100 mobilenetv3_small_050 mobilenetv3_small_100 mobilenetv3_large_100 "
    "mobilenetv4_conv_small efficientnet_b0 efficientnet_b1 efficientnet_lite0 mnasnet_050 mnasnet_100 "
    "fbnetc_100 spnasnet_100 mixnet_s mixnet_m tinynet_a tinynet_d lcnet_050 lcnet_100 ghostnet_100 "
    "ghostnetv2_100 repghostnet_050 repvgg_a0 repvgg_b0 mobileone_s0 mobileone_s1 repvit_m0_9 fastvit_t8 "
    "regnetx_002 regnetx_004 regnety_002 regnety_004 hrnet_w18_small dla34 dla46_c dla60 selecsls42b "
    "hardcorenas_a gernet_s xception41 inception_v3 darknet53 cspresnet50 cspdarknet53 vovnet39a "
    "ese_vovnet19b_dw levit_128s visformer_tiny edgenext_xx_small semnasnet_075 res2net50_26w_4s "
    "resnest14d rexnet_100"
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


def main() -> None:
    """Measure, and print a row for each model and the sums."""
    runtime = sys.argv[1] if len(sys.argv) > 1 else "openvino"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    shim.load("torchvision")
    print("| model | BatchNorms folded | verdict | floors, ONNX Runtime | floors, runtime | seconds |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    done = passed = 0
    for name in NAMES:
        if done == count:
            break
        begin = time.perf_counter()
        try:
            model = model_of(name)
            images = inputs_of(model)
            folding = bnfold.fold(model, images)
            report = bnfold.verify(model, folding.module, images, folding=folding, witnesses=[runtime])
        except Exception as error:
            print(f"| {name} | | not tried: {type(error).__name__}: {str(error)[:100]} | | | |", flush=True)
            continue
        done += 1
        floors = {c.name: c.floors for c in report.comparisons}
        told = next((f"{value:.2f}" for key, value in floors.items() if key.startswith(runtime)), "-")
        ort = floors.get("ONNX Runtime, optimisations on", float("nan"))
        passed += all(c.passed for c in report.comparisons if c.name.startswith(runtime))
        verdict = "passed" if report.passed else f"{report.verdict}: {report.reason}"
        fold = f"{folding.plan.summary['fold']} of {len(folding.plan)}"
        print(f"| {name} | {fold} | {verdict} | {ort:.2f} | {told} | {time.perf_counter() - begin:.0f} |", flush=True)
    print(f"\n{passed} of {done} right folds pass under {runtime}.")


if __name__ == "__main__":
    main()
