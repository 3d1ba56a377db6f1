"""A model under a witness in a process of its own, with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import WitnessError
from bnfold.witness.registry import extra_of, find

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["SECONDS", "Session", "as_file"]

SECONDS = 300.0
"""How long a witness may take to load a model, and for each answer."""

_ROOT = str(Path(__file__).resolve().parents[2])


class Session:
    """An ONNX model under a witness.

    Args:
        witness: its name, or ``package.module:function``.
        model: path of the ONNX file.
        seconds: how long it may take to load, and for each answer.

    Raises:
        UsageError: there is no such witness.
        WitnessError: it does not take the model.
    """

    def __init__(self, witness: str, model: Path, *, seconds: float = SECONDS) -> None:
        self._witness, self._seconds = witness, seconds
        self._folder = Path(tempfile.mkdtemp(prefix="bnfold-"))
        self._tidy = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        value = find(witness).value
        path = os.pathsep.join(filter(None, (_ROOT, *sys.path)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bnfold.witness.child", value, str(model.resolve()), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # so that what it starts ends with it, and an interrupt is this process's
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._answer()

    def __call__(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Return the outputs, in the order of the file.

        Args:
            inputs: arrays by the names of the file's inputs.

        Raises:
            WitnessError: there are none; the session is over.
        """
        import numpy as np

        arrays = {str(place): array for place, array in enumerate(inputs.values())}
        np.savez(self._folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer that does not come tells how
            self._process.stdin.write(json.dumps(list(inputs)).encode() + b"\n")
            self._process.stdin.flush()
        count = self._answer()["outputs"]
        with np.load(self._folder / "outputs.npz") as found:
            return [found[str(place)] for place in range(count)]

    def close(self) -> None:
        """End the process and remove its files."""
        self._end()
        self._tidy()

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        if not line.endswith(b"\n"):
            self._process.wait(10)
            self.close()
            raise self._failed(f"its process ended with {_how(self._process.returncode)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise self._failed(_reason(answer, self._witness))
        return answer

    def _failed(self, reason: str) -> WitnessError:
        fix = f"Compare without --witness {self._witness}, or try the file under it alone."
        return WitnessError(f"The witness {self._witness} fails: {reason}.", fix=fix)

    def _line(self) -> bytes:
        """Return the next line of the process, or what there is of it where the process ends."""
        assert self._process.stdout is not None
        found, until = b"", time.monotonic() + self._seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(0.0, until - time.monotonic())):
                    self.close()
                    raise self._failed(f"it gave no answer within {self._seconds:g} seconds and was ended")
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    break
                found += part
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"{signal.Signals(-code).name}"
    return f"code {code}"


def _reason(answer: Mapping[str, Any], witness: str) -> str:
    if answer.get("missing") and answer["error"].startswith("No module named"):
        return f"the package {answer['missing']} is not installed (`pip install {extra_of(witness)}`)"
    reason: str = answer["error"].rstrip(".")
    return reason


@contextlib.contextmanager
def as_file(model: onnx.ModelProto | Path) -> Iterator[Path]:
    """Have an ONNX model as a file while the context lasts."""
    if isinstance(model, Path):
        yield model
        return
    from bnfold.export import save_onnx

    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        yield save_onnx(model, Path(folder, "model.onnx"))[0]
