"""Experiments: one question a file; the path is its name."""
