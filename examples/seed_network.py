"""The network of the question this project answers, trained for some seconds and saved whole.

    python examples/seed_network.py demo/model.pt

    fc1(relu(bn1(pool(conv1(x)))))

Between the convolution and its BatchNorm stands a max pool, so the usual folders leave it. It folds whenever no scale
of the BatchNorm is negative, which is what training leaves here; ``--negative-gamma`` turns one round afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """``fc1(relu(bn1(pool(conv1(x)))))`` on images of shape ``(N, 1, 28, 28)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.bn1 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * 14 * 14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.pool(self.conv1(x))))
        x = x.view(-1, 32 * 14 * 14)
        scores: Tensor = self.fc1(x)
        return scores


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1,797 handwritten digits as ``(N, 1, 28, 28)`` in 0..1, and their classes, ``(N,)``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    return images, torch.tensor(bunch.target, dtype=torch.long)


def train(epochs: int = 4, seed: int = 0) -> tuple[Net, float]:
    """Train a Net from a fixed seed; return it in eval mode with its accuracy on digits that it did not see."""
    from rich.console import Console
    from rich.progress import track

    torch.manual_seed(seed)
    images, classes = digits()
    order = torch.randperm(len(images))
    seen, unseen = order[:1500], order[1500:]
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    batches = [batch for _ in range(epochs) for batch in torch.split(seen[torch.randperm(len(seen))], 50)]
    for batch in track(batches, "Training the seed network", console=Console(stderr=True), transient=True):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(images[batch]), classes[batch]))
        optimizer.step()
    net.eval()
    with torch.no_grad():
        accuracy = (net(images[unseen]).argmax(1) == classes[unseen]).double().mean().item()
    if not bool((net.bn1.weight > 0).all()):
        raise RuntimeError("training left a negative scale in bn1, so this network would not show the fold")
    return net, accuracy


def with_negative_gamma(net: Net, channel: int = 3) -> Net:
    """Turn the sign of one scale of ``bn1``: max pooling then no longer lets the BatchNorm pass."""
    with torch.no_grad():
        net.bn1.weight[channel] *= -1
    return net


def main() -> None:
    """Train, save the whole pickled module, and say how good it is."""
    parser = argparse.ArgumentParser(description="Train the seed network and save it as a whole pickled module.")
    parser.add_argument("path", type=Path, help="where to save it, for example demo/model.pt")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--negative-gamma", action="store_true", help="turn the sign of one scale of bn1")
    options = parser.parse_args()
    net, accuracy = train(options.epochs, options.seed)
    if options.negative_gamma:
        net = with_negative_gamma(net)
    options.path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net, options.path)
    print(
        f"saved {options.path}: {accuracy:.1%} of 297 unseen digits right, scales of bn1 from "
        f"{net.bn1.weight.min():.3f} to {net.bn1.weight.max():.3f}"
    )


if __name__ == "__main__":
    main()
