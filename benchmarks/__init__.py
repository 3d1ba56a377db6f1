"""Measurements: run by `make bench`, or each on its own."""
