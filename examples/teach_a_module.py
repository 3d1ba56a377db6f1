"""Teach bnfold two modules of your own: a pooling that affines pass, and a normalisation that is a BatchNorm.

python examples/teach_a_module.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold import extend


class BlurPool(nn.Module):
    """Blurs and halves. The borders are reflected, so the weights of every window sum to 1."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=x.shape[1])


class BatchRenorm(nn.Module):
    """Batch Renormalization (arXiv:1702.03275). What it does in training is left out; deployed, it is a BatchNorm."""

    mu: Tensor
    sigma: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("sigma", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        normal = (x - self.mu.view(shape)) / self.sigma.view(shape)
        return normal * self.gamma.view(shape) + self.beta.view(shape)


def renorm(layer: BatchRenorm) -> bnfold.ChannelAffine:
    """Its affine, in float64."""
    scale = layer.gamma.detach().double() / layer.sigma.double()
    return bnfold.ChannelAffine(scale, layer.beta.detach().double() - layer.mu.double() * scale)


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), BlurPool(8), BatchRenorm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), BlurPool(8), nn.BatchNorm2d(8)
    )
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, BatchRenorm):
                layer.mu.normal_()
                layer.sigma.uniform_(0.5, 2)
    return model.eval()


def main() -> None:
    model, images = make(), torch.randn(2, 3, 32, 32)

    extend.passes(BlurPool)
    extend.batchnorm(BatchRenorm, renorm)

    folding = bnfold.fold(model, images)
    for decision in folding.plan:
        print(decision.detail)
    bnfold.assert_equivalent(model, folding.module, images, onnx=True)
    print("equivalent")


if __name__ == "__main__":
    main()
