"""Static int8 quantisation by ONNX Runtime, of the model as it was trained and of the folded one: which is closer?

    python examples/quantise.py [FOLDER]

The network is the seed network, trained on scikit-learn's digits. A max pool stands between its convolution and its
BatchNorm, so a quantiser finds no pair to fold by itself: unfolded, the BatchNorm's input and output are quantised
too. Both models are calibrated on the same digits and compared with the float32 model on digits that training did not
see.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from seed_network import digits, train
from torch import nn

import bnfold
from bnfold.export import to_onnx


class Digits(CalibrationDataReader):  # type: ignore[misc]
    """What the quantiser calibrates on: batches of images."""

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        self.batches = iter(np.array_split(images, 10))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


def quantised(model: nn.Module, images: torch.Tensor, folder: Path, name: str) -> onnxruntime.InferenceSession:
    """Return a session of the model in int8: weights for each channel, activations for each tensor."""
    plain, small = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    exported = to_onnx(model, images[:2], optimize=False)  # the exporter folds nothing by itself
    plain.write_bytes(exported.SerializeToString())
    quantize_static(
        plain,
        small,
        Digits(images.numpy()),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])


def main(folder: Path) -> dict[str, float]:
    """Quantise both, print the errors, and return them: the root mean square, as a part of that of the scores."""
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends to preprocess
    model, _ = train(epochs=2)
    images, classes = digits()
    torch.manual_seed(0)
    order = torch.randperm(len(images))  # as the training shuffled them: it saw the first 1,500
    calibration, unseen, labels = images[order[:200]], images[order[1500:]], classes[order[1500:]]
    folding = bnfold.fold(model, unseen[:2])
    assert folding.plan.summary["fold"] == 1, folding.plan
    with torch.no_grad():
        exact = model(unseen).numpy()
    errors = {}
    for name, one in (("as trained", model), ("folded", folding.module)):
        scores = quantised(one, calibration, folder, name.replace(" ", "-")).run(None, {"x": unseen.numpy()})[0]
        errors[name] = float(np.sqrt(np.mean((scores - exact) ** 2) / np.mean(exact**2)))
        right = float(np.mean(scores.argmax(1) == labels.numpy()))
        print(f"{name:10}  int8 error {errors[name]:.4f} of the scores, {right:.1%} of unseen digits right")
    return errors


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
