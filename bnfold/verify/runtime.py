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

from bnfold.errors import FileAccessError, MissingPackageError, RefusedFileError
from bnfold.export import PROTOBUF_LIMIT, save_onnx, weight_bytes

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["Optimisation", "OrtModel", "require_onnxruntime"]

Optimisation = Literal["off", "full"]


class OrtModel:
    """An ONNX model that is called like the module it was exported from.

    Args:
        model: a ``ModelProto``, or the path of a file.
        optimisation: of ONNX Runtime's graph optimiser.
        threads: how many it may compute with; by default one for each core.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        RefusedFileError: ONNX Runtime does not take the model.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, optimisation: Optimisation, *, threads: int | None = None
    ) -> None:
        require_onnxruntime()
        import onnxruntime

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
        elif weight_bytes(model) < PROTOBUF_LIMIT:
            source = model.SerializeToString()
        else:
            folder = Path(tempfile.mkdtemp(prefix="bnfold-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # the session may map the file
            source = str(save_onnx(model, folder / "model.onnx")[0])
        try:
            self._session: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise RefusedFileError(
                f"ONNX Runtime does not take the model: {_one_line(error)}.", fix="Check the file with onnx.checker."
            ) from error
        self.input_names: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Run on the tensors among ``inputs``, matched by position, and return the outputs on the CPU.

        Raises:
            RuntimeError: ONNX Runtime fails; the message is one line.
        """
        feed = self._feed(inputs)
        try:
            outputs: Sequence[Any] = self._session.run(None, feed)
        except Exception as error:
            raise RuntimeError(_one_line(error)) from error
        return tuple(torch.as_tensor(output) for output in outputs)

    def prepared(self, *inputs: Any) -> Callable[[], object]:
        """Return a call on these inputs that does nothing but run the session: for measuring.

        Raises:
            RuntimeError: the number of inputs is wrong.
        """
        feed, session = self._feed(inputs), self._session
        return lambda: session.run(None, feed)

    def _feed(self, inputs: Sequence[Any]) -> dict[str, Any]:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if len(tensors) != len(self.input_names):
            raise RuntimeError(f"the ONNX model takes {len(self.input_names)} inputs, and {len(tensors)} are given")
        return {name: _to_numpy(value) for name, value in zip(self.input_names, tensors, strict=True)}


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


def _to_numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
