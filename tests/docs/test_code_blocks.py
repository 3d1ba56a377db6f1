"""Every code block of the documentation runs: Python as it stands, in order, and commands with what they print."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bnfold.cli import main
from bnfold.cli.commands import bnfold as group

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts)
BLOCK = re.compile(r"^```(?P<head>[^\n]*)\n(?P<body>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
KNOWN = {"python", "console", "yaml", "toml", "json", "text", "{toctree}", "{eval-rst}", "{command-help}"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is to be saved as, and its text."""

    language: str
    saved_as: str | None
    text: str


def blocks(page: str) -> Iterator[Block]:
    for found in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        head, _, rest = found["head"].partition(" ")
        if head != "{code-block}":
            yield Block(head, None, found["body"])
            continue
        caption = re.match(r":caption: (\S+)\n\n", found["body"])
        body = found["body"][caption.end() :] if caption else found["body"]
        yield Block(rest, caption[1] if caption else None, body)


def with_code() -> list[str]:
    return [page for page in PAGES if any(block.language in ("python", "console") for block in blocks(page))]


def test_there_are_pages_with_code_and_no_block_of_an_unknown_kind() -> None:
    assert len(with_code()) >= 8
    for page in PAGES:
        assert {block.language for block in blocks(page)} <= KNOWN, page
        assert (DOCS / page).read_text(encoding="utf-8").count("\n```") % 2 == 0, page


@pytest.mark.parametrize("page", with_code())
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for file in {block.saved_as for block in blocks(page)} - {None}:
        monkeypatch.delitem(sys.modules, Path(str(file)).stem, raising=False)  # another test's file of that name
    names: dict[str, object] = {"__name__": "page"}
    before = set(sys.modules)
    try:
        with torch.random.fork_rng():
            for block in blocks(page):
                if block.saved_as is not None and "/" in block.saved_as:
                    continue  # a part of bnfold itself, which test_walk.py adds to it
                if block.saved_as is not None:
                    (tmp_path / block.saved_as).write_text(block.text, encoding="utf-8")
                elif block.language == "python":
                    exec(compile(block.text, page, "exec"), names)
                elif block.language == "console":
                    follow(block.text, capsys)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]


def follow(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a transcript; each line under one must be among what it prints, but for its numbers."""
    assert text.startswith("$ ")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = part.splitlines()
        program, *arguments = shlex.split(command)
        assert program == "bnfold"
        capsys.readouterr()
        code = main(arguments)
        printed = "".join(capsys.readouterr())
        assert code == (1 if "not equivalent" in expected else 0), printed
        for line in filter(lambda line: line not in ("", "..."), expected):
            assert plain(line) in plain(printed), f"{line!r} is not in\n{printed}"


def plain(text: str) -> str:
    return re.sub(r"\d+", "#", " ".join(text.split()))


def commands() -> list[tuple[str, str]]:
    """Every ``bnfold`` command line in the pages: in workflows and in indented examples."""
    found = []
    for page in PAGES:
        for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
            match = re.match(r"(?:    |- run: )(bnfold .+)", line)
            if match:
                found.append((page, match[1]))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_that_are_only_shown_have_options_that_exist(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line.partition("  ")[0], comments=True)
    group.commands[name].make_context(name, arguments)
