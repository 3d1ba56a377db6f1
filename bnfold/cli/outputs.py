"""The files that a run writes: models in each kind, reports in each format."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError
from bnfold.files.destinations import check_folders
from bnfold.files.save import Content, Output, check_targets, chunks, size_of, write_outputs
from bnfold.printable import shown_path
from bnfold.report.document import Document, OutputFile
from bnfold.report.files import as_json, check_report_path, content_for

if TYPE_CHECKING:
    from bnfold.cli.terminal import Terminal

__all__ = ["KINDS", "check_opset", "check_paths", "output_paths", "write"]

KINDS = (".onnx", ".pt2", ".safetensors")


def output_paths(given: Sequence[Path], model: str, name: str | None) -> list[Path]:
    """Return where the models go: as given, or beside a model file, or for a SPEC in the current folder.

    Args:
        given: by the user.
        model: MODEL as the user wrote it.
        name: of the SPEC's factory; None for a file.

    Raises:
        UsageError: a suffix names no kind of model.
    """
    for path in given:
        if path.suffix not in KINDS:
            raise UsageError(
                f"The suffix of the output {shown_path(path)} names no kind of model.", fix=f"Use {', '.join(KINDS)}."
            )
    if given:
        return list(given)
    path = Path(model) if Path(model).name else Path(model).resolve()
    stem = path.with_suffix("") if name is None else Path(name)
    return [stem.with_name(f"{stem.name}.folded{suffix}") for suffix in (".onnx", ".pt2")]


def check_opset(opset: int | None, outputs: Sequence[Path]) -> None:
    """Check, before any work, that an opset can be written.

    Raises:
        UsageError: there is no such opset, or nothing that is written has one.
    """
    if opset is None:
        return
    if all(path.suffix != ".onnx" for path in outputs):
        raise UsageError("--opset is about .onnx files, and none is written.", fix="Leave it out, or add -o FILE.onnx.")
    from bnfold.export.opset import asked_of_exporter

    asked_of_exporter(opset)


def check_paths(outputs: Sequence[Path], reports: Sequence[str], *, inputs: Sequence[Path], force: bool) -> None:
    """Check, before any work, that all files can be written.

    Raises:
        UsageError: a report's suffix names no format, or two files are one.
        FileAccessError: a file exists and ``force`` is not given, or its folder does not exist or cannot be written to.
    """
    paths = [Path(report) for report in reports if report != "-"]
    for path in paths:
        check_report_path(path)
    check_targets([*outputs, *paths], inputs=inputs, force=force)
    check_folders([*outputs, *paths])


def write(
    outputs: Sequence[Output],
    document: Document,
    reports: Sequence[str],
    terminal: Terminal,
    *,
    inputs: Sequence[Path],
    force: bool,
    made: Sequence[OutputFile] = (),
) -> Document:
    """Write the models and the reports about them: all of them, or none.

    Args:
        outputs: the models.
        document: what is to be told.
        reports: where.
        terminal: for a report on stdout.
        inputs: the files that were read; none of them is written to.
        force: whether a file that exists is replaced.
        made: models that were written before.

    Returns:
        The document with the files written in it.
    """
    files = [*made, *(_described(name, content) for output in outputs for name, content in _contents(output))]
    document = document.with_results(outputs=tuple(files))
    paths = [Path(report) for report in reports if report != "-"]
    told = [Output(path, content_for(path, document)) for path in paths]
    write_outputs([*outputs, *told], inputs=inputs, force=force)
    if "-" in reports:
        terminal.write_raw(as_json(document))
    return document.with_results(reports=tuple(_described(output.path, output.content) for output in told))


def _contents(output: Output) -> list[tuple[Path, Content]]:
    beside = [(output.path.parent / sidecar.name, sidecar.content) for sidecar in output.sidecars]
    return [(output.path, output.content), *beside]


def _described(path: Path, content: Content) -> OutputFile:
    found = hashlib.sha256()
    for chunk in chunks(content):
        found.update(chunk)
    return OutputFile(str(path), found.hexdigest(), size_of(content))
