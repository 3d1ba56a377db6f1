"""Launcher: ``python cli.py fold model.pt`` is ``bnfold fold model.pt`` from a checkout."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from bnfold.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # before there was anything to interrupt
        sys.exit(130)
