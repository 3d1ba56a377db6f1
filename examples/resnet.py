"""A residual network, folded before it is exported.

    python examples/resnet.py resnet18.onnx

The network is defined here, in the way torchvision defines its own, so that the example needs no download; its
BatchNorms get the statistics of some random images, as training would leave them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        out += identity
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the identity (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels_in, width * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        out += identity
        activated: Tensor = self.relu(out)
        return activated


def _downsample(channels_in: int, channels_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


class ResNet(nn.Module):
    """A stem, four stages of blocks, an average over space, one linear layer; images of shape ``(N, 3, H, W)``."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], classes: int = 1000, width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        stages = []
        for number, count in enumerate(blocks):
            stage = []
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                stage.append(block(channels, width << number, stride))
                channels = (width << number) * block.expansion
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


def calibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """Give every BatchNorm the statistics of ``images`` and scales and shifts of both signs; return it in eval mode."""
    model.train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
                layer.weight.uniform_(-0.5, 1.5)
                layer.bias.normal_(std=0.2)
        model(images)
    return model.eval()


def resnet18() -> nn.Module:
    """Return a ResNet-18 as training would leave it."""
    torch.manual_seed(0)
    return calibrated(ResNet(BasicBlock, [2, 2, 2, 2]), torch.randn(4, 3, 64, 64))


def resnet50() -> nn.Module:
    """Return a ResNet-50 as training would leave it."""
    torch.manual_seed(0)
    return calibrated(ResNet(Bottleneck, [3, 4, 6, 3]), torch.randn(4, 3, 64, 64))


def main() -> None:
    """Fold, verify, export."""
    import bnfold

    parser = argparse.ArgumentParser(description="Fold a ResNet-18 and export what is left to ONNX.")
    parser.add_argument("path", help="where to write the ONNX file")
    path = parser.parse_args().path
    model, images = resnet18(), torch.randn(2, 3, 64, 64)
    folding = bnfold.fold(model, images)
    bnfold.assert_equivalent(model, folding.module, images)
    bnfold.export_onnx(folding.module, path, images)
    print(f"{folding.plan.summary['fold']} of {len(folding.plan)} BatchNorms folded; wrote {path}")


if __name__ == "__main__":
    main()
