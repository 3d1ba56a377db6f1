"""timm's ``reparameterize_model``, which knows each of its models, beside ``merge=True``, which reads the graph.

    pip install bnfold timm
    python examples/libraries/timm_reparameterize.py [MODEL ...]      (repvgg_a0 mobileone_s0)

Random weights and statistics: nothing is fetched.
"""

from __future__ import annotations

import sys
from typing import Any

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

import bnfold


def network(name: str) -> nn.Module:
    """Return a model in its training form, in eval mode, whose BatchNorms are not the identity."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def convolutions(model: nn.Module) -> int:
    """Return how many convolutions a model calls."""
    return sum(isinstance(part, nn.Conv2d) for part in model.modules())


def main(names: list[str]) -> None:
    """Compare the two for each model."""
    for name in names:
        model, images = network(name), torch.randn(2, 3, 64, 64)
        theirs = reparameterize_model(model).eval()
        folding = bnfold.fold(model, images, merge=True)
        bnfold.assert_equivalent(model, folding.module, images)
        merged = sum(merge.action == "merge" for merge in folding.plan.merges)
        graph: Any = folding.module
        called = [graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module"]
        ours = sum(isinstance(layer, nn.Conv2d) for layer in called)
        print(
            f"{name}: {convolutions(model)} convolutions before; {convolutions(theirs)} after reparameterize_model, "
            f"{ours} after merge=True ({merged} merges); equivalent"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["repvgg_a0", "mobileone_s0"])
