"""Small networks for tests, of every kind that matters, with BatchNorm statistics that hide nothing.

``NETWORKS`` maps a name to a function without arguments that returns ``(model, example_inputs)``: the model in eval
mode, its statistics randomised with signs, the inputs a tuple for a batch of 2. All run in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.resnet import BasicBlock, Bottleneck, ResNet
from examples.seed_network import Net, with_negative_gamma

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Case = tuple[nn.Module, tuple[Tensor, ...]]


def randomise(model: nn.Module, seed: int = 0, *, negative: float = 0.5) -> nn.Module:
    """Give every BatchNorm statistics that no fold can ignore, in place; return the model in eval mode.

    Args:
        model: any module.
        seed: of the generator; torch's own random state is not touched.
        negative: the share of scales that are negative, 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, BATCHNORMS):
                continue
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_(_normal(layer.running_mean, generator, 0.5))
                layer.running_var.copy_(_uniform(layer.running_var, generator, 0.2, 2.0))
            if layer.weight is not None:
                sign = torch.where(_uniform(layer.weight, generator, 0, 1) < negative, -1.0, 1.0)
                layer.weight.copy_(_uniform(layer.weight, generator, 0.5, 1.5) * sign)
                layer.bias.copy_(_normal(layer.bias, generator, 0.5))
    return model.eval()


def _normal(like: Tensor, generator: torch.Generator, std: float) -> Tensor:
    return (torch.randn(like.shape, generator=generator, dtype=torch.float64) * std).to(like.dtype)


def _uniform(like: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    return (torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(like.dtype)


def built(model: Callable[[], nn.Module], *, seed: int = 0, negative: float = 0.5) -> nn.Module:
    """Build a model with weights from ``seed``, randomise its statistics, and leave torch's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = model()
    return randomise(network, seed + 1, negative=negative)


def normal(*shape: int, seed: int = 7) -> Tensor:
    """Standard normal float32 values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Vgg(nn.Module):
    """Blocks of conv -> pool -> BatchNorm -> relu, then flatten and linear; images 3x32x32."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((3, 8), (8, 12), (12, 16)):
            layers += [
                nn.Conv2d(channels_in, channels_out, 3, padding=1),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 4 * 4, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class LeNet(nn.Module):
    """No padding, and a Linear that fits 32x32 alone; with BatchNorm on both sides of the flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16)
        self.fc1, self.bn3 = nn.Linear(16 * 5 * 5, 120), nn.BatchNorm1d(120)
        self.fc2 = nn.Linear(120, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.avg_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = torch.flatten(x, 1)
        return self.fc2(F.relu(self.bn3(self.fc1(x))))


class DenseBlock(nn.Module):
    """BatchNorm before its conv, and after a cat: DenseNet's way."""

    def __init__(self, channels: int = 6, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels + growth * i) for i in range(layers))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + growth * i, growth, 3, padding=1, bias=False) for i in range(layers)
        )
        self.last = nn.BatchNorm2d(channels + growth * layers)
        self.classifier = nn.Linear(channels + growth * layers, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = self.last(torch.cat(features, 1))
        return self.classifier(F.relu(x).mean((2, 3)))


class RepVggBlock(nn.Module):
    """``bn(x) + bn3(conv3(x)) + bn1(conv1(x))``: three branches whose sum is one convolution."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.identity(x) + self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project, add."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        wide = channels * 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide, eps=1e-3),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PreActivation(nn.Module):
    """BatchNorm and relu before each conv, ResNet-v2's way; the BatchNorm reads a sum."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn3(x)), 1).flatten(1))


class SharedConv(nn.Module):
    """One conv called twice; a BatchNorm follows one of the calls alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.tanh(self.bn(self.conv(x))))


class SeveralOutputs(nn.Module):
    """A dict of outputs, one of them read before the BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        before = self.conv(x)
        return {"before": before, "after": self.bn(before)}


class TwoInputs(nn.Module):
    """Two images of different channels, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.bn(self.left(colour)) + self.right(depth)


class BatchStatistics(nn.Module):
    """A BatchNorm without running statistics: it stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def conv1d_net() -> nn.Module:
    """Sounds of one channel, any length."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, stride=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 12, 5, padding=2, padding_mode="reflect"),
        nn.AvgPool1d(2),
        nn.BatchNorm1d(12),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def conv3d_net() -> nn.Module:
    """Volumes of two channels."""
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.MaxPool3d(2),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.Conv3d(6, 6, 1, groups=3),
        nn.BatchNorm3d(6, affine=False),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def perceptron() -> nn.Module:
    """Linear and BatchNorm1d on vectors of 20."""
    return nn.Sequential(
        nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8)
    )


def small_resnet18() -> nn.Module:
    """ResNet-18's plan at an eighth of its width."""
    return ResNet(BasicBlock, [2, 2, 2, 2], classes=10, width=8)


def small_resnet50() -> nn.Module:
    """ResNet-50's plan at an eighth of its width."""
    return ResNet(Bottleneck, [3, 4, 6, 3], classes=10, width=8)


def seed_network(seed: int = 0) -> Net:
    """The seed network, all scales positive, so that its BatchNorm folds through the pool."""
    network = built(Net, seed=seed, negative=0.0)
    assert isinstance(network, Net)
    return network


def seed_network_negative(seed: int = 0) -> Net:
    """The seed network with one negative scale, so that its BatchNorm cannot pass the pool."""
    return with_negative_gamma(seed_network(seed))


NETWORKS: dict[str, Callable[[], Case]] = {
    "seed": lambda: (seed_network(), (normal(2, 1, 28, 28),)),
    "seed-negative": lambda: (seed_network_negative(), (normal(2, 1, 28, 28),)),
    "vgg": lambda: (built(Vgg, negative=0.0), (normal(2, 3, 32, 32),)),
    "vgg-mixed-signs": lambda: (built(Vgg), (normal(2, 3, 32, 32),)),
    "lenet": lambda: (built(LeNet), (normal(2, 1, 32, 32),)),
    "resnet18": lambda: (built(small_resnet18), (normal(2, 3, 64, 64),)),
    "resnet50": lambda: (built(small_resnet50), (normal(2, 3, 64, 64),)),
    "dense": lambda: (built(DenseBlock), (normal(2, 3, 8, 8),)),
    "repvgg": lambda: (built(RepVggBlock), (normal(2, 8, 9, 9),)),
    "inverted-residual": lambda: (built(InvertedResidual), (normal(2, 6, 8, 8),)),
    "pre-activation": lambda: (built(PreActivation), (normal(2, 3, 8, 8),)),
    "shared-conv": lambda: (built(SharedConv), (normal(2, 3, 8, 8),)),
    "several-outputs": lambda: (built(SeveralOutputs), (normal(2, 3, 8, 8),)),
    "two-inputs": lambda: (built(TwoInputs), (normal(2, 3, 8, 8), normal(2, 1, 8, 8, seed=8))),
    "conv1d": lambda: (built(conv1d_net, negative=0.0), (normal(2, 1, 64),)),
    "conv3d": lambda: (built(conv3d_net), (normal(2, 2, 8, 8, 8),)),
    "perceptron": lambda: (built(perceptron), (normal(2, 20),)),
    "batch-statistics": lambda: (built(BatchStatistics), (normal(2, 3, 8, 8),)),
}
