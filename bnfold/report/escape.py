r"""Names from a model, made harmless for the place where they are shown.

Whoever made a model chose the names of its layers. In a terminal an escape sequence in one would move the cursor; in a
CI log a line that begins with ``::error`` is a command, and ``##[`` is one anywhere; in Markdown a pipe ends a table
cell, and HTML is HTML. Nothing is dropped: what is dangerous is shown as its code.

>>> visible("bn\x1b[31m1")
'bn\\x1b[31m1'
>>> visible("::error::gone")
'\\x3a:error\\x3a:gone'
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from bnfold.printable import shown

__all__ = ["for_markdown", "for_xml", "for_xml_attribute", "visible"]

LONGEST = 2000
"""No name or sentence is shown longer than this, in characters; its middle is left out."""


def visible(text: object) -> str:
    """Return ``text`` on one line with control, invisible and direction-changing characters shown as codes.

    The beginnings of CI log commands (``::`` and ``##[``) are broken up too.
    """
    return shown(text, LONGEST).replace("::", r"\x3a:").replace("##[", r"\x23#[")


def for_markdown(text: object) -> str:
    """Return ``text`` for a Markdown table cell: nothing in it is markup, a link, a mention or the end of the cell."""
    plain = visible(text)
    for mark in "\\`*_{}[]()#!|~$":
        plain = plain.replace(mark, "\\" + mark)
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


def for_xml(text: object) -> str:
    """Return ``text`` as XML character data; XML cannot hold control characters, so :func:`visible` comes first."""
    return escape(visible(text))


def for_xml_attribute(text: object) -> str:
    """Return ``text`` as a quoted XML attribute value."""
    return quoteattr(visible(text))
