"""The scripts that make pages of the documentation, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script(name: str) -> Any:
    """Return ``docs/NAME.py``."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
