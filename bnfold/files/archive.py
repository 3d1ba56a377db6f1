"""The zip archive around a torch file, checked before torch opens it.

A zip file describes itself twice, in its directory at the end and before each entry, and readers differ in what they do
where the two disagree. Only archives that can be read in one way are let through: one directory, directly before the
end of the file, entries that do not overlap, names that stay inside and are all different (torch's reader ignores
case), sizes that add up. The checksum of every entry is compared; torch itself does not look at it.

Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from bnfold.files.words import bytes_in_words, shown

__all__ = ["BadArchiveError", "Entry", "check_archive", "check_contents", "entry_names", "read_entry"]

MOST_ENTRIES = 100_000
MOST_DIRECTORY = 64 << 20
MOST_PLAIN = 1 << 40
MOST_RATIO = 200
"""Weights deflate to a half at best; zeros, to a thousandth: 200 lets sparse weights pass and bombs not."""

_STORED, _DEFLATED = 0, 8
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_CHUNK = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")


class BadArchiveError(Exception):
    """What is wrong with an archive: a clause that follows the file's name."""


@dataclass(frozen=True)
class Entry:
    """One entry of the directory. Offsets and sizes are in bytes."""

    name: str
    method: int
    crc: int
    packed: int
    plain: int
    header: int
    data: int

    @property
    def end(self) -> int:
        """Where the entry's packed data ends in the file."""
        return self.data + self.packed


class _Listed(NamedTuple):
    name: str
    method: int
    flags: int
    crc: int
    packed: int
    plain: int
    header: int


def entry_names(file: BinaryIO) -> set[str] | None:
    """Return the names in the directory of a zip file, or None where it has no readable directory."""
    try:
        return {listed.name for listed in _directory(file)}
    except BadArchiveError:
        return None


def check_archive(file: BinaryIO) -> dict[str, Entry]:
    """Check the structure of the zip archive in ``file``, and read none of its contents.

    Returns:
        The entries by their name without the archive's own folder, as torch names them.

    Raises:
        BadArchiveError: the archive is damaged, too large to be meant, or can be read in more than one way.
    """
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    folder = None
    directory = _end_of_archive(file)[1]
    for name, method, flags, crc, packed, plain, header in _directory(file):
        _check_name(name)
        if name.casefold() in seen:
            raise BadArchiveError(f"holds the entry `{shown(name)}` twice")
        seen.add(name.casefold())
        first, _, inner = name.partition("/")
        folder = first if folder is None else folder
        if not inner or first != folder:
            raise BadArchiveError(f"holds `{shown(name)}` outside of its folder `{shown(folder)}`")
        if flags & 0x2041:
            raise BadArchiveError("is encrypted")
        if method not in {_STORED, _DEFLATED}:
            raise BadArchiveError(f"holds `{shown(name)}` compressed in a way that torch cannot read (method {method})")
        if method == _STORED and packed != plain:
            raise BadArchiveError(f"holds `{shown(name)}` with two different sizes")
        if plain > MOST_RATIO * packed + 4096:
            raise BadArchiveError(
                f"holds `{shown(name)}`, {bytes_in_words(packed)} that unpack to {bytes_in_words(plain)}"
            )
        if header >= directory:
            raise BadArchiveError(f"is damaged: `{shown(name)}` is not where its directory says")
        entries[inner] = Entry(name, method, crc, packed, plain, header, _data_offset(file, name, method, header))
    if not entries:
        raise BadArchiveError("is an archive with nothing in it")
    _check_places(entries, directory)
    if sum(entry.plain for entry in entries.values()) > MOST_PLAIN:
        raise BadArchiveError(f"unpacks to more than {bytes_in_words(MOST_PLAIN)}")
    return entries


def check_contents(file: BinaryIO, entries: dict[str, Entry]) -> None:
    """Read every entry once and compare its checksum; a checksum of 0 means that none was computed.

    Raises:
        BadArchiveError: an entry is not what its writer wrote.
    """
    for entry in entries.values():
        crc = size = 0
        for chunk in _unpacked(file, entry):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
        if size != entry.plain:
            raise BadArchiveError(f"is damaged: `{shown(entry.name)}` is not as long as it says")
        if entry.crc not in {0, crc}:
            raise BadArchiveError(f"is damaged: the checksum of `{shown(entry.name)}` does not match its bytes")


def read_entry(file: BinaryIO, entry: Entry) -> bytes:
    """Return the plain bytes of one entry."""
    return b"".join(_unpacked(file, entry))


def _unpacked(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """Yield an entry's plain bytes in chunks, at most one chunk more than the entry declares."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
    left, plain = entry.packed, 0
    file.seek(entry.data)
    while left > 0 and plain <= entry.plain:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise BadArchiveError(f"is cut short in `{shown(entry.name)}`")
        left -= len(chunk)
        if unpacker is None:
            yield chunk
            continue
        while chunk and plain <= entry.plain:
            try:
                piece = unpacker.decompress(chunk, _CHUNK)
            except zlib.error:
                raise BadArchiveError(f"is damaged: `{shown(entry.name)}` does not unpack") from None
            plain += len(piece)
            chunk = unpacker.unconsumed_tail
            if piece:
                yield piece


def _check_name(name: str) -> None:
    parts = name.split("/")
    if len(name) > 1024 or not name.isprintable() or "\\" in name or _DRIVE.match(name):
        raise BadArchiveError(f"holds an entry with an impossible name, `{shown(name)}`")
    if any(part in {"", ".", ".."} for part in parts):
        raise BadArchiveError(f"holds `{shown(name)}`, a name that leads out of the archive")


def _check_places(entries: dict[str, Entry], directory: int) -> None:
    """Check that the entries fill the file from its start, one after the other, up to the directory."""
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < end:
            raise BadArchiveError(f"holds entries that overlap, `{shown(entry.name)}` among them")
        if end == 0 and entry.header != 0:
            raise BadArchiveError("has something before its first entry")
        end = entry.end
    if end > directory:
        raise BadArchiveError("holds entries that reach into its directory")


def _data_offset(file: BinaryIO, name: str, method: int, header: int) -> int:
    """Return where an entry's data begins, and check its own header against the directory."""
    file.seek(header)
    raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise BadArchiveError(f"is damaged: `{shown(name)}` is not where its directory says")
    _, _, _, own_method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack(raw)
    if file.read(name_length) != name.encode() or own_method != method:
        raise BadArchiveError(f"describes `{shown(name)}` in two ways that differ")
    return header + _LOCAL.size + int(name_length) + int(extra_length)


def _end_of_archive(file: BinaryIO) -> tuple[int, int, int]:
    """Return (entries, offset of the directory, its size), from the end records of the file."""
    size: int = file.seek(0, os.SEEK_END)
    if size < _END.size:
        raise BadArchiveError("is cut short")
    file.seek(size - _END.size)
    end = size - _END.size
    magic, disk, first_disk, here, total, length, start, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise BadArchiveError("is a zip archive without its end: it is cut short, or something was put after it")
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
        raise BadArchiveError("is one part of an archive in several")
    if start + length != end:
        raise BadArchiveError("is damaged: its directory is not where it says")
    if total > MOST_ENTRIES or length > MOST_DIRECTORY or total * _CENTRAL.size > length:
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


def _directory(file: BinaryIO) -> Iterator[_Listed]:
    """Yield what the directory lists."""
    total, start, length = _end_of_archive(file)
    file.seek(start)
    raw = file.read(length)
    place = 0
    for _ in range(total):
        if raw[place : place + 4] != b"PK\x01\x02" or len(raw) - place < _CENTRAL.size:
            raise BadArchiveError("is damaged: its directory is broken")
        fields = _CENTRAL.unpack_from(raw, place)
        _, _, _, flags, method, _, _, crc, packed, plain, n_name, n_extra, n_comment, disk, _, _, header = fields
        place += _CENTRAL.size
        if disk or place + n_name + n_extra + n_comment > len(raw):
            raise BadArchiveError("is damaged: its directory is broken")
        try:
            name = raw[place : place + n_name].decode("utf-8")
        except UnicodeDecodeError:
            raise BadArchiveError("holds an entry whose name is not text") from None
        extra = raw[place + n_name : place + n_name + n_extra]
        plain, packed, header = _large_sizes(extra, plain, packed, header)
        place += n_name + n_extra + n_comment
        yield _Listed(name, method, flags, crc, packed, plain, header)
    if place != len(raw):
        raise BadArchiveError("is damaged: its directory holds more than it says")


def _large_sizes(extra: bytes, plain: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return the three numbers, those that are all ones taken from the zip64 field, which holds them in this order."""
    fields = []
    place = 0
    while place + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, place)
        if tag == 1:
            fields.append(extra[place + 4 : place + 4 + length])
        place += 4 + length
    if len(fields) > 1 or place > len(extra):
        raise BadArchiveError("is damaged: its directory is broken")
    numbers = [plain, packed, header]
    wanted = [index for index, number in enumerate(numbers) if number == 0xFFFFFFFF]
    if wanted:
        if not fields or len(fields[0]) < 8 * len(wanted):
            raise BadArchiveError("is damaged: its directory is broken")
        for place, index in enumerate(wanted):
            (numbers[index],) = struct.unpack_from("<Q", fields[0], 8 * place)
    return numbers[0], numbers[1], numbers[2]
