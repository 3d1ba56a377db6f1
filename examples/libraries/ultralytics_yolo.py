"""A YOLO of ultralytics, folded before its export, beside what its own ``fuse()`` makes of it.

    pip install bnfold ultralytics
    python examples/libraries/ultralytics_yolo.py [CONFIGURATION ...]      (yolov8n.yaml)

The networks are built from their configurations, with random weights: nothing is fetched. With yours it is
``YOLO("best.pt").model``. ``fuse()`` folds a BatchNorm into the convolution right before it, which is all that there is
in most of these networks; here the result is proved as well, and ``--bench`` measures both.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor, nn
from ultralytics import YOLO

import bnfold


def network(configuration: str) -> nn.Module:
    """Return a network in eval mode whose BatchNorms are not the identity."""
    torch.manual_seed(0)
    model: nn.Module = YOLO(configuration).model
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def batchnorms(model: nn.Module) -> int:
    """Return how many BatchNorms a model holds."""
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


def first(answer: object) -> Tensor:
    """Return the predictions: the first tensor of the answer."""
    while not isinstance(answer, Tensor):
        answer = next(iter(answer.values() if isinstance(answer, dict) else answer))  # type: ignore[call-overload]
    return answer


def main() -> None:
    """Fold each network, prove it, and set it beside fuse()."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configurations", nargs="*", default=["yolov8n.yaml"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--bench", action="store_true", help="in CPU time, one thread")
    options = parser.parse_args()
    for configuration in options.configurations:
        model, images = network(configuration), torch.rand(2, 3, options.size, options.size)
        before = batchnorms(model)
        folding = bnfold.fold(model, images)
        report = bnfold.verify(model, folding.module, images, onnx=False, folding=folding)
        fused = copy.deepcopy(model).fuse(verbose=False).eval()  # type: ignore[operator]
        with torch.no_grad():
            exact = first(copy.deepcopy(model).double()(images.double()))
            errors = [
                float((first(one(images)) - exact).abs().max() / exact.abs().max()) for one in (folding.module, fused)
            ]
        print(
            f"{configuration}: {folding.plan.summary['fold']} of {before} BatchNorms folded, "
            f"{'equivalent' if report.passed else report}; error of the peak: bnfold {errors[0]:.1e}, "
            f"fuse() {errors[1]:.1e}, which leaves {batchnorms(fused)}"
        )
        if options.bench:
            from bnfold.bench.api import bench

            found = bench(
                fused, folding.module, images[:1], targets=["eager", "onnxruntime"], threads=1, seconds=4, clock="cpu"
            )
            for timing in found.timings:
                span = f"{timing.low:.3f} to {timing.high:.3f}"
                print(f"  {timing.target}: bnfold is {timing.speedup:.3f}x as fast as fuse() ({span})")
            for skipped in found.skipped:
                print(f"  {skipped.target}: {skipped.reason}")


if __name__ == "__main__":
    main()
