"""The templates, scripts and style sheets that pages are made of."""

from __future__ import annotations

from functools import cache

import jinja2

__all__ = ["page_source", "page_template"]


@cache
def _environment() -> jinja2.Environment:
    """Return what makes pages out of templates: everything escaped, nothing undefined."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("bnfold.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_template(name: str) -> jinja2.Template:
    """Return a template of a page."""
    return _environment().get_template(name)


@cache
def page_source(name: str) -> str:
    """Return the text of a script or a style sheet of a page, as it is."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
