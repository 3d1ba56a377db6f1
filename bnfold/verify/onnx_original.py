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
import onnx_ir as ir
import torch

from bnfold.capture.nests import Leaf
from bnfold.errors import RefusedFileError, UsageError, first_line
from bnfold.files.onnx_file import read_onnx
from bnfold.onnx_graph.constants import FLOATS, array_of, tensor_of, torch_type
from bnfold.verify.onnx_double import DoubleModel, in_double
from bnfold.verify.original import MOVED, Run, finest, moved_by_an_ulp
from bnfold.verify.reference import in_float64
from bnfold.verify.runtime import OrtModel
from bnfold.verify.witness import Witness

__all__ = ["OnnxOriginal", "of_onnx_algebra"]

OWN_DRAW = -1  # the seed of the moved weights whose answer stands for the original's own, where there is no float64
ALL = 1 / 2  # then all weights move, half of them up: what else is rounded on the way has no other part in the floor

_MOVED = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


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
        self._model = _read(model)
        problem = self._session.refuses(example)
        if problem is not None:
            raise UsageError(
                f"The original does not take the example inputs: {problem}.",
                fix="Give inputs of the shapes and dtypes that the ONNX model declares.",
            )
        self.input_names = self._session.input_names
        self.notes: tuple[str, ...] = ()
        self.eps = finest(torch_type(tensor.dtype) for tensor in _weights(self._model) if tensor.dtype in FLOATS)
        self._double: DoubleModel | None = None
        self._known: tuple[tuple[Any, ...], list[Leaf]] = ((), [])  # the example, and what was answered
        self._own: Run | None = None
        self._share = MOVED
        try:
            self._double = DoubleModel(in_double(self._model))
            self._known = tuple(example), self.exact(example)
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
        example, answer = self._known
        if (
            example
            and len(example) == len(inputs)
            and all(one is own for one, own in zip(example, inputs, strict=True))
        ):
            return answer
        return [Leaf(name, value) for name, value in self._double(inputs)]

    def moved(self, seed: int) -> Run:
        """Return the model with some of its weights moved by one unit in the last place."""
        copy = self._model.clone()
        for number, (value, tensor) in enumerate(_held(copy)):
            if tensor.dtype in _MOVED:
                value.const_value = _moved(tensor, seed + number, self._share)
        for number, node in enumerate(copy.graph):
            written = _written(node)
            if written is not None and written.dtype in _MOVED:
                node.attributes["value"] = ir.AttrTensor("value", _moved(written, seed - 1 - number, self._share))
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
    exact = DoubleModel(folding.folded_in_float64())
    return Witness(
        "float64 algebra",
        "fold",
        lambda case: [Leaf(name, value) for name, value in exact(case.inputs)],
        None,
        in_float64=True,
        exported=True,
    )


def _read(model: onnx.ModelProto | Path) -> ir.Model:
    """Return a model that shares its tensors with another, or maps those of a file."""
    if isinstance(model, Path):
        try:
            return read_onnx(model)
        except RefusedFileError as refused:  # what cannot be folded may be compared all the same
            try:
                model = onnx.load(model)
            except Exception:
                raise refused from None
    if model.graph.sparse_initializer:
        raise RefusedFileError(
            "The ONNX model holds sparse weights, which bnfold does not read.", fix="Make them dense first."
        )
    return ir.from_proto(model)


def _held(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """Return the initializers of a model's own graph."""
    values = model.graph.initializers.values()
    return [(value, value.const_value) for value in values if value.const_value is not None]


def _written(node: ir.Node) -> ir.TensorProtocol | None:
    """Return what a ``Constant`` holds as a tensor."""
    value = node.attributes.get("value") if node.op_type == "Constant" else None
    return value.as_tensor() if value is not None and value.type == ir.AttributeType.TENSOR else None


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    written = (_written(node) for node in model.graph)
    return [*(tensor for _, tensor in _held(model)), *(tensor for tensor in written if tensor is not None)]


def _moved(tensor: ir.TensorProtocol, seed: int, share: float) -> ir.LazyTensor:
    """Return a tensor of which some numbers are moved by one unit in the last place, made when it is asked for."""

    def make() -> ir.Tensor[Any]:
        values = tensor_of(tensor.numpy().copy())
        assert values is not None
        return array_of(moved_by_an_ulp(values, torch.Generator().manual_seed(seed % 2**63), share), tensor.dtype)

    return ir.LazyTensor(make, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
