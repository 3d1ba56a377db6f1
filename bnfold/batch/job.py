"""One model of a manifest: what is to be run for it, and what tells it from another."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from bnfold._version import __version__

__all__ = ["FOLD", "Job", "digest", "folder_name", "key_of", "sha256_of", "size_of", "with_paths"]

FOLD = "bnfold.batch.child:fold"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Job:
    """One model, and what is to be done with it; it pickles, and goes to another machine.

    Attributes:
        name: unique in the manifest.
        source: the model's file, absolute; None where a spec makes the whole model.
        arguments: of ``bnfold fold``, without the program's name.
        folder: where its files go, absolute.
        reads: files that are read, the source first; their content is part of what the job is.
        work: what runs in the child process: ``module:function`` of the job, which returns a part of the record.
        seconds: the longest that it may take; None for no limit.
        memory: bytes that it may hold at the most; None where the scheduler says.
    """

    name: str
    source: str | None
    arguments: tuple[str, ...]
    folder: str
    reads: tuple[str, ...] = ()
    work: str = FOLD
    seconds: float | None = None
    memory: int | None = None


def with_paths(job: Job, moved: Mapping[str, str]) -> Job:
    """Return the job with paths replaced in everything that names them.

    Args:
        job: what is to be done.
        moved: the new path for each old one.
    """
    before = sorted(moved, key=len, reverse=True)  # a path may begin with another

    def path(text: str) -> str:
        for old in before:
            if old in text:
                return text.replace(old, moved[old])
        return text

    return replace(
        job,
        source=None if job.source is None else path(job.source),
        arguments=tuple(map(path, job.arguments)),
        folder=path(job.folder),
        reads=tuple(map(path, job.reads)),
    )


def folder_name(name: str) -> str:
    """Return the name of the folder for a model: its own where that is harmless, else told apart by a hash.

    >>> folder_name("resnet18.pt"), folder_name("a/b")
    ('resnet18.pt', 'a_b-c14cddc0')
    """
    plain = re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:80].lstrip(".")
    if plain == name and plain == plain.lower():  # of two names that differ in case alone, one gets a hash
        return plain
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def sha256_of(path: str) -> str | None:
    """Return the SHA-256 of a file's content, hexadecimal; None for what is no readable file."""
    hashed = hashlib.sha256()
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                hashed.update(chunk)
    except OSError:
        return None
    return hashed.hexdigest()


def digest(job: Job) -> tuple[str | None, str]:
    """Return the SHA-256 of the source, and the key: what must be equal for a result to be the same.

    The key is made of the content of all files that are read, of the options, and of the versions of bnfold and torch.
    It does not depend on where the files are.
    """
    hashes = {path: sha256_of(path) for path in job.reads}
    return (hashes[job.source] if job.source is not None else None), key_of(job, hashes)


def key_of(job: Job, hashes: dict[str, str | None]) -> str:
    """Return the key of a job whose files have these hashes."""
    arguments = list(job.arguments)
    for path, value in hashes.items():
        arguments = [argument.replace(path, f"<{value}>") for argument in arguments]
    arguments = [argument.replace(job.folder, "<folder>") for argument in arguments]
    parts: list[Any] = [job.work, arguments, [hashes[path] for path in job.reads], __version__, _version("torch")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def size_of(path: str) -> int:
    """Return how many bytes a file has; 0 where it cannot be read."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
