"""Witnesses for tests: one that is right, and each way to go wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from bnfold.witness.registry import Run

__all__ = ["bends", "crashes", "crashes_on_load", "floods", "hangs", "leaves", "prints", "refuses", "right"]


def right(path: str, *, threads: int | None = None) -> Run:
    """ONNX Runtime, in a process apart."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _after(path: str, happens: Callable[[], Any]) -> Run:
    run = right(path)

    def then(inputs: dict[str, Any]) -> Any:
        happens()
        return run(inputs)

    return then


def crashes(path: str, *, threads: int | None = None) -> Run:
    return _after(path, lambda: os.kill(os.getpid(), signal.SIGSEGV))


def crashes_on_load(path: str, *, threads: int | None = None) -> Run:
    os.abort()


def hangs(path: str, *, threads: int | None = None) -> Run:
    return _after(path, lambda: time.sleep(600))


def leaves(path: str, *, threads: int | None = None) -> Run:
    """Ends its process as a library that meets a fatal error would, without an exception."""
    return _after(path, lambda: os._exit(3))


def refuses(path: str, *, threads: int | None = None) -> Run:
    raise ValueError("no kernel for this,\nand more lines")


def prints(path: str, *, threads: int | None = None) -> Run:
    os.write(1, b'{"ready": true}\n{"outputs": 7}\n')
    return _after(path, lambda: os.write(1, b"busy\n"))


def floods(path: str, *, threads: int | None = None) -> Run:
    return _after(path, lambda: os.write(2, b"x" * 1_000_000))


def bends(path: str, *, threads: int | None = None) -> Run:
    """A runtime that is wrong by itself, for every model."""
    run = right(path)
    return lambda inputs: [output * 1.01 for output in run(inputs)]
