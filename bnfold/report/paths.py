"""Reports are read on other machines: the folders of the machine that wrote them do not stand in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from bnfold.report.document import Document

__all__ = ["without_folders"]


def without_folders(document: Document, *, names_alone: bool) -> Document:
    """Return the document with its paths relative to the working folder.

    Args:
        document: what was done.
        names_alone: a file outside of the working folder is told by its name; else as it was given, for programs that
            open it.
    """
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:  # it has been removed
        return document

    def path(given: str) -> str:
        if given.startswith(here):
            return given[len(here) :]
        return os.path.basename(given) or given if names_alone and os.path.isabs(given) else given

    known = {os.path.abspath(name): path(os.path.abspath(name)) for name in _named(document) if os.path.isabs(name)}

    def text(sentence: str) -> str:
        for absolute in sorted(known, key=len, reverse=True):
            sentence = sentence.replace(absolute, known[absolute])
        return sentence.replace(here, "")

    return _told(document, path, text)


def _named(document: Document) -> list[str]:
    paths = [document.model, *filter(None, [document.candidate]), *(file.path for file in document.outputs)]
    return paths + [file.path for file in (document.details.files if document.details is not None else ())]


def _told(document: Document, path: Callable[[str], str], text: Callable[[str], str]) -> Document:
    details = document.details
    if details is not None:
        files = tuple(replace(file, path=path(file.path)) for file in details.files)
        details = replace(details, files=files, remarks=tuple(map(text, details.remarks)))
    return document.with_results(
        model=path(document.model),
        candidate=None if document.candidate is None else path(document.candidate),
        inputs=None if document.inputs is None else (document.inputs[0], text(document.inputs[1])),
        outputs=tuple(replace(file, path=path(file.path)) for file in document.outputs),
        notes=tuple(map(text, document.notes)),
        batchnorms=tuple(
            replace(decision, detail=text(decision.detail), because=text(decision.because))
            for decision in document.batchnorms
        ),
        details=details,
    )
