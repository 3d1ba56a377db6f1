"""Sphinx configuration: `make docs` builds these pages, with warnings as errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bnfold._version import __version__  # noqa: E402

project = "bnfold"
copyright = "the bnfold developers"
version = release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "bnfold"
html_static_path: list[str] = []
html_show_sourcelink = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]
pygments_style = "friendly"


class CommandHelp(Directive):
    """``command-help:: fold``: what the command says with ``--help``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the text, as it stands in a terminal of 80 columns, which is what fits on the page."""
        from bnfold.cli.commands import bnfold

        name = self.arguments[0]
        command: click.Command = bnfold if name == "bnfold" else bnfold.commands[name]
        path = "bnfold" if name == "bnfold" else f"bnfold {name}"
        context = click.Context(command, info_name=path, terminal_width=80, help_option_names=["-h", "--help"])
        text = command.get_help(context)
        block = nodes.literal_block(text, text, language="text")
        return [block]


class RuleTable(Directive):
    """``rule-table:: pull`` or ``push``: the table of rules, from the code that applies it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a table: each rule's op and what it is, its mathematics, its conditions."""
        from bnfold.fold.rules import RULES

        rows = [
            (
                f"{kind.__name__}\n{_plain(kind.__doc__ or '')}",
                rule.mathematics,
                ", ".join(condition.__name__.replace("_", " ") for condition in rule.conditions) or "none",
            )
            for kind, rule in RULES.items()
        ]
        return [_table(("op", "why it is right", "conditions"), rows, (45, 40, 25))]


def _plain(docstring: str) -> str:
    """Return its first line without markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", docstring.splitlines()[0]).replace("``", "")


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]], widths: tuple[int, ...]) -> nodes.table:
    group = nodes.tgroup(cols=len(widths))
    group.extend(nodes.colspec(colwidth=width) for width in widths)

    def row(cells: tuple[str, ...]) -> nodes.row:
        made = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            name, _, rest = cell.rpartition("\n")
            if name:
                entry += nodes.paragraph("", "", nodes.strong(text=name))
            entry += nodes.paragraph(text=rest)
            made += entry
        return made

    head, body = nodes.thead(), nodes.tbody()
    head += row(heading)
    body.extend(row(cells) for cells in rows)
    group += [head, body]
    table = nodes.table()
    table += group
    return table


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("rule-table", RuleTable)
