"""Deciding what folds, and folding it."""
