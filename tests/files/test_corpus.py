"""Every hostile or broken input gets one message, the right exit code, and runs nothing."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bnfold.errors import BnfoldError, FileAccessError, RefusedFileError, UsageError
from bnfold.files.load import load_model
from tests.files.cases import ACCESS, REFUSED, USAGE, Case
from tests.files.corpus import CASES

ERRORS = {USAGE: UsageError, REFUSED: RefusedFileError, ACCESS: FileAccessError}


def options_of(case: Case, folder: Path) -> dict[str, Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [Path(filled(part)) for part in value]
        return value.format(folder=folder) if isinstance(value, str) else value

    return {name: filled(value) for name, value in case.options.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_gets_one_message_and_runs_nothing(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    marker = tmp_path / "marker"
    limit = sys.getrecursionlimit()
    source = str(case.make(folder, marker))
    sys.setrecursionlimit(limit)
    before = torch.serialization.get_safe_globals()
    made = sorted(folder.rglob("*"))
    with pytest.raises(BnfoldError) as caught:
        load_model(source, **options_of(case, folder))
    message = str(caught.value)
    assert type(caught.value) is ERRORS[case.code], message
    assert caught.value.exit_code == case.code
    assert len(message) < 400, message
    assert message.isprintable(), repr(message)
    assert caught.value.fix
    assert caught.value.fix[-1] in ".?", message
    for words in case.says:
        assert words in message
    assert not marker.exists()
    assert sorted(folder.rglob("*")) == made, "something was written beside the input"
    assert torch.serialization.get_safe_globals() == before


def test_the_corpus_is_large_and_its_names_are_different() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.pt")
        with pytest.raises(RefusedFileError, match="socket"):
            load_model("s.pt")
