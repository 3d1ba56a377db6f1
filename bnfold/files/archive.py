"""The zip archive around a torch file, checked before torch opens it.

A zip file describes itself twice, in its directory at the end and before each entry, and readers differ in what they do
where the two disagree. :mod:`zipfile` reads the directory and unpacks; it is a lenient reader, so what it found is held
against the bytes. Only archives that can be read in one way are let through: one directory, directly before the end of
the file, entries that do not overlap, names that stay inside and are all different (torch's reader ignores case), sizes
that add up. The checksum of every entry is compared; torch itself does not look at it.

Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import copy
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from bnfold.printable import bytes_in_words, shown

__all__ = ["FLAT_PROGRAM", "BadArchiveError", "Entry", "check_archive", "check_contents", "entry_names", "read_entry"]

MOST_ENTRIES = 100_000
MOST_DIRECTORY = 64 << 20
MOST_PLAIN = 1 << 40
MOST_RATIO = 200
"""Weights deflate to a half at best; zeros, to a thousandth: 200 lets sparse weights pass and bombs not."""

FLAT_PROGRAM = "serialized_exported_program.json"
"""What torch 2.6 calls the graph of an exported program, in an archive without a folder of its own."""

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL_SIZE = 46
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED_OR_PATCHED = 0x2061
_UTF8 = 0x800
_CHUNK = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")


class BadArchiveError(Exception):
    """What is wrong with an archive: a clause that follows the file's name."""


@dataclass(frozen=True)
class Entry:
    """One entry of an archive. Offsets and sizes are in bytes.

    Attributes:
        archive: who unpacks it.
        info: what the directory says of it.
        name: its full name.
        data: where its packed bytes begin in the file.
    """

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str
    data: int

    @property
    def plain(self) -> int:
        """Its size when it is unpacked."""
        return self.info.file_size

    @property
    def end(self) -> int:
        """Where the entry's packed data ends in the file."""
        return self.data + self.info.compress_size


def entry_names(file: BinaryIO) -> set[str] | None:
    """Return the names in the directory of a zip file, or None where it has no readable directory."""
    try:
        return {_raw_name(info).decode() for info in _opened(file).infolist()}
    except (BadArchiveError, UnicodeDecodeError):
        return None


def check_archive(file: BinaryIO) -> dict[str, Entry]:
    """Check the structure of the zip archive in ``file``, and read none of its contents.

    Returns:
        The entries by their name without the archive's own folder, as torch names them.

    Raises:
        BadArchiveError: the archive is damaged, too large to be meant, or can be read in more than one way.
    """
    archive = _opened(file)
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    folder = None
    flat = any(info.filename == FLAT_PROGRAM for info in archive.infolist())
    for info in archive.infolist():
        name = _checked_name(info)
        if name.casefold() in seen:
            raise BadArchiveError(f"holds the entry `{shown(name)}` twice")
        seen.add(name.casefold())
        first, _, inner = ("", "", name) if flat else name.partition("/")
        folder = first if folder is None else folder
        if not inner or first != folder:
            raise BadArchiveError(f"holds `{shown(name)}` outside its folder `{shown(folder)}`")
        _check_form(info, name)
        if info.header_offset >= archive.start_dir:
            raise BadArchiveError(f"is damaged: `{shown(name)}` is not where its directory says")
        entries[inner] = Entry(archive, info, name, _data_offset(file, info))
    if not entries:
        raise BadArchiveError("is an archive with nothing in it")
    _check_places(entries, archive.start_dir)
    if sum(entry.plain for entry in entries.values()) > MOST_PLAIN:
        raise BadArchiveError(f"unpacks to more than {bytes_in_words(MOST_PLAIN)}")
    return entries


def check_contents(entries: dict[str, Entry]) -> None:
    """Read every entry once and compare its checksum; a checksum of 0 means that none was computed.

    Raises:
        BadArchiveError: an entry is not what its writer wrote.
    """
    for entry in entries.values():
        crc = size = 0
        for chunk in _unpacked(entry):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
        if size != entry.plain:
            raise BadArchiveError(f"is damaged: `{shown(entry.name)}` is not as long as it says")
        if entry.info.CRC not in {0, crc}:
            raise BadArchiveError(f"is damaged: the checksum of `{shown(entry.name)}` does not match its bytes")


def read_entry(entry: Entry) -> bytes:
    """Return the plain bytes of one entry."""
    return b"".join(_unpacked(entry))


def _unpacked(entry: Entry) -> Iterator[bytes]:
    """Yield an entry's plain bytes in chunks, at most one byte more than the entry declares."""
    info = copy.copy(entry.info)
    info.file_size += 1  # zipfile would stop at the declared size, and not see that there is more
    del info.CRC
    try:
        with entry.archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except zlib.error:
        raise BadArchiveError(f"is damaged: `{shown(entry.name)}` does not unpack") from None
    except (zipfile.BadZipFile, EOFError):
        raise BadArchiveError(f"is cut short in `{shown(entry.name)}`") from None


def _opened(file: BinaryIO) -> zipfile.ZipFile:
    """Return the archive, its directory read, which covers the bytes before the end record to the last one."""
    total, start, length = _end_of_archive(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error):
        raise BadArchiveError("is damaged: its directory is broken") from None
    infos = archive.infolist()
    listed = sum(_CENTRAL_SIZE + len(_raw_name(info)) + len(info.extra) + len(info.comment) for info in infos)
    if (len(infos), archive.start_dir, listed) != (total, start, length):
        raise BadArchiveError("is damaged: its directory does not hold what it says")
    if any(info.volume or _zip64_fields(info.extra) > 1 for info in infos):
        raise BadArchiveError("is damaged: its directory is broken")
    return archive


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a name, which zipfile decodes by a flag that torch's reader ignores."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")


def _zip64_fields(extra: bytes) -> int:
    """Return how many of an entry's extra fields give large sizes; readers differ in which of two they take."""
    count = place = 0
    while place + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, place)
        count += tag == 1
        place += 4 + length
    return count


def _checked_name(info: zipfile.ZipInfo) -> str:
    """Return the name of an entry: text that stays inside of the archive."""
    try:
        name = _raw_name(info).decode()
    except UnicodeDecodeError:
        raise BadArchiveError("holds an entry whose name is not text") from None
    if len(name) > 1024 or not name.isprintable() or "\\" in name or _DRIVE.match(name):
        raise BadArchiveError(f"holds an entry with an invalid name, `{shown(name)}`")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise BadArchiveError(f"holds `{shown(name)}`, a name that points outside the archive")
    return name


def _check_form(info: zipfile.ZipInfo, name: str) -> None:
    """Check how an entry is packed, and that it does not unpack to far more than it is."""
    method, packed, plain = info.compress_type, info.compress_size, info.file_size
    if info.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise BadArchiveError("is encrypted")
    if method not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BadArchiveError(f"holds `{shown(name)}` compressed in a way that torch cannot read (method {method})")
    if method == zipfile.ZIP_STORED and packed != plain:
        raise BadArchiveError(f"holds `{shown(name)}` with two different sizes")
    if plain > MOST_RATIO * packed + 4096:
        raise BadArchiveError(f"holds `{shown(name)}`, {bytes_in_words(packed)} that unpack to {bytes_in_words(plain)}")


def _check_places(entries: dict[str, Entry], directory: int) -> None:
    """Check that the entries fill the file from its start, one after the other, up to the directory."""
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.info.header_offset):
        if entry.info.header_offset < end:
            raise BadArchiveError(f"holds entries that overlap, `{shown(entry.name)}` among them")
        if end == 0 and entry.info.header_offset != 0:
            raise BadArchiveError("has something before its first entry")
        end = entry.end
    if end > directory:
        raise BadArchiveError("holds entries that reach into its directory")


def _data_offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return where an entry's data begins, and check its own header against the directory."""
    file.seek(info.header_offset)
    raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise BadArchiveError(f"is damaged: `{shown(_raw_name(info).decode())}` is not where its directory says")
    _, _, _, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack(raw)
    if file.read(name_length) != _raw_name(info) or method != info.compress_type:
        raise BadArchiveError(f"describes `{shown(_raw_name(info).decode())}` in two ways that differ")
    return info.header_offset + _LOCAL.size + int(name_length) + int(extra_length)


def _end_of_archive(file: BinaryIO) -> tuple[int, int, int]:
    """Return (entries, offset of the directory, its size), from the end records of the file."""
    size: int = file.seek(0, os.SEEK_END)
    if size < _END.size:
        raise BadArchiveError("is cut short")
    file.seek(size - _END.size)
    end = size - _END.size
    magic, disk, first_disk, here, total, length, start, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise BadArchiveError("is a zip archive without an end record: it was cut short, or something was appended")
    counts: tuple[int, ...] = (disk, first_disk, here, total, length, start)
    if end >= _END64_LOCATOR.size + _END64.size:
        file.seek(end - _END64_LOCATOR.size)
        magic, disk64, where, disks = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if magic == b"PK\x06\x07":
            end -= _END64_LOCATOR.size + _END64.size
            if where != end or disk64 or disks > 1:
                raise BadArchiveError("is damaged: its end record is not where it says")
            counts = _large_counts(file, end, counts)
    disk, first_disk, here, total, length, start = counts
    if disk or first_disk or here != total:
        raise BadArchiveError("is one part of a split archive")
    if start + length != end:
        raise BadArchiveError("is damaged: its directory is not where it says")
    if total > MOST_ENTRIES or length > MOST_DIRECTORY or total * _CENTRAL_SIZE > length:
        raise BadArchiveError(f"says that it holds {total} entries in {bytes_in_words(length)} of directory")
    return total, start, length


def _large_counts(file: BinaryIO, offset: int, small: tuple[int, ...]) -> tuple[int, ...]:
    """Return the counts of the zip64 end record, where each small count is either the same or all ones."""
    file.seek(offset)
    magic, length, _, _, disk, first_disk, here, total, size, start = _END64.unpack(file.read(_END64.size))
    if magic != b"PK\x06\x06" or length != _END64.size - 12:
        raise BadArchiveError("is damaged: its end record is broken")
    large = (disk, first_disk, here, total, size, start)
    ones = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    if any(few not in {many, full} for few, many, full in zip(small, large, ones, strict=True)):
        raise BadArchiveError("has two end records that differ")
    return large
