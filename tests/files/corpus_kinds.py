"""Files that are no model at all, or not of a kind that bnfold reads; and paths that are no files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.files.cases import ACCESS, REFUSED, Case, content
from tests.files.forge import saved

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 102502400\n" % 7
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"


def _tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return buffer.getvalue()


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"something")
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.ones(3))
    return buffer.getvalue()


def _legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what such files are written with
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2).eval(), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def _program() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.ones(1, 2),), strict=False), buffer)
    return buffer.getvalue()


def _onnx() -> bytes:
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    data: bytes = onnx.helper.make_model(graph).SerializeToString()
    return data


def _folder(folder: Path, _marker: Path) -> Path:
    (folder / "saved_model").mkdir()
    return folder / "saved_model"


def _pipe(folder: Path, _marker: Path) -> Path:
    os.mkfifo(folder / "pipe.pt")
    return folder / "pipe.pt"


def _below_a_file(folder: Path, _marker: Path) -> Path:
    (folder / "file").write_bytes(b"x")
    return folder / "file" / "model.pt"


def _loop(folder: Path, _marker: Path) -> Path:
    (folder / "loop.pt").symlink_to(folder / "loop.pt")
    return folder / "loop.pt"


def _dangling(folder: Path, _marker: Path) -> Path:
    (folder / "link.pt").symlink_to(folder / "gone.pt")
    return folder / "link.pt"


CASES = (
    content("empty file", b"", "is empty"),
    content("zero bytes", bytes(5000), "only zero bytes"),
    content("text", b"hello, world\n", "is text"),
    content("text in UTF-16", "hello".encode("utf-16"), "is text"),
    content("HTML page", PAGE, "HTML page", "Download"),
    content("HTML page after a byte order mark", b"\xef\xbb\xbf\n  " + PAGE.lower(), "HTML page"),
    content("XML error of a store", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "HTML page"),
    content("JSON", b'{"error": "Repository not found"}', "JSON"),
    content("git-LFS pointer", POINTER, "git-LFS", "git lfs pull"),
    content(
        "Python code", b"import torch\nclass Net(torch.nn.Module):\n    pass\n", "Python code", ".py:", file="net.py"
    ),
    content("random bytes", bytes(range(200, 40, -1)) * 40, "of an unknown kind"),
    content("gzip", gzip.compress(b"model"), "gzip", "Unpack"),
    content("bzip2", bz2.compress(b"model"), "bzip2"),
    content("xz", lzma.compress(b"model"), "xz"),
    content("zstd", b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
    content("7z", b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z"),
    content("RAR", b"Rar!\x1a\x07\x01\x00", "RAR"),
    content("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5", file="model.h5"),
    content("NumPy array", b"\x93NUMPY\x01\x00v\x00", "NumPy"),
    content("NumPy archive", _npz, "no", "zip archive"),
    content("GGUF", b"GGUF\x03\x00\x00\x00", "GGUF"),
    content("TensorFlow Lite", b"\x1c\x00\x00\x00TFL3" + bytes(20), "TensorFlow Lite"),
    content("PNG", b"\x89PNG\r\n\x1a\n" + bytes(20), "picture"),
    content("PDF", b"%PDF-1.7\n", "PDF"),
    content("zip of something else", lambda: _zip("readme.txt", "weights/model.pt"), "zip archive", "Unpack"),
    content("tar of something else", lambda: _tar("model/readme.txt"), "tar archive", "Unpack"),
    content("torch's oldest format", lambda: _tar("sys_info", "pickle"), "oldest format"),
    content("torch's old pickle format", _legacy, "old pickle format", "weights_only=True"),
    content("pickle of something else", pickle.dumps({"a": 1}), "pickle that torch.save did not write"),
    content("TorchScript", _torchscript, "TorchScript", "cannot fold"),
    content("exported program", _program, "unpickles", "--trust", file="model.pt2"),
    content("exported program called model.pt", _program, "exported program", "--trust"),
    content("ONNX", _onnx, "ONNX model", "fold", file="model.onnx"),
    content("ONNX called model.pt", _onnx, "ONNX model"),
    content("cut in half", lambda: (data := saved(nn.Linear(9, 9)))[: len(data) // 2], "without an end record"),
    content("last byte missing", lambda: saved(nn.Linear(9, 9))[:-1], "without an end record"),
    content("something appended", lambda: saved(nn.Linear(9, 9)) + b"x", "without an end record"),
    content("something in front", lambda: b"x" + saved(nn.Linear(9, 9)), "of an unknown kind"),
    Case("folder", _folder, REFUSED, ("is a folder",)),
    Case("named pipe", _pipe, REFUSED, ("pipe",)),
    Case("device", lambda _folder, _marker: "/dev/zero", REFUSED, ("device",)),
    Case("no such file", lambda folder, _marker: folder / "gone.pt", ACCESS, ("There is no file",)),
    Case("no such folder", lambda folder, _marker: folder / "gone" / "model.pt", ACCESS, ("There is no file",)),
    Case("path below a file", _below_a_file, ACCESS, ("There is no file",)),
    Case("link to itself", _loop, ACCESS, ("could not be read",)),
    Case("link to nothing", _dangling, ACCESS, ("There is no file",)),
    Case("path with a zero byte", lambda folder, _marker: f"{folder}/a\0b.pt", ACCESS, (r"\x00",)),
    Case("path with escapes", lambda folder, _marker: f"{folder}/\x1b[31m\n.pt", ACCESS, (r"\x1b",)),
    Case("path too long", lambda folder, _marker: folder / ("n" * 5000), ACCESS, ("could not be read",)),
)
