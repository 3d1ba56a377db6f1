"""int8 by PT2E, torch's own quantisation of exported programs, of the model as it was trained and of the folded one.

    python examples/quantise_pt2e.py      (needs torchao)

The network, the digits and the error are those of ``quantise.py``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch
from seed_network import digits, train
from torch import Tensor, nn

import bnfold


def quantised(model: nn.Module, calibration: Tensor) -> Any:
    """Return the model in int8 for torchao's x86 backend: weights for each channel, activations for each tensor."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (calibration[:2],), dynamic_shapes=({0: batch},), strict=False)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported.module(), quantizer)
    for images in torch.split(calibration, 20):
        prepared(images)
    return convert_pt2e(prepared)


def main() -> dict[str, float]:
    """Quantise both, print the errors, and return them: the root mean square, as a part of that of the scores."""
    model, _ = train(epochs=2)
    images, classes = digits()
    torch.manual_seed(0)
    order = torch.randperm(len(images))  # as the training shuffled them: it saw the first 1,500
    calibration, unseen, labels = images[order[:200]], images[order[1500:]], classes[order[1500:]]
    folding = bnfold.fold(model, unseen[:2])
    assert folding.plan.summary["fold"] == 1, folding.plan
    errors = {}
    with torch.no_grad():
        exact = model(unseen)
        for name, one in (("as trained", model), ("folded", folding.module)):
            program = quantised(one, calibration)
            scores = program(unseen)
            errors[name] = float(((scores - exact).square().mean() / exact.square().mean()).sqrt())
            right = float((scores.argmax(1) == labels).double().mean())
            left = sum("batch_norm" in str(node.target) for node in program.graph.nodes)
            print(
                f"{name:10}  int8 error {errors[name]:.4f} of the scores, {right:.1%} of unseen digits right, "
                f"{left} BatchNorm in float32"
            )
    return errors


if __name__ == "__main__":
    try:
        import torchao  # noqa: F401
    except ImportError:
        sys.exit("This example needs the package torchao, which is not installed. Run `pip install torchao`.")
    logging.disable(logging.WARNING)  # torch and torchao tell of their own affairs
    warnings.simplefilter("ignore")
    main()
