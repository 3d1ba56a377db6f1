"""What kind of file it is, told by its first bytes and, for a zip, by its directory; the suffix is not asked.

:func:`recognise` opens nothing but the file and runs nothing. :func:`refusal` is the sentence for each kind that bnfold
does not read, and the option or the step that helps.

torch's two old formats are recognised and not read, not even where they hold plain weights. They have no checksums (a
flipped bit loads as another weight), no directory that says how long each tensor is before torch makes it, and the tar
format has no reader that runs nothing. Written anew, the same weights go the way of all others.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import BinaryIO

from bnfold.errors import BnfoldError, FileAccessError, RefusedFileError
from bnfold.files.archive import FLAT_PROGRAM
from bnfold.printable import shown_path

__all__ = ["Kind", "open_regular", "recognise", "refusal", "sniff"]

SNIFFED = 4096


class Kind(Enum):
    """A kind of file; the value is its name in a sentence."""

    TORCH = "a file written by torch.save"
    TORCHSCRIPT = "a TorchScript archive"
    PROGRAM = "an exported program (.pt2)"
    SAFETENSORS = "a safetensors file"
    ONNX = "an ONNX model"
    OTHER_ZIP = "a zip archive that torch did not write"
    BROKEN_ZIP = "a damaged zip archive"
    LEGACY_PICKLE = "in torch's old pickle format, from before torch 1.6"
    LEGACY_TAR = "in torch's oldest format, a tar archive"
    OTHER_TAR = "a tar archive"
    OTHER_PICKLE = "a pickle that torch.save did not write"
    LFS_POINTER = "a git-LFS pointer: the address of the model, not the model"
    HTML = "an HTML page, as a failed download leaves"
    GZIP = "compressed with gzip"
    BZIP2 = "compressed with bzip2"
    XZ = "compressed with xz"
    ZSTD = "compressed with zstd"
    SEVEN_ZIP = "a 7z archive"
    RAR = "a RAR archive"
    HDF5 = "an HDF5 file, as Keras writes"
    NUMPY = "a NumPy array"
    GGUF = "a GGUF file"
    TFLITE = "a TensorFlow Lite model"
    PICTURE = "a picture"
    PDF = "a PDF"
    PROGRAM_CODE = "Python code"
    JSON = "JSON text"
    TEXT = "text"
    EMPTY = "empty"
    ZEROS = "only zero bytes at its start, as a broken download or disk leaves"
    UNKNOWN = "of an unknown kind"


_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x1f\x8b", Kind.GZIP),
    (0, b"BZh", Kind.BZIP2),
    (0, b"\xfd7zXZ\x00", Kind.XZ),
    (0, b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    (0, b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
    (0, b"Rar!\x1a\x07", Kind.RAR),
    (0, b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (0, b"\x93NUMPY", Kind.NUMPY),
    (0, b"GGUF", Kind.GGUF),
    (4, b"TFL3", Kind.TFLITE),
    (0, b"\x89PNG\r\n\x1a\n", Kind.PICTURE),
    (0, b"\xff\xd8\xff", Kind.PICTURE),
    (0, b"GIF8", Kind.PICTURE),
    (0, b"%PDF-", Kind.PDF),
)
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # 0x1950a86a20f9469cfc6c, the first pickle in a legacy file
_PYTHON = re.compile(rb"^\s*(#!.*python|import \w|from \w[\w.]* import |class \w+|def \w+\()", re.MULTILINE)

_UNPACK = "Unpack it first, and give the file that is inside."
_RESAVE = "Save it again as"
_HOW_TO_USE_IT: dict[Kind, str] = {
    Kind.ONNX: "Give it to `bnfold fold`, or to bnfold.fold_onnx.",
    Kind.OTHER_ZIP: _UNPACK,
    Kind.BROKEN_ZIP: "Download or copy it again.",
    Kind.LEGACY_PICKLE: "Save its weights again: "
    "`python -c \"import torch; torch.save(torch.load('OLD', weights_only=True), 'NEW')\"`; "
    "save a whole model again where it was made.",
    Kind.LEGACY_TAR: "Load it where it was made, with torch.load, and save it again with torch.save.",
    Kind.OTHER_TAR: _UNPACK,
    Kind.OTHER_PICKLE: f"{_RESAVE} `torch.save(model, 'model.pt')`, where it was made.",
    Kind.LFS_POINTER: "Fetch the model itself with `git lfs pull`.",
    Kind.HTML: "Download it again, and look at what the address answers in a browser.",
    Kind.HDF5: "bnfold reads PyTorch models: convert it first.",
    Kind.NUMPY: "Put arrays into a model in Python and save that, or give them to --inputs.",
    Kind.GGUF: "bnfold reads PyTorch models: convert it first.",
    Kind.TFLITE: "bnfold reads PyTorch models: convert it first.",
    Kind.PROGRAM_CODE: "To use a function or class in it as the model, write FILE.py:NAME.",
    Kind.JSON: "Give the file that holds the weights.",
    Kind.EMPTY: "Download or copy it again.",
    Kind.ZEROS: "Download or copy it again.",
}
for _kind in (Kind.GZIP, Kind.BZIP2, Kind.XZ, Kind.ZSTD, Kind.SEVEN_ZIP, Kind.RAR):
    _HOW_TO_USE_IT[_kind] = _UNPACK
_OTHERWISE = "Give a .pt or .pth written by torch.save, or a .safetensors."


def refusal(kind: Kind, path: str | os.PathLike[str]) -> RefusedFileError:
    """Return the error for a file of a kind that bnfold does not read."""
    return RefusedFileError(f"{shown_path(path)} is {kind.value}.", fix=_HOW_TO_USE_IT.get(kind, _OTHERWISE))


def recognise(path: str | os.PathLike[str]) -> Kind:
    """Return the kind of the file at ``path``, told by its content.

    Raises:
        FileAccessError: there is no such file, or it may not be read.
        RefusedFileError: it is a directory, a device, a pipe or a socket.
    """
    with open_regular(path) as file:
        return sniff(file)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe is refused and not waited for.

    Raises:
        FileAccessError: there is no such file, it may not be read, or reading failed inside the ``with``.
        RefusedFileError: it is a directory, a device, a pipe or a socket.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise RefusedFileError(f"{shown_path(path)} is {what}, not a file.", fix="Give the model file itself.")
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise _cannot_open(path, error) from None


def sniff(file: BinaryIO) -> Kind:
    """Return the kind of an open file; its position is put back to the start."""
    file.seek(0)
    head = file.read(SNIFFED)
    size = file.seek(0, os.SEEK_END)
    kind = _kind_of(head, size, file)
    file.seek(0)
    return kind


def _kind_of(head: bytes, size: int, file: BinaryIO) -> Kind:
    if not head:
        return Kind.EMPTY
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(file)
    if head.startswith((b"PK\x05\x06", b"PK\x07\x08")):
        return Kind.OTHER_ZIP
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if head[257:262] == b"ustar" or (head.startswith(b"./PaxHeaders") and head[:100].strip(b"\0")):
        return _kind_of_tar(head)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size, 1 << 40):
        # before pickles: a header of 128, 384 or 640 bytes begins as one does
        return Kind.SAFETENSORS
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return Kind.LEGACY_PICKLE if _LEGACY_MAGIC in head[:32] else Kind.OTHER_PICKLE
    if not head.strip(b"\0"):
        return Kind.ZEROS
    text = _text_kind(head)
    if text is not None:
        return text
    return Kind.ONNX if _looks_like_onnx(head) else Kind.UNKNOWN


def _kind_of_zip(file: BinaryIO) -> Kind:
    from bnfold.files.archive import entry_names

    names = entry_names(file)
    if names is None:
        return Kind.BROKEN_ZIP
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/__torch__") for name in inner):
        return Kind.TORCHSCRIPT
    if "archive_format" in inner or FLAT_PROGRAM in names | inner:
        return Kind.PROGRAM
    return Kind.TORCH if "data.pkl" in inner else Kind.OTHER_ZIP


def _kind_of_tar(head: bytes) -> Kind:
    first = head[:100].split(b"\0", 1)[0].removeprefix(b"./")
    return Kind.LEGACY_TAR if first in {b"sys_info", b"pickle", b"tensors", b"storages"} else Kind.OTHER_TAR


def _text_kind(head: bytes) -> Kind | None:
    """Return the kind of a text, or None for bytes that are no text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Kind.TEXT
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return Kind.LFS_POINTER
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < SNIFFED:  # not merely a character cut in two by the limit
            return None
        text = head[: error.start].decode("utf-8-sig")
    if any(ord(char) < 32 and char not in "\t\n\v\f\r\x1b" for char in text):
        return None
    start = text.lstrip()[:512].lower()
    if start.startswith(("<!doctype", "<html", "<head", "<?xml", "<body")) or "<html" in start:
        return Kind.HTML
    if start.startswith(("{", "[")):
        return Kind.JSON
    return Kind.PROGRAM_CODE if _PYTHON.search(head) else Kind.TEXT


def _looks_like_onnx(head: bytes) -> bool:
    """Whether the bytes begin like a serialised ModelProto: ir_version, then its other fields in any order."""
    if head[:1] != b"\x08" or len(head) < 4 or not 1 <= head[1] <= 40:
        return False
    return head[2] in {0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72}


def _cannot_open(path: str | os.PathLike[str], error: OSError | ValueError) -> BnfoldError:
    name = shown_path(path)
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    if number in {errno.ENOENT, errno.ENOTDIR}:
        return FileAccessError(f"There is no file {name}.", fix="Check the path.")
    if number in {errno.EACCES, errno.EPERM}:
        return FileAccessError(f"{name} may not be read.", fix="Change its permissions, or run as a user who may.")
    if number == errno.ENXIO:
        return RefusedFileError(f"{name} is a device, pipe or socket, not a file.", fix="Give the model file itself.")
    words = (error.strerror if isinstance(error, OSError) else str(error)) or "unknown error"
    return FileAccessError(f"{name} could not be read: {words}.", fix="Check the path and the disk.")
