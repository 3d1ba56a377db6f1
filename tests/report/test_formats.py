"""Every format tells the same document, whole, whatever the names in it are."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bnfold.errors import UsageError
from bnfold.report.document import Document
from bnfold.report.escape import visible
from bnfold.report.files import as_json, check_report_path, content_for
from bnfold.report.html import html
from bnfold.report.junit import junit
from bnfold.report.markdown import markdown
from tests.report.samples import NASTY, decision, document, failing, nasty

CONTRACT = {"schema", "model", "capture", "batchnorms", "summary", "verification", "outputs", "versions"}


def table_rows(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in row.replace("\\|", "\0").strip("|").split("|")] for row in rows]


def test_json_has_the_keys_of_the_contract() -> None:
    data = json.loads(as_json(document()))
    assert data.keys() >= CONTRACT
    assert data["schema"] == 1
    assert data["summary"] == {"fold": 1, "affine": 1, "keep": 0}
    assert data["outputs"] == [{"path": "model.folded.onnx", "sha256": "ab" * 32, "size": 254_000}]
    assert data["verification"]["comparisons"][0].keys() >= {
        "name",
        "max_abs",
        "peak",
        "rms",
        "noise_floor",
        "allowed",
        "passed",
    }
    assert data["counts"]["before"]["macs"] == 2 * data["counts"]["after"]["macs"] == 2_500_000
    assert data["batchnorms"][0] == decision().to_dict()
    assert data["versions"]["torch"]


def test_json_without_a_verification_says_so() -> None:
    assert json.loads(as_json(document(verification=None)))["verification"] is None


def test_json_gives_hostile_names_back_and_is_plain_ascii() -> None:
    text = as_json(nasty())
    assert json.loads(text)["batchnorms"][0]["batchnorm"] == NASTY
    assert text.isascii()
    assert not any(line.strip().startswith("::") for line in text.splitlines())
    assert all(char == "\n" or char.isprintable() for char in text)


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        (document(), "equivalent"),
        (failing(), "not equivalent"),
        (document(verification=None), "not verified"),
        (document(verification=None, exit_code=4), "not everything folded"),
        (document(verification={"passed": False, "verdict": "unverifiable", "comparisons": []}), "not verifiable"),
    ],
)
def test_the_outcome_is_told_in_every_format(told: Document, outcome: str) -> None:
    assert told.outcome == outcome
    assert json.loads(as_json(told))["outcome"] == outcome
    assert outcome in markdown(told).splitlines()[0]


def test_markdown_has_a_row_for_each_batchnorm_comparison_and_file() -> None:
    rows = table_rows(markdown(document()))
    assert ["bn1", "folded backward", "conv1", "pool", ""] in rows
    assert ["bn2", "explicit affine", "", "", "1 of 32 scales is negative."] in rows
    assert ["torch", "1.50e-07", "2.50e-07", "1.00e-06", "passed"] in rows
    assert any(row[0] == "model.folded.onnx" for row in rows)


def test_markdown_tells_what_repeats_once_and_each_by_a_click() -> None:
    repeated = [decision(batchnorm=f"stage{n}.bn", into=(f"stage{n}.conv",)) for n in (1, 2, 3)]
    text = markdown(document(batchnorms=(*repeated, decision(batchnorm="stem.norm"))))
    told, opened = text.split("<details>")
    rows = [row for row in table_rows(told) if row[1].endswith("folded backward")]
    assert [row[:3] for row in rows] == [
        ["stage\\*.bn", "3 folded backward", "stage\\*.conv"],
        ["stem.norm", "folded backward", "conv1"],
    ]
    assert opened.startswith("<summary>Each of the 4 BatchNorms</summary>\n\n| BatchNorm |")
    assert [row[0] for row in table_rows(opened.split("</details>")[0])[1:]] == [
        *(f"stage{n}.bn" for n in (1, 2, 3)),
        "stem.norm",
    ]


def test_hostile_names_stay_in_their_cell() -> None:
    text = markdown(nasty())
    rows = table_rows(text)
    assert [len(row) for row in rows] == [5] * 3 + [3] * 7 + [5] * 2 + [3] * 2
    assert "<b>" not in text
    assert "\x1b" not in text
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())


def test_junit_has_a_case_for_each_batchnorm_and_comparison() -> None:
    root = ET.fromstring(junit(document()))
    suites = {suite.get("name"): suite for suite in root}
    assert [case.get("name") for case in suites["bnfold.batchnorms"]] == ["bn1", "bn2"]
    assert [case.get("name") for case in suites["bnfold.verification"]] == ["torch"]
    assert not root.findall(".//failure")
    assert all(suite.get("tests") == str(len(suite)) for suite in root)


def test_junit_counts_a_failed_comparison() -> None:
    root = ET.fromstring(junit(failing()))
    failures = root.findall(".//failure")
    assert len(failures) == 1
    assert "40 times" in (failures[0].get("message") or "")
    assert root.findall("testsuite")[1].get("failures") == "1"


def test_junit_counts_what_stayed_only_in_strict_mode() -> None:
    assert len(ET.fromstring(junit(document(strict=True))).findall(".//failure")) == 1
    assert not ET.fromstring(junit(document(strict=False))).findall(".//failure")


def test_junit_fails_where_nothing_could_be_verified() -> None:
    told = document(verification={"passed": False, "verdict": "unverifiable", "reason": "no", "comparisons": []})
    (failure,) = ET.fromstring(junit(told)).findall(".//failure")
    assert failure.get("message") == "no"


def test_hostile_names_are_text_in_junit() -> None:
    root = ET.fromstring(junit(nasty()))
    assert root.get("name") == visible(NASTY)
    assert {element.tag for element in root.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "system-out"}


@pytest.mark.parametrize("name", ["r.html", "r.json", "r.md", "r.xml"])
def test_the_suffix_chooses_the_format(name: str) -> None:
    check_report_path(Path(name))
    expected = {".html": html, ".json": as_json, ".md": markdown, ".xml": junit}[Path(name).suffix]
    assert content_for(Path(name), document()) == expected(document()).encode()


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"names no format\. Use \.html"):
        check_report_path(Path("r.txt"))
