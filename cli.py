"""Launcher: ``python cli.py fold model.pt`` is ``bnfold fold model.pt`` from a checkout."""

from __future__ import annotations

import sys

from bnfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
