"""Inputs for a model: found by trying shapes, or read from a file."""
