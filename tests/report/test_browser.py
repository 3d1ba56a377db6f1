"""The page in a real browser: no errors, the filter works, hostile names run nothing. Skipped where there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnfold.report.html import html
from tests.report.pages import CHROMIUM, browse, hostile, of_network

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html(of_network("pre-activation")), encoding="utf-8")
    return path


def visible_rows(dom: str) -> list[str]:
    rows = re.findall(r'<tr id="b\d+"[^>]*>', dom)
    assert rows
    return [row for row in rows if "hidden" not in row]


def test_a_page_opens_without_errors_and_draws_what_it_is_asked_for(page: Path, tmp_path: Path) -> None:
    dom, console = browse(page, tmp_path, hash_="#plot=0&find=conv&zoom=0.5")
    assert console == []
    assert len(visible_rows(dom)) == 3
    assert dom.count("<figure>") == 2
    assert re.search(r'<output class="found">1 of [1-9]', dom)
    assert "--zoom: 0.5" in dom


@pytest.mark.parametrize(("hash_", "left"), [("filter=fold", 1), ("filter=affine", 2), ("search=no-such-name", 0)])
def test_the_filter_narrows_the_table(page: Path, tmp_path: Path, hash_: str, left: int) -> None:
    dom, console = browse(page, tmp_path, hash_="#" + hash_)
    assert console == []
    assert len(visible_rows(dom)) == left
    assert f"{left} of 3 shown" in dom


def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(hostile()), encoding="utf-8")
    dom, console = browse(path, tmp_path / "profile")
    assert console == []
    assert "<title>broken out" not in dom
    assert len(visible_rows(dom)) == 2


def test_the_policy_stops_what_would_get_in(page: Path, tmp_path: Path) -> None:
    """The control of the tests above: a script and a picture from elsewhere are refused, and the console says so."""
    path = tmp_path / "report.html"
    hole = "<script>document.title='broken out'</script><img src='https://example.invalid/x.png'>"
    path.write_text(page.read_text(encoding="utf-8").replace("<header>", hole + "<header>"), encoding="utf-8")
    dom, console = browse(path, tmp_path / "profile")
    assert "<title>broken out" not in dom
    assert sum("Content Security Policy" in line for line in console) == 2
