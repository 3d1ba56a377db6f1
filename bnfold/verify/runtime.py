"""ONNX models run under ONNX Runtime, with its graph optimiser off and at full.

``DISABLE_ALL`` shows what the export computes; ``ENABLE_ALL`` is what is deployed, and has its own bugs.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bnfold.errors import FileAccessError, MissingPackageError, RefusedFileError, first_line
from bnfold.export import PROTOBUF_LIMIT, save_onnx, weight_bytes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import onnxruntime

__all__ = ["MAPPED", "NoKernelError", "Optimisation", "OrtModel", "require_onnxruntime"]

Optimisation = Literal["off", "full"]

MAPPED = 1 << 26
"""Bytes of weights from which on a model is given to ONNX Runtime as a file, which it maps."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(complex64)": "complex64",
    "tensor(complex128)": "complex128",
}


class NoKernelError(RefusedFileError):
    """ONNX Runtime has no kernel for an operator in the model's precision, as for most of them in bfloat16."""


class OrtModel:
    """An ONNX model that is called like the module it was exported from.

    Args:
        model: a model, or the path of a file.
        optimisation: of ONNX Runtime's graph optimiser.
        threads: how many it may compute with; by default one for each core.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        RefusedFileError: ONNX Runtime does not take the model.
    """

    def __init__(
        self, model: onnx.ModelProto | ir.Model | Path, optimisation: Optimisation, *, threads: int | None = None
    ) -> None:
        require_onnxruntime()
        import onnx
        import onnxruntime

        from bnfold.files.onnx_file import weight_bytes as weights_of

        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = {"off": levels.ORT_DISABLE_ALL, "full": levels.ORT_ENABLE_ALL}[optimisation]
        options.log_severity_level = 4  # fatal only: its warnings go to stderr past Python
        if threads is not None:
            options.intra_op_num_threads = threads
        source: bytes | str
        if isinstance(model, Path):
            if not model.is_file():
                raise FileAccessError(f"There is no file {model}.", fix="Give the path of an .onnx file.")
            source = str(model)
        elif isinstance(model, onnx.ModelProto):
            source = model.SerializeToString() if weight_bytes(model) < PROTOBUF_LIMIT else self._written(model)
        else:
            source = self._written(model) if weights_of(model) >= MAPPED else _serialised(model)
        try:
            self._session: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error) or "bfloat16" in str(error):  # Conv takes bfloat16 from opset 22 on
                raise NoKernelError(
                    f"ONNX Runtime does not take the model, for want of a kernel: {first_line(error, 300)}.",
                    fix="Write a .pt2, or convert a float32 model; --no-verify leaves the proof to you.",
                ) from error
            raise RefusedFileError(
                f"ONNX Runtime does not take the model: {first_line(error, 300)}.",
                fix="Check the file with onnx.checker.",
            ) from error
        self._inputs: tuple[Any, ...] = tuple(self._session.get_inputs())
        self.input_names: tuple[str, ...] = tuple(node.name for node in self._inputs)
        self.output_names: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def _written(self, model: onnx.ModelProto | ir.Model) -> str:
        """Write a large model to a folder that goes with this object: the session maps its weights."""
        import onnx

        folder = Path(tempfile.mkdtemp(prefix="bnfold-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = folder / "model.onnx"
        if isinstance(model, onnx.ModelProto):
            save_onnx(model, path)
        else:
            import onnx_ir

            onnx_ir.save(model, path, external_data=f"{path.name}.data")
        return str(path)

    @property
    def declared(self) -> list[tuple[str, torch.dtype, list[int | str | None]]]:
        """Name, dtype and shape of each input, as the model declares them."""
        return [
            (node.name, getattr(torch, _DTYPES.get(node.type, "float32")), list(node.shape or ()))
            for node in self._inputs
        ]

    def refuses(self, inputs: Sequence[Any], names: Sequence[str] = ()) -> str | None:
        """Return why the model does not take ``inputs``, by what it declares; None if it takes them.

        Args:
            inputs: positional inputs.
            names: theirs, for matching by name; see :meth:`__call__`.
        """
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if len(tensors) != len(self._inputs):
            have, given = counted(len(self._inputs), "input"), len(tensors)
            listed = f" ({', '.join(self.input_names)})" if self.input_names else ""
            return f"the ONNX model takes {have}{listed}, and {given} {'is' if given == 1 else 'are'} given"
        for node, tensor in zip(self._inputs, self._ordered(inputs, names), strict=True):
            dtype = _DTYPES.get(node.type, node.type)
            if dtype != str(tensor.dtype).removeprefix("torch."):
                return f"its input `{node.name}` is {dtype}, and {str(tensor.dtype).removeprefix('torch.')} is given"
            declared, shape = list(node.shape or ()), list(tensor.shape)
            fits = len(declared) == len(shape) and all(
                not isinstance(want, int) or want == have for want, have in zip(declared, shape, strict=True)
            )
            if not fits:
                told = "x".join("?" if want is None else str(want) for want in declared) or "a scalar"
                return f"its input `{node.name}` is declared as {told}, and {'x'.join(map(str, shape))} is given"
        return None

    def _ordered(self, inputs: Sequence[Any], names: Sequence[str]) -> list[Tensor]:
        """Return the tensors among ``inputs`` in the order in which the model takes them."""
        named = list(zip(names, inputs, strict=False)) if len(names) >= len(inputs) else []
        known = {name: value for name, value in named if isinstance(value, Tensor)}
        if known.keys() == set(self.input_names):
            return [known[name] for name in self.input_names]
        return [value for value in inputs if isinstance(value, Tensor)]

    def __call__(self, *inputs: Any, names: Sequence[str] = ()) -> tuple[Tensor, ...]:
        """Run on the tensors among ``inputs`` and return the outputs on the CPU.

        Args:
            inputs: positional inputs; those that are no tensors are left out.
            names: theirs. Where the names of the tensors are the model's own, they are matched by name, in whatever
                order it has them; otherwise by position.

        Raises:
            RuntimeError: ONNX Runtime fails; the message is one line.
        """
        feed = self.feed(inputs, names)
        try:
            outputs: Sequence[Any] = self._session.run(None, feed)
        except Exception as error:
            raise RuntimeError(first_line(error, 300)) from error
        return tuple(torch.as_tensor(output) for output in outputs)

    def prepared(self, *inputs: Any) -> Callable[[], object]:
        """Return a call on these inputs that does nothing but run the session: for measuring.

        Raises:
            RuntimeError: the model does not take them.
        """
        feed, session = self.feed(inputs), self._session
        return lambda: session.run(None, feed)

    def feed(self, inputs: Sequence[Any], names: Sequence[str] = ()) -> dict[str, Any]:
        """Return the arrays that a session takes, by input name.

        Raises:
            RuntimeError: the model does not take them.
        """
        problem = self.refuses(inputs, names)
        if problem is not None:
            raise RuntimeError(problem)
        ordered = self._ordered(inputs, names)
        return {name: _to_numpy(value) for name, value in zip(self.input_names, ordered, strict=True)}


def _serialised(model: ir.Model) -> bytes:
    import onnx_ir

    serialised: bytes = onnx_ir.to_proto(model).SerializeToString()
    return serialised


def require_onnxruntime() -> None:
    """Raise unless ONNX Runtime is installed.

    Raises:
        MissingPackageError: it is not, with what works without it.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingPackageError(
            "Comparing an ONNX export needs the package onnxruntime, which is not installed.",
            fix="Run `pip install onnxruntime`, or compare in torch alone with onnx=False.",
        )


def counted(number: int, noun: str) -> str:
    """Return ``1 input``, ``2 inputs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _to_numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()
