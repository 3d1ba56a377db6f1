"""The safetensors format, its header checked before a tensor is made of it.

A file is eight bytes of header length, a JSON header that gives each tensor's format, shape and place, and the bytes of
all tensors one after the other. Readers differ in what they do with a key that stands there twice, with gaps and with
overlaps: all of these are refused. The format's own library takes the last of two tensors of one name and says nothing;
so the file is read here. Its bytes are mapped: a weight that nobody reads takes no memory.

Source: https://github.com/huggingface/safetensors, README, section Format.
"""

from __future__ import annotations

import json
import mmap
import os
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch

from bnfold.printable import bytes_in_words, shown

__all__ = ["FORMATS", "BadWeightsError", "read_safetensors"]

MOST_HEADER = 100_000_000
MOST_DIMENSIONS = 64
FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class BadWeightsError(Exception):
    """What is wrong with a safetensors file: a clause that follows the file's name."""


class _Place(NamedTuple):
    start: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_safetensors(file: BinaryIO) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, mapped: what is written into them does not reach the file.

    Raises:
        BadWeightsError: the header is damaged, too large, ambiguous, or does not account for every byte.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise BadWeightsError(
            f"says that its header has {bytes_in_words(length)}, but the file has only {bytes_in_words(size)}"
        )
    if length > MOST_HEADER:
        raise BadWeightsError(f"has a header of {bytes_in_words(length)}, more than bnfold reads")
    places = _places(_header(file.read(length)), size - 8 - length)
    content = memoryview(_mapped(file, size))[8 + length :]
    return {place.name: _tensor(content, place) for place in places}


def _mapped(file: BinaryIO, size: int) -> mmap.mmap | bytearray:
    """Return the bytes of a file, mapped where the system can."""
    try:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # in memory, or on a file system that maps nothing
        file.seek(0)
        content = bytearray(size)
        if file.readinto(content) != size:  # type: ignore[attr-defined]
            raise BadWeightsError("was cut short while it was read") from None
        return content


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw, object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, UnicodeDecodeError):
        raise BadWeightsError("is damaged: its header is not JSON") from None
    if not isinstance(header, dict):
        raise BadWeightsError("is damaged: its header is not a JSON object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise BadWeightsError("is damaged: its metadata is not plain text")
    return header


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadWeightsError(f"holds the key `{shown(twin)}` twice")
    return made


def _refuse_constant(word: str) -> Any:
    raise ValueError(word)


def _places(header: dict[str, Any], size: int) -> list[_Place]:
    """Return where each tensor lies, in the order of the bytes, which they cover one by one without a gap."""
    places = [_place(name, entry) for name, entry in header.items()]
    places.sort(key=lambda place: (place.start, place.end))
    end = 0
    for place in places:
        if place.start != end:
            what = "overlaps another" if place.start < end else "follows a gap"
            raise BadWeightsError(f"holds `{shown(place.name)}`, which {what}")
        end = place.end
    if end != size:
        raise BadWeightsError(
            f"holds {bytes_in_words(size)} of tensors, but its header describes {bytes_in_words(end)}"
        )
    return places


def _place(name: str, entry: Any) -> _Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadWeightsError(f"is damaged: it does not describe `{shown(name)}` by format, shape and place")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise BadWeightsError(f"gives `{shown(name)}` an invalid shape or place")
    dtype = FORMATS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise BadWeightsError(
            f"holds `{shown(name)}` in the number format `{shown(entry['dtype'])}`, which bnfold does not fold"
        )
    start, end = offsets
    if start > end or prod(shape) * dtype.itemsize != end - start:
        raise BadWeightsError(f"gives `{shown(name)}` the shape {shown(shape)} and {bytes_in_words(abs(end - start))}")
    return _Place(start, end, name, dtype, tuple(shape))


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)


def _tensor(content: memoryview, place: _Place) -> torch.Tensor:
    """Return one tensor as a view of ``content``, or a copy where its bytes do not lie on a number's boundary."""
    count = prod(place.shape)
    if count == 0:
        return torch.empty(place.shape, dtype=place.dtype)
    tensor = torch.frombuffer(content, dtype=torch.uint8, count=place.end - place.start, offset=place.start)
    if tensor.data_ptr() % place.dtype.itemsize:
        tensor = tensor.clone()
    return tensor.view(place.dtype).reshape(place.shape)
