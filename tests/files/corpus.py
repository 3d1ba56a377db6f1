"""The corpus of hostile and broken inputs: built when it is used, nothing of it stored."""

from __future__ import annotations

from tests.files import corpus_archives, corpus_kinds, corpus_models, corpus_pickles, corpus_weights
from tests.files.cases import Case

GROUPS: dict[str, tuple[Case, ...]] = {
    "kinds": corpus_kinds.CASES,
    "archives": corpus_archives.CASES,
    "pickles": corpus_pickles.CASES,
    "models": corpus_models.CASES,
    "safetensors": corpus_weights.CASES,
}
CASES: tuple[Case, ...] = tuple(case for cases in GROUPS.values() for case in cases)
