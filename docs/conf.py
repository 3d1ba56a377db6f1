"""Sphinx configuration: `make docs` builds these pages, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

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


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("command-help", CommandHelp)
