"""An original that is an ONNX model: run under ONNX Runtime without optimisations, measured against its float64 form.

Where it has none (an operator that the reference implementation of ONNX does not know, such as one of ONNX Runtime's
own), what ONNX Runtime answers in the model's own precision is the oracle, and the noise floor is how far that answer
moves when some of the weights move by one unit in the last place. That is honest about its floor, and blunter: an
error of the oracle's own size is allowed for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from bnfold.capture.nests import Leaf
from bnfold.errors import RefusedFileError, UsageError, first_line
from bnfold.verify.onnx_double import FLOATS, DoubleModel, in_double, named_tensors
from bnfold.verify.original import MOVED, Run, finest, moved_by_an_ulp
from bnfold.verify.reference import in_float64
from bnfold.verify.runtime import OrtModel
from bnfold.verify.witness import Witness

__all__ = ["OnnxOriginal", "of_onnx_algebra"]

OWN_DRAW = -1  # the seed of the moved weights whose answer stands for the original's own, where there is no float64
ALL = 1 / 2  # then all weights move, half of them up: what else is rounded on the way has no other part in the floor

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


class OnnxOriginal:
    """An original that is an ONNX model; see :class:`bnfold.verify.original.Original`.

    Args:
        model: the model, or the path of its file.
        example: inputs that it takes.

    Raises:
        RefusedFileError: it is no ONNX model, or ONNX Runtime does not take it.
        UsageError: it does not take the example.
    """

    module = None

    def __init__(self, model: onnx.ModelProto | Path, example: Sequence[Any]) -> None:
        self._session = OrtModel(model, "off")
        self._model = _read(model) if isinstance(model, Path) else model
        problem = self._session.refuses(example)
        if problem is not None:
            raise UsageError(
                f"The original does not take the example inputs: {problem}.",
                fix="Give inputs of the shapes and dtypes that the ONNX model declares.",
            )
        self.input_names = self._session.input_names
        self.notes: tuple[str, ...] = ()
        self.eps = finest(
            _DTYPES[tensor.data_type] for tensor in named_tensors(self._model.graph) if tensor.data_type in _DTYPES
        )
        self._double: DoubleModel | None = None
        self._own: Run | None = None
        self._share = MOVED
        try:
            self._double = DoubleModel(in_double(self._model))
            self.exact(example)
            self.notes = (self._double.engines_in_words(),)
        except Exception as error:
            self._double, self._share = None, ALL
            self._own = self.moved(OWN_DRAW)
            reason = first_line(error, 150)
            self.notes = (
                f"The original has no float64 form ({reason}): ONNX Runtime's answer in its own precision is the "
                "oracle, and how far that moves with the last place of the weights is the noise floor.",
            )

    @property
    def has_float64(self) -> bool:
        """Whether its oracle computes in float64."""
        return self._double is not None

    def run(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in the model's own precision."""
        return self._leaves(self._session, inputs) if self._own is None else self._own(inputs)

    def exact(self, inputs: Sequence[Any]) -> list[Leaf]:
        """Answer in float64 throughout, or else as it is, to be compared in float64."""
        if self._double is None:
            return [Leaf(leaf.name, in_float64(leaf.value)) for leaf in self._leaves(self._session, inputs)]
        return [Leaf(name, value) for name, value in self._double(inputs)]

    def moved(self, seed: int) -> Run:
        """Return the model with some of its weights moved by one unit in the last place."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        for tensor in named_tensors(copy.graph):
            if tensor.data_type in FLOATS and tensor.data_type != onnx.TensorProto.BFLOAT16:
                values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
                tensor.CopyFrom(
                    numpy_helper.from_array(moved_by_an_ulp(values, generator, self._share).numpy(), tensor.name)
                )
        session = OrtModel(copy, "off")
        return lambda inputs: self._leaves(session, inputs)

    @staticmethod
    def _leaves(session: OrtModel, inputs: Sequence[Any]) -> list[Leaf]:
        return [Leaf(name, value) for name, value in zip(session.output_names, session(*inputs), strict=True)]


def of_onnx_algebra(folding: Any) -> Witness:
    """Return the witness of a plan applied to an ONNX model in float64.

    Args:
        folding: a :class:`bnfold.onnx_graph.api.OnnxFolding` of an original that has a float64 form.
    """
    exact = DoubleModel(folding.in_float64()[1])
    return Witness(
        "float64 algebra",
        "fold",
        lambda case: [Leaf(name, value) for name, value in exact(case.inputs)],
        None,
        in_float64=True,
        exported=True,
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:
        raise RefusedFileError(
            f"{path} cannot be read as an ONNX model: {first_line(error)}.",
            fix="Check the file with onnx.checker, and that its .data file lies beside it.",
        ) from error
