"""Archives that are damaged, can be read in two ways, or unpack to more than they are."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import torch
from torch import nn

from tests.files.cases import Case, content
from tests.files.forge import ZipEntry, dict_of, integer, program, saved, torch_entries, zip_bytes

PICKLE = program(dict_of(a=integer(1)))


def forged(*more: ZipEntry, **options: int | bytes) -> bytes:
    """Return an archive like torch's with further entries."""
    return zip_bytes([*torch_entries(PICKLE), *more], **options)  # type: ignore[arg-type]


def changed(change: Callable[[bytearray], None]) -> Callable[[], bytes]:
    """Return a maker of a saved layer of 64x64 weights with some bytes changed."""

    def make() -> bytes:
        torch.manual_seed(0)
        data = bytearray(saved(nn.Linear(64, 64)))
        change(data)
        return bytes(data)

    return make


def _flip_a_weight(data: bytearray) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        large = max(archive.infolist(), key=lambda entry: entry.file_size)
    data[large.header_offset + 1000] ^= 4  # the entry is 16 KiB long; its header, some 100 bytes


def _flip_in_the_pickle(data: bytearray) -> None:
    data[data.index(b"in_features") + 3] ^= 1


def _end(data: bytearray) -> int:
    return data.rindex(b"PK\5\6")


def _set_end(field: int, form: str, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into(form, data, _end(data) + field, value)

    return change


def _set_large_end(field: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into("<Q", data, data.rindex(b"PK\6\6") + field, value)
        if field == 32:
            struct.pack_into("<Q", data, data.rindex(b"PK\6\6") + 24, value)
        data[_end(data) + 8 : _end(data) + 20] = b"\xff" * 12  # so that the large numbers hold

    return change


def _set_directory(field: int, form: str, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into(form, data, data.index(b"PK\1\2") + field, value)

    return change


def _bomb() -> bytes:
    return forged(ZipEntry(b"m/data/0", bytes(20_000_000), method=8))


ODD = (ZipEntry(b"m/byteorder", b"middle"), ZipEntry(b"m/version", b"3\n"))


def _overlap() -> bytes:
    entries = torch_entries(PICKLE, {"0": b"x" * 100})
    twin = ZipEntry(b"m/data/1", b"x" * 100, header=0, local_name=b"m/data/1")
    return zip_bytes([*entries, twin])


CASES = (
    content("a weight's bit flipped", changed(_flip_a_weight), "damaged", "checksum"),
    content("a bit flipped in the pickle", changed(_flip_in_the_pickle), "damaged", "checksum"),
    content("entry twice", lambda: forged(ZipEntry(b"m/data.pkl", PICKLE)), "twice"),
    content("entry twice, in capitals", lambda: forged(ZipEntry(b"m/DATA.PKL", PICKLE)), "twice"),
    content("name leads out", lambda: forged(ZipEntry(b"m/../../etc/passwd", b"x")), "points outside"),
    content("absolute name", lambda: forged(ZipEntry(b"/etc/passwd", b"x")), "points outside"),
    content("name with a backslash", lambda: forged(ZipEntry(b"m\\data\\0", b"x")), "invalid name"),
    content("name with a drive", lambda: forged(ZipEntry(b"c:m/data/0", b"x")), "invalid name"),
    content("name with escapes", lambda: forged(ZipEntry(b"m/\x1b[2J", b"x")), r"\x1b[2J"),
    content("name that is no text", lambda: forged(ZipEntry(b"m/\xff\xfe", b"x")), "name is not text"),
    content("name of 60,000 letters", lambda: forged(ZipEntry(b"m/" + b"n" * 60_000, b"x")), "invalid name"),
    content("two folders", lambda: forged(ZipEntry(b"other/data/0", b"x")), "outside its folder"),
    content("encrypted", lambda: forged(ZipEntry(b"m/data/0", b"x", flags=1)), "encrypted"),
    content("odd compression", lambda: forged(ZipEntry(b"m/data/0", b"x", method=12)), "method 12"),
    content("zip bomb", _bomb, "unpack to 20 MB"),
    content("stored, but of two sizes", lambda: forged(ZipEntry(b"m/data/0", b"x", claimed=10**9)), "two different"),
    content("longer than it says", lambda: forged(ZipEntry(b"m/data/0", b"x" * 9, method=8, claimed=5)), "as long as"),
    content(
        "shorter than it says", lambda: forged(ZipEntry(b"m/data/0", b"x" * 9, method=8, claimed=50)), "as long as"
    ),
    content(
        "deflated nonsense", lambda: forged(ZipEntry(b"m/data/0", b"xx", 8, packed=b"\xff\xff")), "does not unpack"
    ),
    content("entries that overlap", _overlap, "in two ways"),
    content("header with another name", lambda: forged(ZipEntry(b"m/a", b"x", local_name=b"m/b")), "in two ways"),
    content("header behind the end", lambda: forged(ZipEntry(b"m/a", b"x", header=0xFFFFFF0)), "not where"),
    content("header in the middle", lambda: forged(ZipEntry(b"m/a", b"x", header=3)), "not where"),
    content("wrong checksum", lambda: forged(ZipEntry(b"m/data/0", b"x", crc=1)), "checksum"),
    content("a comment", lambda: forged(comment=b"PK\5\6" + bytes(18)), "is damaged"),
    content("says 65,000 entries", lambda: forged(total=65_000), "65000 entries"),
    content("says 2^60 entries", changed(_set_large_end(32, 1 << 60)), "1152921504606846976 entries"),
    content("directory of 2^60 bytes", changed(_set_large_end(40, 1 << 60)), "directory is not where"),
    content("directory elsewhere", changed(_set_large_end(48, 7)), "directory is not where"),
    content("two ends that differ", changed(_set_end(10, "<H", 3)), "two end records"),
    content("on several disks", changed(_set_end(4, "<H", 1)), "two end records"),
    content("entry of 2^32 - 2 bytes", changed(_set_directory(24, "<L", 0xFFFFFFFE)), "two different sizes"),
    content("directory entry cut", changed(_set_directory(28, "<H", 0xFFFF)), "directory is broken"),
    content("nothing in it", lambda: zip_bytes([]), "zip archive"),
    content("no data.pkl", lambda: zip_bytes([ZipEntry(b"m/data/0", b"x")]), "torch did not write"),
    content("an odd byte order", lambda: zip_bytes([*torch_entries(PICKLE)[:1], *ODD]), "`byteorder`"),
    content("no version", lambda: zip_bytes([ZipEntry(b"m/data.pkl", PICKLE)]), "torch cannot read"),
)

__all__ = ["CASES", "Case"]
