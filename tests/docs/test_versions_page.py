"""The page of versions is made of the records, and says what `requires` says."""

from __future__ import annotations

from tests.docs.scripts import DOCS, script


def test_the_page_is_current() -> None:
    made = script("versions")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run: python docs/versions.py"


def test_the_page_holds_a_row_for_each_record_and_a_sentence_for_each_limit() -> None:
    made = script("versions")
    page = made.page()
    for record in made.matrix.records():
        assert made.row(record) in page
    for limit in made.matrix.LIMITS:
        assert limit.sentence in page


def test_the_oldest_that_is_installed_was_tried() -> None:
    made = script("versions")
    oldest = made.bound("torch>=")
    tried = [record for record in made.matrix.records() if record["torch"] == oldest and "error" not in record]
    assert tried
    assert all(record["core"].get("failed", 0) == 0 and record["export"] == record["demo"] == "ok" for record in tried)


def test_tests_that_are_left_out_exist() -> None:
    for limit in script("versions").matrix.LIMITS:
        for test in limit.tests:
            path, name = test.split("::")
            assert f"def {name}(" in (DOCS.parent / path).read_text(encoding="utf-8")
