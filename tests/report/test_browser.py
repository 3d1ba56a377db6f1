"""The page in a real browser: no errors, the filter works, hostile names run nothing. Skipped where there is none."""

from __future__ import annotations

import json
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

import bnfold.report.html as page_of
from bnfold.report.document import Document
from bnfold.report.html import html
from tests.report.pages import CHROMIUM, browse, hostile, of_network
from tests.report.samples import decision as sample
from tests.report.samples import document as sample_document

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


MANY = 2000
"""More BatchNorms than any model that is known has."""


def asked(
    document: Document, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, width: int = 1280
) -> dict[str, Any]:
    """Return what a script answers in the page of a document; it runs as a part of the page's own script.

    The page stands in a frame, since no window of the browser is as narrow as a telephone.
    """
    source = page_of.page_source
    answer = f"\n;document.title = JSON.stringify((() => {{ {script} }})());"
    monkeypatch.setattr(page_of, "page_source", lambda name: source(name) + (answer if name == "page.js" else ""))
    path = folder / "asked.html"
    frame = f'<iframe width="{width}" height="900" srcdoc="{escape(html(document))}"></iframe>'
    tell = "<script>onload = () => { document.title = frames[0].document.title; }</script>"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><title></title>{frame}{tell}", encoding="utf-8")
    dom, console = browse(path, folder / "profile", *arguments)
    assert console == []
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


def of_many() -> Document:
    """Return a document of many blocks: one folds into its convolution, one becomes an affine, and one is alone."""
    folds = [sample(f"stage{n}.bn1", into=(f"stage{n}.conv1",), through=(), site=f"a{n}") for n in range(MANY // 2)]
    stay = [
        sample(f"stage{n}.bn2", "affine", detail=f"stage{n}.bn2 became an explicit affine: `cat_{n}` reads it.")
        for n in range(MANY // 2 - 1)
    ]
    return sample_document(batchnorms=(*folds, *stay, sample("an.only.one.bn", into=("an.only.one.conv",))))


ROWS = "[...document.querySelectorAll('#table tr[data-a]')].filter(row => !row.hidden).length"


def test_what_repeats_is_one_row_that_a_click_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = asked(
        of_many(),
        f"""const opens = document.querySelectorAll('button.opens'), rows = () => {ROWS};
        const answer = {{ groups: opens.length, before: rows(), closed: opens[1].getAttribute('aria-expanded') }};
        opens[1].focus(); answer.focused = document.activeElement === opens[1];
        opens[1].click(); answer.after = rows(); answer.opened = opens[1].getAttribute('aria-expanded');
        opens[1].click(); answer.again = rows();
        document.querySelector('#open').click(); answer.all = rows();
        document.querySelector('#open').click(); answer.none = rows();
        return answer;""",
        tmp_path,
        monkeypatch,
    )
    assert told == {
        "groups": 2,
        "before": 1,
        "closed": "false",
        "focused": True,
        "after": MANY // 2,
        "opened": "true",
        "again": 1,
        "all": MANY,
        "none": 1,
    }


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_thousands_of_rows_fit_a_screen_and_a_telephone(
    width: int, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asked(
        of_many(),
        """const sum = color => color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
        const ink = element => sum(getComputedStyle(element).color);
        const back = sum(getComputedStyle(document.body).backgroundColor);
        const faint = [...document.querySelectorAll('td, th, button, p')].filter(e => Math.abs(ink(e) - back) < 200
          && e.getAttribute('aria-pressed') !== 'true');
        const page = document.documentElement;
        const fits = page.scrollWidth <= page.clientWidth;
        return { width: innerWidth, fits, dark: back < 200, faint: faint.length };""",
        tmp_path,
        monkeypatch,
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        width=width,
    )
    assert told == {"width": width, "fits": True, "dark": scheme == "dark", "faint": 0}


def test_a_link_to_a_row_opens_its_group_and_a_search_looks_inside(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(of_many()), encoding="utf-8")
    linked, _ = browse(path, tmp_path / "profile", hash_="#b17")
    assert len(visible_rows(linked)) == MANY // 2 + 1
    searched, _ = browse(path, tmp_path / "profile", hash_="#search=stage77.bn2")
    (row,) = visible_rows(searched)
    assert f'id="b{MANY // 2 + 77}"' in row
    assert f"1 of {MANY} shown" in searched
