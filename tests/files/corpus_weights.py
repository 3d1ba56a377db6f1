"""Safetensors files whose header is damaged, ambiguous or says more than there is."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.files.cases import Case, content


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(start: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def described(title: str, header: dict[str, Any], data: bytes, *says: str) -> Case:
    return content(title, raw(json.dumps(header).encode(), data), *says, file="model.safetensors")


def as_written(title: str, header: str, *says: str, data: bytes = b"", length: int | None = None) -> Case:
    return content(title, raw(header.encode(), data, length), *says, file="model.safetensors")


_A = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

CASES = (
    as_written("header of 2^39 bytes", "{}", "says that its header", length=1 << 39),
    as_written("header longer than the file", "{" + _A + "}", "says that its header", length=1000),
    as_written("header cut short", "{" + _A, "not JSON"),
    as_written("header with a NaN", '{"a":NaN}', "not JSON"),
    as_written("header that is deep", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON"),
    as_written(
        "number of 10,000 digits",
        '{"a":{"dtype":"F32","shape":[' + "9" * 10_000 + '],"data_offsets":[0,4]}}',
        "not JSON",
    ),
    as_written("key twice", "{" + _A + "," + _A + "}", "`a` twice", data=bytes(4)),
    as_written("key twice, escaped", "{" + _A + "," + _A.replace("a", "\\u0061", 1) + "}", "`a` twice", data=bytes(4)),
    as_written(
        "dtype twice",
        '{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}',
        "`dtype` twice",
        data=bytes(4),
    ),
    described("overlap", {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "overlaps"),
    described("the same place twice", {"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "overlaps"),
    described("gap", {"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "follows a gap"),
    described("gap at the start", {"a": entry(4, 8)}, bytes(8), "follows a gap"),
    described("data left over", {"a": entry(0, 4)}, bytes(8), "describes 4 bytes"),
    described("data missing", {"a": entry(0, 400)}, bytes(8), "describes 400 bytes"),
    described("shape of 10^12", {"a": entry(0, 4, [10**6, 10**6])}, bytes(4), "the shape [1000000, 1000000]"),
    described("shape that overflows", {"a": entry(0, 4, [2**32, 2**32 + 1])}, bytes(4), "the shape"),
    described("negative shape", {"a": entry(0, 4, [-1, -1])}, bytes(4), "invalid shape or place"),
    described("broken number in a shape", {"a": entry(0, 4, [1.0])}, bytes(4), "invalid shape or place"),
    described("true in a shape", {"a": entry(0, 4, [True])}, bytes(4), "invalid shape or place"),
    described("place backwards", {"a": entry(8, 4, [1])}, bytes(8), "the shape"),
    described("place beyond 2^64", {"a": entry(2**64, 2**64 + 4)}, bytes(8), "invalid shape or place"),
    described("unknown number format", {"a": entry(0, 4, [1], "F31")}, bytes(4), "F31"),
    described("float8", {"a": entry(0, 4, [4], "F8_E4M3")}, bytes(4), "F8_E4M3"),
    described("entry without a shape", {"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4), "does not describe"),
    described("entry that is a list", {"a": [0, 4]}, bytes(4), "does not describe"),
    described("entry with more", {"a": entry(0, 4) | {"sparse": True}}, bytes(4), "does not describe"),
    described("metadata that is a dict", {"__metadata__": {"a": {}}, "a": entry(0, 4)}, bytes(4), "metadata"),
    described("no --model", {"a": entry(0, 4)}, bytes(4), "--model"),
    described("names with escapes", {"\x1b[31m": entry(4, 8)}, bytes(8), r"\x1b[31m"),
)
