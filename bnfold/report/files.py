"""Which format a report file has, by its suffix, and its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bnfold.errors import UsageError
from bnfold.printable import shown_path
from bnfold.report.document import Document
from bnfold.report.junit import junit
from bnfold.report.markdown import markdown
from bnfold.report.paths import without_folders

__all__ = ["as_json", "check_report_path", "content_for"]


def as_json(document: Document) -> str:
    """Return the document as JSON in ASCII, indented, with a line end."""
    document = without_folders(document, names_alone=False)
    return json.dumps(document.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _page(document: Document) -> str:
    from bnfold.report.html import html  # jinja2 only where it is needed

    return html(document)


_FORMATS: dict[str, Callable[[Document], str]] = {".html": _page, ".json": as_json, ".md": markdown, ".xml": junit}


def check_report_path(path: Path) -> None:
    """Raise unless a report of this name can be written.

    Raises:
        UsageError: the suffix names no format.
    """
    if path.suffix not in _FORMATS:
        raise UsageError(
            f"The suffix of the report {shown_path(path)} names no format.",
            fix="Use .html, .json, .md or .xml (JUnit), or - for JSON on standard output.",
        )


def content_for(path: Path, document: Document) -> bytes:
    """Return the bytes of a report; the suffix of ``path`` says in which format."""
    return _FORMATS[path.suffix](without_folders(document, names_alone=path.suffix != ".json")).encode("utf-8")
