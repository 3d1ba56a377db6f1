"""The page is whole, needs nothing else, and no name gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

import bnfold
from bnfold.report.charts import error_bar, error_range, squeezed
from bnfold.report.details import Affine, Details, Picture, Vertex, Way
from bnfold.report.document import Document
from bnfold.report.html import html
from tests.report.pages import EVIL, hostile, of_network
from tests.report.samples import comparison, decision, document, failing

VOID = {"meta", "input", "wbr"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


PAGES = {
    "fold": lambda: of_network("pre-activation"),
    "failing": failing,
    "hostile": hostile,
    "explain": lambda: document(command="explain", verification=None, outputs=()),
    "verify": lambda: document(command="verify", candidate="b.onnx", capture=None, batchnorms=()),
    "nothing": lambda: Document(command="explain", model="m"),
}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_page_is_well_formed_and_asks_the_network_for_nothing(name: str) -> None:
    page = html(PAGES[name]())
    reader = Reader(page)
    assert reader.count("script") == 2
    for tag, attributes in reader.elements:
        assert tag not in {"img", "link", "iframe", "object", "embed", "base", "form"}
        assert not {key for key in attributes if key.startswith("on")}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page
    assert "@import" not in page


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_policy_allows_the_pages_own_script_alone(name: str) -> None:
    reader = Reader(html(PAGES[name]()))
    (policy,) = [a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(reader.scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy


def test_hostile_names_stay_text() -> None:
    page = html(hostile())
    assert "broken out" in page  # it is told, as text
    for raw in ("<b>&", "<img", "</script><script>document", "\x1b", "\u202e", "\u2028", "\u200b", "\x00"):
        assert raw not in page
    assert "::error" not in page
    assert EVIL[:5] not in page


def test_the_page_of_a_fold_tells_every_decision_and_comparison() -> None:
    told = of_network("pre-activation")
    text = " ".join(Reader(html(told)).text)
    for one in told.batchnorms:
        assert one.batchnorm in text.replace(" ", "") or one.batchnorm in text
        assert one.reason is None or one.reason in text
        assert one.action == "fold" or one.detail.rpartition(": ")[2] in text
    for compared in told.comparisons:
        assert compared["name"] in text
    assert "equivalent" in text
    assert f"torch {bnfold.report.document.versions()['torch']}" in text  # type: ignore[attr-defined]


def test_a_failure_is_told_in_words_not_in_colour_alone() -> None:
    text = " ".join(Reader(html(failing())).text)
    assert "✗ failed" in text
    assert "not equivalent" in text
    assert "The first BatchNorm that differs" in text
    assert "40 times what rounding makes" in text


def test_the_data_of_the_page_is_what_the_layers_hold() -> None:
    told = of_network("seed")
    assert told.details is not None
    (item,) = json.loads(Reader(html(told)).scripts[0])
    (affine,) = told.details.affines
    low, high, digits = item["a"]
    assert (low, high) == (min(affine.scale), max(affine.scale))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    steps = [
        alphabet.index(first) * 64 + alphabet.index(second) for first, second in zip(*[iter(digits)] * 2, strict=True)
    ]
    for step, value in zip(steps, affine.scale, strict=True):
        assert low + (high - low) * step / 4095 == pytest.approx(value, abs=(high - low) / 4000)


def test_signs_and_near_zeros_survive_the_rounding_of_the_plot() -> None:
    flags = squeezed(Affine(0, (1000.0, -1e-9, 1e-9, -1000.0, 0.0, 2.0), (0.0,) * 6))["f"]
    assert flags == ".bznz."


def test_what_is_not_finite_is_drawn_nowhere_and_breaks_nothing() -> None:
    item = squeezed(Affine(0, (float("nan"), 1.0), (float("inf"), 0.0)))
    assert json.loads(json.dumps(item, allow_nan=False)) == item


def test_error_bars_order_error_floor_and_limit() -> None:
    told = comparison()
    low, high = error_range([told])
    assert low <= -7
    assert high >= -6
    bar = str(error_bar(told, low, high))
    places = [float(x) for x in re.findall(r'(?:cx="|M|width=")([\d.]+)(?:"| 3V)', bar)]
    allowed, floor, error = places
    assert error < floor < allowed
    assert 'class="cross"' in str(error_bar(comparison(passed=False), low, high))


def chain(layers: int, channels: int) -> Document:
    """Return a document about a plain net of many layers."""
    before = [Vertex("x", "x", "input", "end")]
    after = [before[0]]
    ways, decisions, affines = [], [], []
    for n in range(layers):
        name = f"features.denseblock{n // 24}.denselayer{n % 24}"
        before += [
            Vertex(f"{name}.conv", f"{name}.conv", "Conv2d 128→128, 3×3", "weights", (len(before) - 1,)),
            Vertex(f"{name}.norm", f"{name}.norm", f"BatchNorm2d {channels}", "batchnorm", (len(before),)),
            Vertex(f"{name}.relu", f"{name}.relu", "ReLU", "other", (len(before) + 1,)),
        ]
        after += [
            Vertex(f"{name}.conv", f"{name}.conv", "Conv2d 128→128, 3×3", "weights", (len(after) - 1,)),
            Vertex(f"{name}.relu", f"{name}.relu", "ReLU", "other", (len(after),)),
        ]
        ways.append(Way(n, 3 * n + 2, (3 * n + 1,), ((3 * n + 2, 3 * n + 1),)))
        decisions.append(decision(f"{name}.norm", into=(f"{name}.conv",), through=(), source="densenet.py:90"))
        affines.append(Affine(n, tuple(0.1 * c - 1 for c in range(channels)), (0.5,) * channels))
    details = Details(0, (), (Picture("", tuple(before), tuple(after), tuple(ways)),), tuple(affines))
    return document(batchnorms=tuple(decisions), details=details)


def test_the_page_of_a_thousand_layers_is_under_five_megabytes() -> None:
    page = html(chain(1000, 128))
    assert len(page.encode()) < 5_000_000
    Reader(page)
