"""``bnfold doctor``: what works here, what does not, and what helps."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from bnfold._version import __version__
from bnfold.cli.health import OPTIONAL, Doctor, examine
from bnfold.cli.stages import Stages
from bnfold.cli.terminal import Terminal
from bnfold.report.console import plain_table
from bnfold.report.escape import visible
from bnfold.report.words import counted

__all__ = ["run"]


def run(terminal: Terminal, *, as_json: bool) -> int:
    """Do it, and return the exit code: 0 where all that is needed works, otherwise 6."""
    with Stages(terminal.err, (("examine", "looking around"),), show=not terminal.quiet) as stages:

        def progress(name: str, done: float) -> None:
            stages.inside("examine", f"trying {name}", done)

        with stages("examine"), terminal.foreign_code():
            found = examine(progress)
        stages.finish()
    if as_json:
        terminal.write_raw(json.dumps(found.to_dict(), indent=2) + "\n")
    else:
        terminal.result(*_told(found))
    return 0 if found.well else 6


def _told(found: Doctor) -> Iterator[Any]:
    yield Text(
        f"bnfold {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{counted(os.cpu_count() or 1, 'core')}"
    )
    yield Text()
    table = plain_table("package", "version", "needed", "")
    for package in found.packages:
        wanted = f"{package.oldest} or newer" if package.needed else f"for {OPTIONAL[package.name]}"
        state = _state(not package.fix, package.needed, "missing" if package.version is None else "too old")
        table.add_row(package.name, visible(package.version or "-"), wanted, state)
    yield table
    yield Text()
    table = plain_table("what", "", "seconds", "detail", numbers=("seconds",))
    for check in found.checks:
        state = _state(check.works, check.needed, "fails")
        table.add_row(check.name, state, f"{check.seconds:.1f}", Text(visible(check.detail)))
    yield table
    yield Text()
    yield from _advice(found)


def _state(good: bool, needed: bool, otherwise: str) -> Text:
    return Text("ok", "green") if good else Text(otherwise, "red") if needed else Text("-")


def _advice(found: Doctor) -> Iterator[Text]:
    troubles = [(package.name, package.fix) for package in found.packages if package.needed and package.fix]
    troubles += [
        (package.name, f"Needed only for {OPTIONAL[package.name]}. {package.fix}")
        for package in found.packages
        if not package.needed and package.fix
    ]
    known = {fix for _, fix in troubles}
    troubles += [(one.name, one.fix) for one in found.checks if not one.works and one.fix not in known]
    for name, fix in troubles:
        yield Text(f"{name}: ", "bold") + Text(visible(fix))
    if found.well:
        yield Text("Everything that bnfold needs works here.", "green")
    else:
        broken = sum(not check.works for check in found.checks)
        yield Text(f"{broken} of {len(found.checks)} do not work.", "red")
