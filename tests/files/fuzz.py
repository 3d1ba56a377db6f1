"""Coverage-guided fuzzing of everything that reads a file before torch does, with atheris (libFuzzer).

    pip install atheris        in the environment of the tests; wheels exist for Linux
    python -m tests.files.fuzz TARGET [libFuzzer options] [FOLDER of inputs]
    python -m tests.files.fuzz pickle -max_total_time=900 -max_len=4096 -rss_limit_mb=2000 /tmp/fuzz-pickle

TARGET is kinds, archive, pickle, safetensors or inputs. An input fails that raises anything but a refusal of bnfold's
own, takes more than the ``-timeout`` or the ``-rss_limit_mb``, or whose message is too long. Missing inputs are seeded
from a real file. libFuzzer prints a failing input and keeps it as ``crash-*``; give it as the only argument to see it
again.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import atheris  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import torch

with atheris.instrument_imports(include=["bnfold.files", "bnfold.inputs.from_file", "zipfile"]):
    from bnfold import printable
    from bnfold.files import allowed, archive, kinds, loaded, pickle_calls, pickles, safetensors_reader
    from bnfold.inputs import from_file

from tests.files.corpus_weights import raw
from tests.files.test_structure import HEADER, MODEL, PICKLE

ENTRIES = archive.check_archive(io.BytesIO(MODEL))
MOST_INFLATED = 1100  # how much larger than itself what deflate packs can be; integers may double
REFUSALS = (archive.BadArchiveError, pickles.BadPickleError, safetensors_reader.BadWeightsError)


def fuzz_kinds(data: bytes) -> None:
    kind = kinds.sniff(io.BytesIO(data))
    assert len(str(kinds.refusal(kind, printable.shown(repr(data))))) < printable.MESSAGE_LIMIT


def fuzz_archive(data: bytes) -> None:
    file = io.BytesIO(data)
    entries = archive.check_archive(file)
    archive.check_contents(entries)
    for entry in entries.values():
        assert len(archive.read_entry(entry)) == entry.plain


def fuzz_pickle(data: bytes) -> None:
    names = allowed.Allowed()
    found = pickles.read_pickle(data, ENTRIES, names.known)
    if found.asked:
        assert len(str(loaded.Request("model.pt").refused(*names.advice(found.asked)))) < printable.MESSAGE_LIMIT


def fuzz_safetensors(data: bytes) -> None:
    tensors = safetensors_reader.read_safetensors(io.BytesIO(data))
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


def fuzz_inputs(data: bytes) -> None:
    for reader in (from_file._npy, from_file._npz):
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            tensors = _read(reader, file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 8 * MOST_INFLATED * len(data)


def _read(reader: Callable[[BinaryIO], dict[str, torch.Tensor]], file: BinaryIO) -> dict[str, torch.Tensor]:
    """Read inputs; whatever Exception is a refusal, as it is in ``read_inputs``."""
    try:
        return reader(file)
    except Exception:
        return {}


def _npz_seed() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(6.0).reshape(2, 3), b=np.ones(2, dtype=np.int32))
    return buffer.getvalue()


def _npy_seed() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6.0).reshape(2, 3))
    return buffer.getvalue()


TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]] = {
    "kinds": (fuzz_kinds, (MODEL, b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x08\x07\x12\x00")),
    "archive": (fuzz_archive, (MODEL,)),
    "pickle": (fuzz_pickle, (PICKLE,)),
    "inputs": (fuzz_inputs, (_npz_seed(), _npy_seed())),
    "safetensors": (fuzz_safetensors, (raw(json.dumps(HEADER).encode(), bytes(9)),)),
}


def main() -> None:
    target, seeds = TARGETS[sys.argv[1]]

    def one(data: bytes) -> None:
        said = ""
        try:
            target(data)
        except REFUSALS as error:
            said = str(error)
        assert len(said) < printable.MESSAGE_LIMIT - 80, said

    for argument in sys.argv[2:]:
        folder = Path(argument)
        if not argument.startswith("-") and not folder.exists():
            folder.mkdir(parents=True)
            for number, seed in enumerate(seeds):
                (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    assert pickle_calls.CALLS
    main()
