"""Max pooling and negative scales: what folds, what does not, and why.

    python examples/negative_gammas.py

A BatchNorm may move back through a max pool only where its scale is not negative: ``max(a x + b) = a max(x) + b`` holds
for ``a >= 0`` alone. One negative scale among 32 keeps the seed network's BatchNorm from moving; it becomes an explicit
multiplication and addition, exact to the last bit, and the model stays correct.
"""

from __future__ import annotations

import torch
from seed_network import Net, with_negative_gamma

import bnfold


def randomised(seed: int) -> Net:
    """Return a seed network with statistics as training leaves them, all scales positive."""
    torch.manual_seed(seed)
    net = Net().eval()
    net.bn1.register_buffer("running_mean", torch.randn(32) * 0.3)
    net.bn1.register_buffer("running_var", torch.rand(32) * 2 + 0.05)
    with torch.no_grad():
        net.bn1.weight.uniform_(0.5, 1.5)
        net.bn1.bias.normal_(std=0.3)
    return net


def main() -> None:
    """Fold the network with and without a negative scale; print both decisions."""
    images = torch.randn(2, 1, 28, 28)
    for net in (randomised(0), with_negative_gamma(randomised(0))):
        folding = bnfold.fold(net, images)
        bnfold.assert_equivalent(net, folding.module, images)
        decision = folding.plan[0]
        print(f"{decision.batchnorm}: {decision.action}. {decision.detail}")


if __name__ == "__main__":
    main()
