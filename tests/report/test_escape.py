"""No name can leave the place where it is shown."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.report.escape import LONGEST, for_markdown, for_xml, for_xml_attribute, visible
from tests.report.samples import NASTY

TEXTS = st.text(st.characters(codec=None), max_size=60) | st.text("\x1b[]():#|<>&@\n\r`*_\\~$wW./", max_size=40)


@given(TEXTS)
def test_what_is_shown_is_printable_and_no_log_command(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert "::" not in shown
    assert "##[" not in shown


@pytest.mark.parametrize("plain", ["conv1", "layer1.0.bn2", "größe", "a:b", "", "bn 1"])
def test_plain_names_stay_as_they_are(plain: str) -> None:
    assert visible(plain) == plain


def test_two_invisible_names_look_different() -> None:
    assert visible("bn\u200b") != visible("bn\u202e") != visible("bn")


def test_a_megabyte_is_shortened() -> None:
    assert len(visible("a" * 1_000_000)) <= LONGEST


@given(TEXTS)
def test_xml_holds_it_and_gives_it_back(text: str) -> None:
    element = ET.fromstring(f"<a b={for_xml_attribute(text)}>{for_xml(text)}</a>")
    assert element.get("b") == visible(text)
    assert (element.text or "") == visible(text)
    assert len(element) == 0


@given(TEXTS)
def test_markdown_has_no_markup_left(text: str) -> None:
    shown = for_markdown(text)
    bare = shown.replace("\\\\", "")
    for mark in "`*_{}[]()#!|~$":
        assert bare.replace(f"\\{mark}", "").count(mark) == (
            bare.replace(f"\\{mark}", "").count("&#") if mark == "#" else 0
        )
    assert "<" not in shown
    assert "@" not in shown
    assert "\n" not in shown
    assert "://" not in shown


def test_the_worst_name_is_one_line() -> None:
    assert visible(NASTY).count("\\x") >= 5
    assert "\n" not in visible(NASTY)
