"""A network of segmentation_models_pytorch, folded, proved and exported.

    pip install bnfold segmentation-models-pytorch
    python examples/libraries/segmentation.py [ARCHITECTURE ...]      (Unet FPN)

Random weights: nothing is fetched.
"""

from __future__ import annotations

import sys

import segmentation_models_pytorch
import torch
from torch import nn

import bnfold


def network(architecture: str) -> nn.Module:
    """Return a network in eval mode whose BatchNorms are not the identity."""
    torch.manual_seed(0)
    make = getattr(segmentation_models_pytorch, architecture)
    model: nn.Module = make(encoder_name="resnet18", encoder_weights=None, classes=2)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def main(architectures: list[str]) -> None:
    """Fold each and prove it."""
    for architecture in architectures:
        model, images = network(architecture), torch.randn(2, 3, 64, 64)
        folding = bnfold.fold(model, images)
        bnfold.assert_equivalent(model, folding.module, images)
        print(f"{architecture}: {folding.plan.summary['fold']} of {len(folding.plan)} BatchNorms folded, equivalent")


if __name__ == "__main__":
    main(sys.argv[1:] or ["Unet", "FPN"])
