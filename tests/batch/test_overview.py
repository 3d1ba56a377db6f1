"""The page, the JUnit file and the other reports on all models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from bnfold.batch.overview import by_outcome, overview, write_overview
from bnfold.errors import UsageError
from bnfold.report.files import check_report_path
from tests.report.pages import CHROMIUM, browse

EVIL = "</td><script>document.title='broken out'</script><img src=x onerror=alert(1)>\u202e"


def record(name: str, outcome: str = "equivalent", **more: Any) -> dict[str, Any]:
    good = outcome == "equivalent"
    return {
        "name": name,
        "source": f"/models/{name}.pt",
        "outcome": outcome,
        "summary": {"fold": 3, "affine": 1, "keep": 0} if good else None,
        "seconds": 1.5,
        "peak_bytes": 3 << 30,
        "error": None if good else f"{name} went wrong",
        "before": [],
        "outputs": [{"path": "a b.onnx"}] if good else [],
        "folder": f"models/{name}",
        **more,
    }


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """Records whose folders are there."""
    made = [
        record("one", seconds=10.0),
        record("two", "timeout", seconds=9.0),
        record("three", "out-of-memory", seconds=100.0, before=["It was tried again alone."]),
        record("four", seconds=None),
    ]
    for each in made:
        folder = tmp_path / each["folder"]
        folder.mkdir(parents=True)
        (folder / "log.txt").touch()
        for name in ("report.html", *(output["path"] for output in each["outputs"])):
            if each["outcome"] == "equivalent":
                (folder / name).touch()
    return made


def links(page: str) -> list[str]:
    return [unquote(link) for link in re.findall(r'href="([^"]*)"', page)]


def test_the_page_has_a_row_for_each_model_and_links_to_what_is_there(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_overview(tmp_path, records)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<tr data-a="([^"]*)"', page) == [each["outcome"] for each in records]
    assert "2 of 4 not equivalent" in page
    assert "6 of 8 BatchNorms folded" in page
    assert len(links(page)) == 10  # a page and a model twice, a page named by its model's name, four logs
    assert all((tmp_path / link).is_file() for link in links(page))
    (tmp_path / "models/one/report.html").unlink()
    write_overview(tmp_path, records)
    assert len(links((tmp_path / "index.html").read_text(encoding="utf-8"))) == 8


def test_a_page_that_stands_elsewhere_has_links_that_hold(records: list[dict[str, Any]], tmp_path: Path) -> None:
    page = overview(tmp_path / "sub" / "page.html", records, tmp_path).decode()
    assert all(Path(link).is_file() for link in links(page))


def test_names_and_errors_run_nothing(tmp_path: Path) -> None:
    page = overview(
        Path("index.html"), [record(EVIL, "died", error=EVIL, before=[EVIL], source=EVIL)], tmp_path
    ).decode()
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page


def test_junit_has_a_test_for_each_model_and_a_failure_for_what_is_not_equivalent(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_overview(tmp_path, [*records, record(EVIL + "\x00", "refused")])
    suite = ElementTree.parse(tmp_path / "junit.xml").find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("5", "3")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases[:4]] == ["one", "two", "three", "four"]
    failures = [case.find("failure") for case in cases]
    assert [failure is None for failure in failures] == [True, False, False, True, False]
    assert failures[1] is not None
    assert failures[1].get("message") == "timeout: two went wrong"
    assert cases[2].findtext("system-out") == "It was tried again alone."


def test_markdown_and_json_tell_the_same(records: list[dict[str, Any]], tmp_path: Path) -> None:
    text = overview(Path("a.md"), records, tmp_path).decode()
    assert "**4 models: 2 equivalent, 1 timeout, 1 out-of-memory**" in text
    assert "| two | timeout | two went wrong |" in text
    data = json.loads(overview(Path("a.json"), records, tmp_path))
    assert data["outcomes"] == by_outcome(records) == {"equivalent": 2, "timeout": 1, "out-of-memory": 1}
    assert data["models"] == records
    with pytest.raises(UsageError, match="names no format"):
        check_report_path(Path("a.txt"))


def test_no_models_make_a_page_too(tmp_path: Path) -> None:
    write_overview(tmp_path, [])
    assert "0 models" in (tmp_path / "index.html").read_text()


def order(dom: str) -> list[str]:
    return [
        name
        for hidden, name in re.findall(r'<tr data-a="[^"]*"([^>]*)>\s*<td class="name">(?:<a[^>]*>)?(\w+)', dom)
        if "hidden" not in hidden
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("hash_", "shown"),
    [
        ("", ["one", "two", "three", "four"]),
        ("#filter=timeout", ["two"]),
        ("#search=models/t", ["two", "three"]),
        ("#sort=-time", ["three", "one", "two", "four"]),
        ("#sort=model", ["four", "one", "three", "two"]),
        ("#filter=equivalent&sort=time", ["four", "one"]),
    ],
)
def test_in_a_browser_the_page_sorts_and_filters(
    hash_: str, shown: list[str], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_overview(tmp_path, records)
    dom, console = browse(tmp_path / "index.html", tmp_path / "profile", hash_=hash_)
    assert console == []
    assert order(dom) == shown
    assert f"{len(shown)} of 4 shown" in dom or len(shown) == 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_hostile_names_run_nothing(tmp_path: Path) -> None:
    write_overview(tmp_path, [record(EVIL, "died", error=EVIL, before=[EVIL], source=EVIL)])
    dom, console = browse(tmp_path / "index.html", tmp_path / "profile")
    assert console == []
    assert "<title>broken out" not in dom
