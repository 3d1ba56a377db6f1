"""Tools to forge files byte by byte: zip archives with any directory, pickles with any instructions."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class ZipEntry:
    """An entry of a forged archive; what is None is what an honest writer would put there."""

    name: bytes
    plain: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    local_name: bytes | None = None
    claimed: int | None = None
    packed: bytes | None = None
    header: int | None = None

    @property
    def data(self) -> bytes:
        if self.packed is not None:
            return self.packed
        if self.method == 8:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            return packer.compress(self.plain) + packer.flush()
        return self.plain


def zip_bytes(entries: list[ZipEntry], *, total: int | None = None, comment: bytes = b"") -> bytes:
    """Return a zip archive, as honest as its entries."""
    out, directory = io.BytesIO(), b""
    for entry in entries:
        crc = zlib.crc32(entry.plain) if entry.crc is None else entry.crc
        size = len(entry.plain) if entry.claimed is None else entry.claimed
        header = out.tell() if entry.header is None else entry.header
        name = entry.name if entry.local_name is None else entry.local_name
        common = (entry.flags, entry.method, 0, 33, crc, len(entry.data), size, len(entry.name), 0)
        if entry.header is None:
            out.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, *common[:-2], len(name), 0) + name + entry.data)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *common, 0, 0, 0, 0, header) + entry.name
    start = out.tell()
    count = len(entries) if total is None else total
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), start, len(comment))
    return out.getvalue() + directory + end + comment


def torch_entries(pickled: bytes, storages: dict[str, bytes] | None = None) -> list[ZipEntry]:
    """Return the entries of an archive like torch.save's."""
    plain = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    plain |= {f"data/{key}": value for key, value in (storages or {}).items()}
    return [ZipEntry(f"m/{name}".encode(), value) for name, value in plain.items()]


def torch_zip(pickled: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """Return an archive like torch.save's around a pickle of one's own."""
    return zip_bytes(torch_entries(pickled, storages))


def saved(value: Any) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# A pickle is assembled from these; protocol 2, as torch's.

PROTO, STOP, MARK = b"\x80\x02", b".", b"("
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
EMPTY_LIST, EMPTY_DICT, EMPTY_TUPLE = b"]", b"}", b")"
REDUCE, NEW, BUILD, PERSISTENT = b"R", b"\x81", b"b", b"Q"


def program(*parts: bytes) -> bytes:
    return PROTO + b"".join(parts) + STOP


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + b"t"


def integers(*values: int) -> bytes:
    return tuple_of(*map(integer, values))


def dict_of(**items: bytes) -> bytes:
    return EMPTY_DICT + MARK + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*arguments) + REDUCE


def ordered_dict() -> bytes:
    return call("collections", "OrderedDict")


def storage(key: str, elements: int, kind: str = "FloatStorage", *, module: str = "torch") -> bytes:
    return tuple_of(text("storage"), name(module, kind), text(key), text("cpu"), integer(elements)) + PERSISTENT


def tensor(claim: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, hooks: bytes = b"") -> bytes:
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        claim,
        integer(offset),
        integers(*shape),
        integers(*stride),
        FALSE,
        hooks or ordered_dict(),
    )


def module(kind: str, **changes: bytes) -> bytes:
    """Return a torch.nn module without parameters, with its state changed."""
    state: dict[str, bytes] = {"training": FALSE}
    state |= {holder: ordered_dict() for holder in ("_parameters", "_buffers", "_modules")}
    state |= changes
    where, _, attribute = kind.rpartition(".")
    return name(f"torch.nn.modules.{where}", attribute) + EMPTY_TUPLE + NEW + dict_of(**state) + BUILD


def write(folder: Path, file: str, content: bytes) -> Path:
    path = folder / file
    path.write_bytes(content)
    return path
