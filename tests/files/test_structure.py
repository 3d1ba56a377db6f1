"""Whatever bytes a file holds, the checks answer with a refusal of their own or let through what torch loads."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnfold.errors import RefusedFileError, first_line
from bnfold.files.allowed import Allowed
from bnfold.files.archive import BadArchiveError, check_archive, check_contents, entry_names, read_entry
from bnfold.files.kinds import Kind, sniff
from bnfold.files.load import load_model
from bnfold.files.pickles import BadPickleError, read_pickle
from bnfold.files.safetensors_reader import BadWeightsError, read_safetensors
from bnfold.printable import bytes_in_words, listed, shown, shown_path
from tests.files.corpus_weights import raw
from tests.files.forge import saved, torch_zip


def model_bytes() -> bytes:
    torch.manual_seed(0)
    return saved(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))


MODEL = model_bytes()
with io.BytesIO(MODEL) as _file:
    PICKLE = read_entry(check_archive(_file)["data.pkl"])
    STORAGES = {
        name.removeprefix("data/"): read_entry(entry)
        for name, entry in check_archive(_file).items()
        if name.startswith("data/")
    }
HEADER = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "I8", "shape": [], "data_offsets": [8, 9]},
}


def edits(size: int) -> st.SearchStrategy[list[tuple[int, int, bytes]]]:
    """Return a strategy of edits: at a place, so many bytes are replaced by others."""
    edit = st.tuples(st.integers(0, size), st.integers(0, 8), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=4)


def edited(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in changes:
        data = data[:place] + new + data[place + length :]
    return data


FOLDER = tempfile.TemporaryDirectory(prefix="bnfold-structure-")


def checked(data: bytes) -> nn.Module:
    """Take a file's bytes through everything that ``load_model`` does with a file."""
    path = Path(FOLDER.name) / "model.pt"
    path.write_bytes(data)
    return load_model(str(path)).model


def outcome(action: Callable[[], object]) -> Exception | None:
    """Return what an action raises, or None."""
    try:
        action()
    except Exception as error:
        return error
    return None


@given(edits(len(MODEL)))
def test_an_archive_with_any_bytes_changed_is_refused_or_loads(changes: list[tuple[int, int, bytes]]) -> None:
    data = edited(MODEL, changes)
    file = io.BytesIO(data)
    kind = sniff(file)
    assert isinstance(kind, Kind)
    error = outcome(lambda: check_contents(check_archive(file)))
    if error is not None:
        assert isinstance(error, BadArchiveError)
        assert len(str(error)) < 200
        return
    reader: Any = torch._C.PyTorchFileReader(io.BytesIO(data))
    assert set(reader.get_all_records()) == check_archive(file).keys()


@given(edits(len(PICKLE)))
def test_a_pickle_with_any_bytes_changed_is_refused_or_loads(changes: list[tuple[int, int, bytes]]) -> None:
    error = outcome(lambda: checked(torch_zip(edited(PICKLE, changes), STORAGES)))
    assert error is None or (type(error) is RefusedFileError and len(str(error)) < 400)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_as_a_pickle_without_harm(data: bytes) -> None:
    error = outcome(lambda: read_pickle(b"\x80\x02" + data, {}, Allowed().known))
    assert error is None or type(error) is BadPickleError


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_of_some_kind(data: bytes) -> None:
    assert isinstance(sniff(io.BytesIO(data)), Kind)


@given(
    st.sampled_from([b"PK\3\4", b"\x80\x02", b"<html", b"{", b"\x08\x07\x12"]),
    st.binary(max_size=100),
)
def test_any_bytes_after_a_known_start_are_of_some_kind(start: bytes, rest: bytes) -> None:
    assert isinstance(sniff(io.BytesIO(start + rest)), Kind)
    assert entry_names(io.BytesIO(start + rest)) is None or rest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "dtype"]),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), part, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON | st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.binary(max_size=16))
def test_any_json_as_a_safetensors_header_is_refused_or_right(header: Any, data: bytes) -> None:
    file = io.BytesIO(raw(json.dumps(header).encode(), data))
    error = outcome(lambda: read_safetensors(file))
    if error is not None:
        assert type(error) is BadWeightsError
        assert len(str(error)) < 300
        return
    assert sum(tensor.nbytes for tensor in read_safetensors(file).values()) == len(data)


@given(edits(120))
def test_a_safetensors_file_with_any_bytes_changed_is_refused_or_read_as_its_library_reads_it(
    changes: list[tuple[int, int, bytes]],
) -> None:
    import safetensors.torch

    data = edited(raw(json.dumps(HEADER).encode(), bytes(range(9))), changes)
    try:
        mine = read_safetensors(io.BytesIO(data))
    except BadWeightsError:
        return
    theirs = safetensors.torch.load(data)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes()


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("target", ["archive", "pickle"])
def test_20_000_random_damages_crash_nothing(target: str) -> None:
    chance = random.Random(0)
    loaded = 0
    for _ in range(20_000):
        base = MODEL if target == "archive" else PICKLE
        data = damaged(base, chance)
        error = outcome(lambda: checked(data if target == "archive" else torch_zip(data, STORAGES)))  # noqa: B023
        loaded += error is None
        assert error is None or (type(error) is RefusedFileError and len(str(error)) < 400), first_line(
            error, typed=True
        )
    assert loaded < 20_000


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few random faults: flipped bits, cuts, repeats, and interesting numbers."""
    faults: list[Callable[[bytearray], None]] = [
        lambda d: d.__setitem__(chance.randrange(len(d)), chance.randrange(256)),
        lambda d: d.__delitem__(slice(place := chance.randrange(len(d)), place + chance.randrange(1, 40))),
        lambda d: d.__setitem__(
            slice(place := chance.randrange(len(d)), place), d[place : place + chance.randrange(40)]
        ),
        lambda d: struct.pack_into(
            "<I", d, chance.randrange(len(d) - 4), chance.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF])
        ),
    ]
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        chance.choice(faults)(changed)
    return bytes(changed)


# The words themselves


@given(st.text(max_size=500), st.integers(8, 80))
def test_any_name_is_shown_in_one_short_line(name: str, limit: int) -> None:
    assert len(shown(name, limit)) <= limit
    assert shown(name, limit).isprintable()
    assert shown_path(name, limit).isprintable()
    assert len(shown_path(name, limit)) <= limit
    assert listed([name] * 5).isprintable()
    assert first_line(ValueError(name), typed=True).isprintable()


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (2**31, "2.15 GB"), (10**13, "10 TB")],
)
def test_sizes_are_told_in_their_unit(count: int, words: str) -> None:
    assert bytes_in_words(count) == words
